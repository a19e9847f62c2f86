"""Rooms, whatever the interleaving: each message once, in order, none missing."""

import asyncio
import random
from collections.abc import Sequence
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from uuid_utils.compat import uuid7

from messaging_server.errors import Unavailable
from messaging_server.models import ContentType, Message, SenderType
from messaging_server.realtime import rooms as rooms_module
from messaging_server.realtime.protocol import Frame
from messaging_server.realtime.rooms import Room, Rooms

CONVERSATION = UUID("01900000-0000-7000-8000-000000000001")
AGENT = UUID("01900000-0000-7000-8000-00000000000a")
COLLEAGUE = UUID("01900000-0000-7000-8000-00000000000b")


def message(seq: int, conversation_id: UUID = CONVERSATION) -> Message:
    return Message(
        id=uuid7(),
        conversation_id=conversation_id,
        seq=seq,
        sender_type=SenderType.LEAD,
        sender=None,
        content_type=ContentType.TEXT,
        content_text=f"message {seq}",
        media_url=None,
        attachments=(),
        private=False,
        status=None,
        client_message_id=None,
        created_at="2026-01-31T12:00:00.000Z",
    )


def frame(seq: int) -> Frame:
    return Frame("message:new", str(seq).encode())


class Ear:
    """A member that notes the numbers it hears; may leave in the middle of a frame."""

    def __init__(self, user_id: UUID | None = None, *, hears_at_most: int = 1_000_000) -> None:
        self.user_id = user_id
        self.position: int | None = None
        self.heard: list[int] = []
        self.lost: list[UUID] = []
        self.hears_at_most = hears_at_most
        self.room: Room[Ear] | None = None

    def join_at(self, position: int) -> None:
        self.position, self.heard = position, []

    def send(self, frame: Frame) -> None:
        self.heard.append(int(frame.text))
        if len(self.heard) >= self.hears_at_most and self.room is not None:
            self.room.leave(self)

    def send_best_effort(self, frame: Frame) -> None:
        raise AssertionError(f"{frame.event} must not be best effort")

    async def hears(self, seq: int) -> None:
        """Wait until it has heard everything through `seq`."""
        async with asyncio.timeout(20):
            while self.last != seq:  # noqa: ASYNC110  # a member has no event to wait for
                await asyncio.sleep(0.001)

    def may_see(self, assigned_agent_id: UUID | None) -> bool:
        return self.user_id is None or self.user_id == assigned_agent_id

    def lose(self, conversation_id: UUID) -> None:
        self.lost.append(conversation_id)

    @property
    def in_order(self) -> bool:
        if self.position is None:
            return not self.heard
        first = self.position + 1
        return self.heard == list(range(first, first + len(self.heard)))

    @property
    def last(self) -> int | None:
        return self.heard[-1] if self.heard else self.position


