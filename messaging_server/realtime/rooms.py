"""Rooms: every member of a conversation hears each message once and in order.

A `Room` knows no sockets, no database and no time: it is told what was published, joined and
read, and sends. `Rooms` owns the rooms of one process and reads from Postgres what a room says
is missing. Postgres is the truth; a publication may be late, doubled, out of order or lost.

Another audience (visitors, who see less) is a second `Rooms` with its own `encode`.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from loguru import logger
from prometheus_client import Counter

from messaging_server import metrics
from messaging_server.errors import Unavailable
from messaging_server.realtime.protocol import Frame

HOLE_SECONDS = 0.05
RETRY_SECONDS = 0.1
MAX_RETRY_SECONDS = 5.0
MESSAGES_PER_READ = 500
MAX_KEPT_FRAMES = 2_000
MAX_SIGHTINGS = 10_000


class Member(Protocol):
    """Somebody in a room. Neither call may raise, block or await."""

    def send(self, frame: Frame) -> None: ...

    def send_best_effort(self, frame: Frame) -> None: ...

    def may_see(self, assigned_agent_id: UUID | None) -> bool:
        """Whether a conversation assigned so is visible to this member."""

    def lose(self, conversation_id: UUID) -> None:
        """The member is no longer in the room, because it may not see the conversation."""


class Numbered(Protocol):
    """A message as an audience sees it, with its number among those that the audience sees."""

    @property
    def conversation_id(self) -> UUID: ...

    @property
    def seq(self) -> int: ...


M = TypeVar("M", bound=Member)
N = TypeVar("N", bound=Numbered)
N_co = TypeVar("N_co", bound=Numbered, covariant=True)


class MessageLog(Protocol[N_co]):
    """What rooms read from Postgres; both raise `Unavailable` when it is away."""

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[N_co]:
        """The messages of the range, oldest first."""

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        """The last `seq` by conversation; deleted ones are missing."""


class Room(Generic[M]):
    """One conversation: what has been sent, what is known beyond it, how far each member is.

    A member is in one of three places: `live`, who has heard exactly what was sent; `apart`,
    who stands at another number, behind or ahead, and meets the room there; `joining`, whose
    read is under way and who hears nothing yet. A member's number only grows, by one, with the
    message of that number: that is the whole guarantee.
    """

    __slots__ = (
        "apart",
        "aside",
        "conversation_id",
        "filling",
        "frames",
        "head",
        "joining",
        "live",
        "sent",
    )

    def __init__(self, conversation_id: UUID) -> None:
        self.conversation_id = conversation_id
        self.sent: int | None = None  # unknown until the first join has read it
        self.head = 0  # the highest number known to be committed
        self.live: dict[M, None] = {}
        self.apart: dict[M, int] = {}
        self.joining: dict[M, int | None] = {}  # where to go back to if the read fails
        self.frames: dict[int, Frame] = {}  # ahead of `sent`, or behind while somebody needs them
        self.aside: list[Frame] = []  # said outside of the sequence while somebody is joining
        self.filling: asyncio.Task[None] | None = None

    @property
    def empty(self) -> bool:
        return not (self.live or self.apart or self.joining)

    @property
    def incomplete(self) -> bool:
        """Whether a message is missing that is known to exist."""
        if self.sent is None:
            return False
        return self.head > self.sent or any(at < self.sent for at in self.apart.values())

    def members(self) -> list[M]:
        """Those who have joined."""
        return [*self.live, *self.apart]

    def subscribe(self, member: M) -> None:
        """A join begins: from now on nothing is forgotten that it may need."""
        position = self.sent if member in self.live else self.apart.get(member)
        self.leave(member)
        self.joining[member] = position

    def admit(self, member: M, position: int) -> None:
        """A join has read everything through `position`: go on from there, unless it has left."""
        if member not in self.joining:
            return
        del self.joining[member]
        aside = tuple(self.aside)
        self.head = max(self.head, position)
        if self.sent is None:
            self.sent = position
        self.apart[member] = position
        self._pump()
        for frame in aside:
            member.send(frame)

    def abandon(self, member: M) -> None:
        """A join failed: a first one leaves, a repeated one goes on where it was."""
        position = self.joining.get(member)
        if position is None:
            self.leave(member)
        else:
            self.admit(member, position)

    def leave(self, member: M) -> None:
        self.live.pop(member, None)
        self.apart.pop(member, None)
        self.joining.pop(member, None)
        self._forget()

    def say_aside(self, frame: Frame) -> None:
        """Outside of the sequence; who is joining may have read what was before it."""
        members = self.members()
        for member in members:
            member.send(frame)
        count_deliveries(frame, len(members))
        if self.joining and len(self.aside) < MAX_KEPT_FRAMES:
            self.aside.append(frame)

    def wants(self, seq: int) -> bool:
        """Whether the frame of this number is of any use."""
        if seq in self.frames:
            return False
        return self.sent is None or seq > self.sent or bool(self.apart or self.joining)

    def offer(self, seq: int, frame: Frame) -> None:
        """A message has been committed; late, early or doubled is all the same.

        Of too many frames none is kept: what is missing then is read again.
        """
        if len(self.frames) >= MAX_KEPT_FRAMES:
            self.frames.clear()
        self.frames[seq] = frame
        self.head = max(self.head, seq)
        self._pump()

    def missing(self) -> tuple[int, int]:
        """What to read: everything after the first number, through the second."""
        assert self.sent is not None
        lowest = min([self.sent, *self.apart.values()])
        return lowest, min(max(self.head, self.sent), lowest + MESSAGES_PER_READ)

    def _pump(self) -> None:
        """Send all that is in sequence; `send` may close a member, which then leaves."""
        if self.sent is None:
            return
        self._meet()
        while (frame := self.frames.get(self.sent + 1)) is not None:
            self.sent += 1
            for member in tuple(self.live):
                member.send(frame)
            count_deliveries(frame, len(self.live))
            self._meet()
        self._forget()

    def _meet(self) -> None:
        """Bring those apart forward as far as the frames reach, but not beyond the room."""
        assert self.sent is not None
        for member, position in list(self.apart.items()):
            while position < self.sent and (frame := self.frames.get(position + 1)) is not None:
                position += 1
                member.send(frame)
                count_deliveries(frame, 1)
            if member not in self.apart:
                continue
            if position == self.sent:
                del self.apart[member]
                self.live[member] = None
            else:
                self.apart[member] = position

    def _forget(self) -> None:
        """Drop the frames that nobody needs."""
        if not self.joining:
            self.aside.clear()
        if self.frames and not self.joining and self.sent is not None:
            lowest = min([self.sent, *self.apart.values()])
            for seq in [seq for seq in self.frames if seq <= lowest]:
                del self.frames[seq]


class Rooms(Generic[M, N]):
    """The rooms of one audience in this process, and the tasks that fill their holes."""

    def __init__(
        self,
        log: MessageLog[N],
        encode: Callable[[N], Frame],
        *,
        hole_seconds: float = HOLE_SECONDS,
    ) -> None:
        self._log = log
        self._encode = encode
        self._hole_seconds = hole_seconds
        self._rooms: dict[UUID, Room[M]] = {}
        self._sightings: dict[UUID, tuple[int, UUID | None]] = {}

    async def stop(self) -> None:
        filling = [room.filling for room in self._rooms.values() if room.filling]
        self._rooms.clear()
        for task in filling:
            task.cancel()
        await asyncio.gather(*filling, return_exceptions=True)

    # Who is where

    def __contains__(self, conversation_id: UUID) -> bool:
        """Whether anybody is in the conversation's room, or on the way into it."""
        return conversation_id in self._rooms

    def members(self, conversation_id: UUID) -> list[M]:
        room = self._rooms.get(conversation_id)
        return room.members() if room else []

    def subscribe(self, conversation_id: UUID, member: M) -> None:
        """A join begins; `admit`, `abandon` or `leave` ends it."""
        room = self._rooms.get(conversation_id)
        if room is None:
            room = self._rooms[conversation_id] = Room(conversation_id)
            metrics.ROOMS.inc()
        room.subscribe(member)

    def admit(self, conversation_id: UUID, member: M, position: int) -> None:
        """The read of a join, done after `subscribe`, covers everything through `position`."""
        room = self._rooms.get(conversation_id)
        if room is not None:
            room.admit(member, position)
            self._settle(room)

    def abandon(self, conversation_id: UUID, member: M) -> None:
        room = self._rooms.get(conversation_id)
        if room is not None:
            room.abandon(member)
            self._settle(room)

    def leave(self, conversation_id: UUID, member: M) -> None:
        room = self._rooms.get(conversation_id)
        if room is not None:
            room.leave(member)
            self._settle(room)

    def close(self, conversation_id: UUID) -> list[M]:
        """The conversation is gone: end its room; returns who was in it."""
        room = self._rooms.get(conversation_id)
        if room is None:
            return []
        members = room.members()
        for member in [*members, *room.joining]:
            room.leave(member)
        self._settle(room)
        return members

    def learn(
        self, conversation_id: UUID, *, version: int, assigned_agent_id: UUID | None
    ) -> list[M]:
        """An assignment as of `version`; older than what is known, it is ignored.

        Members who may not see the conversation any more leave at once, are told so, and are
        returned.
        """
        known = self._sightings.get(conversation_id)
        if known is not None and known[0] >= version:
            return []
        self._sightings.pop(conversation_id, None)
        self._sightings[conversation_id] = (version, assigned_agent_id)
        if len(self._sightings) > MAX_SIGHTINGS:
            del self._sightings[next(iter(self._sightings))]
        if known is not None and known[1] == assigned_agent_id:
            return []
        members = self.members(conversation_id)
        losers = [member for member in members if not member.may_see(assigned_agent_id)]
        for member in losers:
            self.leave(conversation_id, member)
            member.lose(conversation_id)
        return losers

    def assigned_agent(self, conversation_id: UUID) -> UUID | None:
        """Who has the conversation by the newest fact that `learn` was told."""
        sighting = self._sightings.get(conversation_id)
        return sighting[1] if sighting else None

    # What is said

    def publish(self, message: N) -> None:
        """A message has been committed; may come late, doubled, out of order or never."""
        room = self._rooms.get(message.conversation_id)
        if room is not None and room.wants(message.seq):
            room.offer(message.seq, self._encode(message))
            self._settle(room)

    def extend(self, conversation_id: UUID, head: int) -> None:
        """Postgres has messages through `head`: what of them was not published is read."""
        room = self._rooms.get(conversation_id)
        if room is not None:
            room.head = max(room.head, head)
            self._settle(room)

    def broadcast(self, conversation_id: UUID, frame: Frame) -> None:
        """Outside of the sequence, to all members, and to those who are joining once they have."""
        room = self._rooms.get(conversation_id)
        if room is not None:
            room.say_aside(frame)

    def hint(self, conversation_id: UUID, frame: Frame, *, sender: object = None) -> None:
        """Best effort, to all members but the sender."""
        members = [each for each in self.members(conversation_id) if each is not sender]
        for member in members:
            member.send_best_effort(frame)
        count_deliveries(frame, len(members))

    async def sweep(self) -> list[UUID]:
        """Compare every room with Postgres: finds what was never published.

        Returns the conversations that have been deleted; their rooms are still there.
        """
        rooms = {key: room for key, room in self._rooms.items() if room.sent is not None}
        if not rooms:
            return []
        heads = await self._log.fetch_heads(list(rooms))
        for conversation_id, head in heads.items():
            self.extend(conversation_id, head)
        return [key for key in rooms if key not in heads]

    def _settle(self, room: Room[M]) -> None:
        """After any change: end an empty room, fill an incomplete one."""
        if self._rooms.get(room.conversation_id) is not room:
            return
        if room.empty:
            del self._rooms[room.conversation_id]
            metrics.ROOMS.dec()
            if room.filling is not None:
                room.filling.cancel()
        elif room.incomplete and room.filling is None:
            room.filling = asyncio.create_task(self._fill(room))

    async def _fill(self, room: Room[M]) -> None:
        """Read what is missing until nothing is; the first wait lets late publications come."""
        delay = self._hole_seconds
        failures = 0
        try:
            while True:
                await asyncio.sleep(delay)
                if not room.incomplete:
                    return
                if await self._read(room):
                    failures, delay = 0, self._hole_seconds
                else:
                    delay = backoff(failures)
                    failures += 1
        finally:
            room.filling = None

    async def _read(self, room: Room[M]) -> bool:
        """Whether the read brought anything; what fails is tried again."""
        after, through = room.missing()
        try:
            messages = await self._log.fetch_messages(
                room.conversation_id, after_seq=after, through_seq=through
            )
        except Unavailable:
            return False
        except Exception:  # noqa: BLE001  # the room must not stay behind because of a defect
            logger.exception("A room could not read its messages")
            return False
        wanted = [message for message in messages if room.wants(message.seq)]
        for message in wanted:
            room.offer(message.seq, self._encode(message))
        metrics.HOLES_FILLED.inc(len(wanted))
        return bool(wanted)


def backoff(failures: int) -> float:
    """Seconds to wait after this many failures before; half of it is chance."""
    longest = min(MAX_RETRY_SECONDS, RETRY_SECONDS * 2.0 ** min(failures, 10))
    return longest * random.uniform(0.5, 1)  # noqa: S311  # spreads load, keeps no secret


_counters: dict[str, Counter] = {}


def count_deliveries(frame: Frame, sockets: int) -> None:
    counter = _counters.get(frame.event)
    if counter is None:
        counter = _counters[frame.event] = metrics.DELIVERIES.labels(frame.event)
    counter.inc(sockets)