class AnyOrder(RuleBasedStateMachine):
    """One room; commits, publications, joins and reads in any order, lost and doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.room: Room[Ear] = Room(CONVERSATION)
        self.committed = 0
        self.joining: dict[Ear, int | None] = {}  # the head that the join has read
        self.everyone: list[Ear] = []
        self.read: list[int] | None = None

    @initialize(before=st.integers(0, 3))
    def conversation_exists(self, before: int) -> None:
        self.committed = before

    @rule(count=st.integers(1, 3))
    def commit(self, count: int) -> None:
        self.committed += count

    @precondition(lambda self: self.committed)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        seq = data.draw(st.integers(max(1, self.committed - 4), self.committed))
        if self.room.wants(seq):
            self.room.offer(seq, frame(seq))

    @rule(hears_at_most=st.sampled_from([1, 2, 1_000_000, 1_000_000]))
    def begin_join(self, hears_at_most: int) -> None:
        ear = Ear(hears_at_most=hears_at_most)
        ear.room = self.room
        self.everyone.append(ear)
        self._subscribe(ear)

    @precondition(lambda self: self.room.members())
    @rule(data=st.data())
    def join_again(self, data: st.DataObject) -> None:
        self._subscribe(data.draw(st.sampled_from(self.room.members())))

    def _subscribe(self, ear: Ear) -> None:
        self.room.subscribe(ear)
        self.joining[ear] = None

    @precondition(lambda self: self.joining)
    @rule(data=st.data())
    def read_for_join(self, data: st.DataObject) -> None:
        ear = data.draw(st.sampled_from(list(self.joining)))
        if self.joining[ear] is None:
            self.joining[ear] = self.committed

    @precondition(lambda self: any(head is not None for head in self.joining.values()))
    @rule(data=st.data())
    def finish_join(self, data: st.DataObject) -> None:
        ready = [ear for ear, head in self.joining.items() if head is not None]
        self._admit(data.draw(st.sampled_from(ready)))

    def _admit(self, ear: Ear) -> None:
        head = self.joining.pop(ear)
        assert head is not None
        ear.join_at(head)
        self.room.admit(ear, head)

    @precondition(lambda self: self.joining)
    @rule(data=st.data())
    def fail_join(self, data: st.DataObject) -> None:
        ear = data.draw(st.sampled_from(list(self.joining)))
        del self.joining[ear]
        self.room.abandon(ear)

    @precondition(lambda self: self.room.members())
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.room.leave(data.draw(st.sampled_from(self.room.members())))

    @precondition(lambda self: self.read is None and self.room.incomplete)
    @rule()
    def begin_filling(self) -> None:
        after, through = self.room.missing()
        self.read = list(range(after + 1, min(through, self.committed) + 1))

    @precondition(lambda self: self.read is not None)
    @rule()
    def finish_filling(self) -> None:
        for seq in self.read or ():
            if self.room.wants(seq):
                self.room.offer(seq, frame(seq))
        self.read = None

    @precondition(lambda self: self.room.sent is not None)
    @rule()
    def sweep(self) -> None:
        self.room.head = max(self.room.head, self.committed)

    @invariant()
    def everybody_hears_in_order(self) -> None:
        assert all(ear.in_order for ear in self.everyone)

    @invariant()
    def nothing_is_kept_without_need(self) -> None:
        if self.room.sent is not None and not self.room.apart and not self.room.joining:
            assert all(seq > self.room.sent for seq in self.room.frames)

    def teardown(self) -> None:
        """In the end nobody misses anything."""
        for ear in list(self.joining):
            self.joining[ear] = self.committed
            self._admit(ear)
        if self.room.sent is None:
            return
        self.sweep()
        while self.room.incomplete:
            self.read = None
            self.begin_filling()
            self.finish_filling()
        self.everybody_hears_in_order()
        assert all(ear.last == self.committed for ear in self.room.members())


AnyOrder.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # chance for tests


class Log:
    """A message log with moods: slow, away, or behind by nothing."""

    def __init__(self, chance: random.Random, *, failures: float) -> None:
        self.heads: dict[UUID, int] = {}
        self._chance = chance
        self.failures = failures
        self.reads = 0

    async def _moody(self) -> None:
        for _ in range(self._chance.randrange(3)):
            await asyncio.sleep(0)
        if self._chance.random() < self.failures:
            raise Unavailable("away")

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[Message]:
        self.reads += 1
        found = range(after_seq + 1, min(through_seq, self.heads[conversation_id]) + 1)
        await self._moody()
        return [message(seq, conversation_id) for seq in found]

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        await self._moody()
        return {key: self.heads[key] for key in conversation_ids if key in self.heads}


def encode(message: Message) -> Frame:
    return frame(message.seq)


async def join(rooms: Rooms[Ear, Message], log: Log, ear: Ear) -> None:
    """As a socket does it: subscribe, read, admit."""
    rooms.subscribe(CONVERSATION, ear)
    head = log.heads[CONVERSATION]
    await asyncio.sleep(0)
    ear.join_at(head)
    rooms.admit(CONVERSATION, ear, head)


@given(seed=st.integers(0, 2**32), failures=st.sampled_from([0.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_registry_delivers_everything_although_publications_are_lost(
    seed: int, failures: float
) -> None:
    chance = seeded(seed)

    async def scenario() -> None:
        log = Log(chance, failures=failures)
        log.heads[CONVERSATION] = chance.randrange(5)
        rooms: Rooms[Ear, Message] = Rooms(log, encode, hole_seconds=0.001)
        ears = [Ear() for _ in range(chance.randint(1, 6))]
        joins: list[asyncio.Task[None]] = []
        for _ in range(60):
            action = chance.random()
            if action < 0.2 and len(joins) < len(ears):
                joins.append(asyncio.create_task(join(rooms, log, ears[len(joins)])))
            elif action < 0.8:
                log.heads[CONVERSATION] += 1
            if log.heads[CONVERSATION] and chance.random() < 0.7:
                recent = max(1, log.heads[CONVERSATION] - 2)
                rooms.publish(message(chance.randint(recent, log.heads[CONVERSATION])))
            await asyncio.sleep(0)
        await asyncio.gather(*joins)
        log.failures = 0
        await rooms.sweep()
        joined = ears[: len(joins)]
        for ear in joined:
            await ear.hears(log.heads[CONVERSATION])
        assert all(ear.in_order for ear in joined)
        await rooms.stop()

    rooms_module.RETRY_SECONDS, before = 0.001, rooms_module.RETRY_SECONDS
    try:
        asyncio.run(scenario())
    finally:
        rooms_module.RETRY_SECONDS = before


def test_two_first_joiners_with_different_heads() -> None:
    """The first read saw more than the second: the second's difference comes from Postgres."""

    async def scenario() -> None:
        log = Log(seeded(0), failures=0)
        log.heads[CONVERSATION] = 5
        rooms: Rooms[Ear, Message] = Rooms(log, encode, hole_seconds=0.001)
        early, late = Ear(), Ear()
        for ear, head in ((early, 5), (late, 2)):
            rooms.subscribe(CONVERSATION, ear)
            ear.join_at(head)
        rooms.admit(CONVERSATION, early, 5)
        rooms.admit(CONVERSATION, late, 2)
        log.heads[CONVERSATION] = 6
        rooms.publish(message(6))
        await late.hears(6)
        assert late.heard == [3, 4, 5, 6]
        assert early.heard == [6]
        await rooms.stop()

    asyncio.run(scenario())


@pytest.fixture
def quiet_rooms() -> Rooms[Ear, Message]:
    """Rooms where nothing is ever missing."""
    return Rooms(Log(seeded(0), failures=0), encode)


def seated(rooms: Rooms[Ear, Message], ear: Ear, *, head: int = 0) -> Ear:
    rooms.subscribe(CONVERSATION, ear)
    ear.join_at(head)
    rooms.admit(CONVERSATION, ear, head)
    return ear


def test_losing_sight_takes_effect_before_the_message(quiet_rooms: Rooms[Ear, Message]) -> None:
    """A message's own fact of the assignment is enough, though the assignment comes later."""
    agent, admin = seated(quiet_rooms, Ear(AGENT)), seated(quiet_rooms, Ear())
    quiet_rooms.learn(CONVERSATION, version=2, assigned_agent_id=AGENT)
    quiet_rooms.publish(message(1))
    quiet_rooms.learn(CONVERSATION, version=4, assigned_agent_id=COLLEAGUE)
    quiet_rooms.publish(message(2))
    quiet_rooms.learn(CONVERSATION, version=3, assigned_agent_id=COLLEAGUE)
    assert agent.heard == [1]
    assert agent.lost == [CONVERSATION]
    assert admin.heard == [1, 2]


def test_older_assignment_is_ignored(quiet_rooms: Rooms[Ear, Message]) -> None:
    agent = seated(quiet_rooms, Ear(AGENT))
    quiet_rooms.learn(CONVERSATION, version=9, assigned_agent_id=AGENT)
    quiet_rooms.learn(CONVERSATION, version=8, assigned_agent_id=COLLEAGUE)
    quiet_rooms.publish(message(1))
    assert agent.heard == [1]
    assert quiet_rooms.assigned_agent(CONVERSATION) == AGENT


def test_what_is_said_aside_reaches_who_is_joining(quiet_rooms: Rooms[Ear, Message]) -> None:
    """After its reply, since what it has read may be older; who joins later has read it."""
    seated(quiet_rooms, Ear())
    joining, late = Ear(), Ear()
    quiet_rooms.subscribe(CONVERSATION, joining)
    joining.join_at(0)
    quiet_rooms.broadcast(CONVERSATION, frame(77))
    assert joining.heard == []
    quiet_rooms.admit(CONVERSATION, joining, 0)
    assert joining.heard == [77]
    seated(quiet_rooms, late)
    assert late.heard == []


def test_closed_room_says_nothing_more(quiet_rooms: Rooms[Ear, Message]) -> None:
    ear = seated(quiet_rooms, Ear())
    assert quiet_rooms.close(CONVERSATION) == [ear]
    quiet_rooms.publish(message(1))
    assert ear.heard == []
    assert quiet_rooms.members(CONVERSATION) == []


def test_sweep_names_deleted_conversations() -> None:
    async def scenario() -> None:
        rooms: Rooms[Ear, Message] = Rooms(Log(seeded(0), failures=0), encode)
        seated(rooms, Ear())
        assert await rooms.sweep() == [CONVERSATION]

    asyncio.run(scenario())


def test_a_hung_join_does_not_keep_frames_without_bound() -> None:
    async def scenario() -> None:
        log = Log(seeded(0), failures=0)
        rooms: Rooms[Ear, Message] = Rooms(log, encode, hole_seconds=0.001)
        ear = Ear()
        rooms.subscribe(CONVERSATION, ear)
        count = rooms_module.MAX_KEPT_FRAMES * 2 + 10
        for seq in range(1, count + 1):
            rooms.publish(message(seq))
        log.heads[CONVERSATION] = count
        ear.join_at(0)
        rooms.admit(CONVERSATION, ear, 0)
        await ear.hears(count)
        assert ear.in_order
        await rooms.stop()

    asyncio.run(scenario())
