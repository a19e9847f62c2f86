"""A visitor hears every public message once and in order, before and after there is a first one."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from messaging_server import events
from messaging_server.errors import Forbidden, Unavailable
from messaging_server.realtime import rooms as rooms_module
from messaging_server.realtime.sockets import Socket
from tests.realtime.public_world import AGENT, Client, Stage, World, settle, visitor

ME, SOMEBODY = 1, 2
LEAD = visitor(ME).lead_id


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  # chance for tests


def run(scenario: Callable[[Stage], Any], *, seed: int = 0, **realtime: Any) -> None:
    """`scenario` on a stage of its own."""

    async def play() -> None:
        stage = Stage(World(seeded(seed)), **realtime)
        await scenario(stage)
        await stage.stop()

    asyncio.run(play())


def heard(client: Client) -> list[tuple[str, int]]:
    """(conversation, number) of each message in the order of arrival, replies included."""
    found = []
    for frame in client.tape.frames:
        data = frame.get("data", {})
        messages = [data["message"]] if "message" in data else data.get("messages", [])
        if frame.get("event") == "message:new":
            assert frame["seq"] == data["message"]["seq"]
        found += [(message["conversationId"], message["seq"]) for message in messages]
    return found


async def hears(client: Client, expected: list[tuple[str, int]]) -> None:
    async with asyncio.timeout(20):
        while heard(client) != expected:  # noqa: ASYNC110  # a tape has no event to wait for
            await asyncio.sleep(0.001)


# --- Any interleaving -------------------------------------------------------------------------


class Visit:
    """Plays one interleaving; `clients` have asked for everything from the first message on."""

    def __init__(self, stage: Stage, chance: random.Random, *, facts_are_lost: bool) -> None:
        self.stage = stage
        self.facts_are_lost = facts_are_lost
        self.world = stage.world
        self.chance = chance
        self.late: list[events.Event] = []
        self.clients: list[Client] = []

    def step(self) -> None:
        action = self.chance.random()
        conversation_id = self.world.newest.get(LEAD)
        if action < 0.1 and len(self.clients) < 5:
            self.clients.append(self.stage.visitor(ME))
            self.clients[-1].say("conversation:join", {"afterSeq": 0})
        elif action < 0.15 and conversation_id is None:
            _, created = self.world.start(LEAD)
            self.state(created)
        elif action < 0.6 and conversation_id is not None:
            private = self.chance.random() < 0.4
            author = AGENT if private or self.chance.random() < 0.5 else None
            self.state(self.world.append(conversation_id, "x", author=author, private=private))
        elif action < 0.65:
            created_elsewhere = self.world.start(visitor(SOMEBODY).lead_id)[1]
            self.state(created_elsewhere)

    def state(self, fact: events.Event) -> None:
        """At once; or later, or never."""
        fate = self.chance.random()
        if fate < 0.6 or not self.facts_are_lost:
            self.stage.bus.publish(fact)
        elif fate < 0.8:
            self.late.append(fact)
        if self.late and self.chance.random() < 0.5:
            self.stage.bus.publish(self.late.pop(self.chance.randrange(len(self.late))))


@given(seed=st.integers(0, 2**32), failures=st.sampled_from([0.0, 0.3]))
@settings(max_examples=150, deadline=None)
def test_everything_arrives_although_facts_are_lost(seed: int, failures: float) -> None:
    chance = seeded(seed)

    async def scenario() -> None:
        stage = Stage(World(chance, failures=failures))
        visit = Visit(stage, chance, facts_are_lost=True)
        for _ in range(120):
            visit.step()
            await settle(chance.randrange(3))
        await settle()
        stage.world.failures = 0
        for client in visit.clients:
            if not joined(client):
                client.say("conversation:join", {"afterSeq": 0})
        await settle()
        for _ in range(2):  # what the clock does
            await stage.realtime.visitors.sweep()
            await settle()
        conversation_id = stage.world.newest.get(LEAD)
        head = stage.world.public_head(conversation_id) if conversation_id else 0
        for client in visit.clients:
            await hears(client, [(str(conversation_id), seq) for seq in range(1, head + 1)])
        await stage.stop()

    def joined(client: Client) -> bool:
        return any("lastSeq" in frame.get("data", {}) for frame in client.tape.frames)

    rooms_module.RETRY_SECONDS, before = 0.001, rooms_module.RETRY_SECONDS
    try:
        asyncio.run(scenario())
    finally:
        rooms_module.RETRY_SECONDS = before


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_nobody_waits_for_the_clock(seed: int) -> None:
    """Where no fact is lost, no comparison with Postgres is needed."""
    chance = seeded(seed)

    async def scenario(stage: Stage) -> None:
        visit = Visit(stage, chance, facts_are_lost=False)
        for _ in range(60):
            visit.step()
            await settle(chance.randrange(3))
        conversation_id = stage.world.newest.get(LEAD)
        head = stage.world.public_head(conversation_id) if conversation_id else 0
        for client in visit.clients:
            await hears(client, [(str(conversation_id), seq) for seq in range(1, head + 1)])

    run(scenario, seed=seed)


# --- The conversation comes, goes, or is another one ------------------------------------------


def test_the_first_message_is_heard_at_once() -> None:
    """Without waiting for a clock: the fact that there is a conversation is enough."""

    async def scenario(stage: Stage) -> None:
        devices = [stage.visitor(ME), stage.visitor(ME)]
        somebody = stage.visitor(SOMEBODY)
        for client in (*devices, somebody):
            client.say("conversation:join")
        await settle()
        assert devices[0].reply(2) == {
            "id": 2,
            "ok": True,
            "data": {"conversationId": None, "lastSeq": 0, "messages": [], "reset": False},
        }
        conversation_id, created = stage.world.start(LEAD)
        stage.bus.publish(created)
        stage.bus.publish(stage.world.append(conversation_id, "hello", author=None))
        await settle()
        for device in devices:
            assert heard(device) == [(str(conversation_id), 1)]
        assert heard(somebody) == []

    run(scenario)


@pytest.mark.parametrize("rounds", range(12))
def test_the_conversation_is_made_while_joining(rounds: int) -> None:
    """At whichever point of the join it comes into being."""

    async def scenario(stage: Stage) -> None:
        client = stage.visitor(ME)
        await settle()
        client.say("conversation:join", {"afterSeq": 0})
        for _ in range(rounds):
            await asyncio.sleep(0)
        conversation_id, created = stage.world.start(LEAD)
        stage.bus.publish(created)
        stage.bus.publish(stage.world.append(conversation_id, "hello", author=None))
        await hears(client, [(str(conversation_id), 1)])

    run(scenario, seed=rounds)


@pytest.mark.parametrize("rounds", range(20))
def test_the_first_message_while_the_room_is_entered(rounds: int) -> None:
    """At whichever point of it the message is committed and stated."""

    async def scenario(stage: Stage) -> None:
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        conversation_id, created = stage.world.start(LEAD)
        stage.bus.publish(created)
        for _ in range(rounds):
            await asyncio.sleep(0)
        stage.bus.publish(stage.world.append(conversation_id, "hello", author=None))
        await hears(client, [(str(conversation_id), 1)])

    for seed in range(5):
        run(scenario, seed=seed)


def test_another_conversation_takes_its_place() -> None:
    async def scenario(stage: Stage) -> None:
        first, _ = stage.world.start(LEAD)
        stage.world.append(first, "one", author=None)
        client = stage.visitor(ME)
        client.say("conversation:join", {"afterSeq": 0})
        await settle()
        second, created = stage.world.start(LEAD)
        for text in ("two", "three"):
            stage.world.append(second, text, author=None)
        stage.bus.publish(created)
        await settle()
        expected = [(str(first), 1), (str(second), 1), (str(second), 2)]
        assert heard(client) == expected
        (removed,) = client.events("conversation:removed")
        assert removed["conversationId"] == str(first)
        assert removed["data"] == {"reason": "replaced"}
        stage.bus.publish(stage.world.append(first, "not heard", author=AGENT))
        stage.bus.publish(stage.world.append(second, "four", author=AGENT))
        await hears(client, [*expected, (str(second), 3)])

    run(scenario)


def test_the_conversation_is_where_the_lead_writes() -> None:
    """Of two, which is the newest one may change without a new one."""

    async def scenario(stage: Stage) -> None:
        first, _ = stage.world.start(LEAD)
        second, _ = stage.world.start(LEAD)
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        stage.world.newest[LEAD] = first
        stage.bus.publish(stage.world.append(first, "here I am", author=None))
        await hears(client, [(str(first), 1)])
        (removed,) = client.events("conversation:removed")
        assert removed["conversationId"] == str(second)

    run(scenario)


def test_many_facts_while_postgres_hangs() -> None:
    """They are looked into once, and the socket is not taken for a flooding one."""

    async def scenario(stage: Stage) -> None:
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        directory, answering, reads = stage.realtime.visitors.directory, asyncio.Event(), 0
        really = directory.open_visitor_conversation

        async def hanging(*given: Any, **named: Any) -> Any:
            nonlocal reads
            reads += 1
            await answering.wait()
            return await really(*given, **named)

        directory.open_visitor_conversation = hanging  # type: ignore[method-assign]
        for _ in range(1_000):
            stage.bus.publish(events.LeadUpdated(lead_id=LEAD, conversation_ids=()))
            await asyncio.sleep(0)
        conversation_id, created = stage.world.start(LEAD)
        stage.world.append(conversation_id, "hello", author=None)
        stage.bus.publish(created)
        answering.set()
        await hears(client, [(str(conversation_id), 1)])
        assert client.tape.code is None
        assert reads < 10

    run(scenario)


def test_a_deleted_conversation() -> None:
    async def scenario(stage: Stage) -> None:
        first, _ = stage.world.start(LEAD)
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        del stage.world.logs[first], stage.world.newest[LEAD]
        stage.bus.publish(events.ConversationsDeleted(conversation_ids=(first,)))
        (removed,) = client.events("conversation:removed")
        assert removed["data"] == {"reason": "deleted"}
        assert client.tape.code is None
        second, created = stage.world.start(LEAD)
        stage.world.append(second, "again", author=None)
        stage.bus.publish(created)
        await hears(client, [(str(second), 1)])

    run(scenario)


def test_a_deletion_that_nobody_stated_is_found() -> None:
    async def scenario(stage: Stage) -> None:
        first, _ = stage.world.start(LEAD)
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        del stage.world.logs[first], stage.world.newest[LEAD]
        await stage.realtime.visitors.sweep()
        await settle()
        assert [each["data"]["reason"] for each in client.events("conversation:removed")] == [
            "deleted"
        ]

    run(scenario)


def test_a_long_conversation_that_is_suddenly_the_own_one() -> None:
    """More than a join would bring: all of it comes, in order."""

    async def scenario(stage: Stage) -> None:
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        conversation_id, created = stage.world.start(LEAD)
        for number in range(900):
            stage.world.append(conversation_id, str(number), author=AGENT, private=number % 3 == 0)
        stage.bus.publish(created)
        await hears(client, [(str(conversation_id), seq) for seq in range(1, 601)])

    run(scenario)


def test_leaving_ends_it_also_before_the_first_message() -> None:
    async def scenario(stage: Stage) -> None:
        client = stage.visitor(ME)
        client.say("conversation:join")
        client.say("conversation:leave")
        await settle()
        conversation_id, created = stage.world.start(LEAD)
        stage.bus.publish(created)
        stage.bus.publish(stage.world.append(conversation_id, "hello", author=None))
        await settle()
        await stage.realtime.visitors.sweep()
        await settle()
        assert heard(client) == []
        assert conversation_id not in stage.realtime.public_rooms

    run(scenario)


def test_a_failed_join_leaves_the_socket_where_it_was() -> None:
    async def scenario(stage: Stage) -> None:
        conversation_id, _ = stage.world.start(LEAD)
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        stage.world.failures = 1
        failed = client.say("conversation:join", {"afterSeq": 0})
        await settle()
        reply = client.reply(failed)
        assert reply is not None
        assert reply["error"]["code"] == "unavailable"
        assert reply["error"]["retryable"]
        stage.world.failures = 0
        stage.bus.publish(stage.world.append(conversation_id, "hello", author=None))
        await settle()
        assert heard(client) == [(str(conversation_id), 1)]

    run(scenario)


def test_marks_are_about_the_conversation_that_is_heard() -> None:
    """Also while another one has just become the visitor's, of which no fact has come yet."""

    async def scenario(stage: Stage) -> None:
        first, _ = stage.world.start(LEAD)
        client = stage.visitor(ME)
        client.say("conversation:join")
        await settle()
        stage.world.start(LEAD)
        client.say("message:seen", {"seq": 7})
        await settle()
        assert stage.world.marks == [("read", first, 7)]

    run(scenario)


# --- The ends of sockets ----------------------------------------------------------------------


def test_a_lost_visitor_is_sent_away_also_while_it_says_who_it_is() -> None:
    """A session that ended while its token was being checked does not get in."""

    async def scenario(stage: Stage) -> None:
        domain = stage.realtime.visitors.directory
        let_through = asyncio.Event()
        checks = 0
        really = domain.authenticate_visitor

        async def slowly(token: str, headers: Any) -> Any:
            nonlocal checks
            checks += 1
            found = await really(token, headers)
            await let_through.wait()
            if checks > 1:
                raise Forbidden("gone")
            return found

        domain.authenticate_visitor = slowly  # type: ignore[method-assign]
        client = stage.visitor(ME)
        await settle()
        stage.bus.publish(events.VisitorLost(lead_ids=frozenset({LEAD})))
        let_through.set()
        await settle()
        assert client.tape.code == 4403
        assert checks == 2

    run(scenario)


def test_a_user_who_is_renamed_while_it_says_who_it_is_has_the_new_name() -> None:
    async def scenario(stage: Stage) -> None:
        domain = stage.realtime.sockets.directory
        let_through = asyncio.Event()
        really, names = domain.authenticate, iter(("Old", "New"))

        async def slowly(token: str) -> Any:
            found = await really(token)
            caller = structs.replace(found.caller, name=next(names))
            await let_through.wait()
            return structs.replace(found, caller=caller)

        domain.authenticate = slowly  # type: ignore[method-assign]
        client = stage.agent()
        await settle()
        stage.bus.publish(events.UserRenamed(user_id=AGENT.id, name="New"))
        let_through.set()
        await settle()
        assert [frame["data"]["user"]["name"] for frame in client.tape.frames] == ["New"]
        assert isinstance(client.socket, Socket)
        assert client.socket.typist.name == "New"

    run(scenario)


def test_commands_behind_an_auth_that_could_not_be_checked() -> None:
    """They are told so too; the socket ends as when the database is away, not as a bad token."""

    async def scenario(stage: Stage) -> None:
        async def away(*_: Any) -> None:
            raise Unavailable("away")

        stage.realtime.sockets.directory.authenticate = away  # type: ignore[method-assign, assignment]
        stage.realtime.visitors.directory.authenticate_visitor = away  # type: ignore[method-assign, assignment]
        for client in (stage.agent(), stage.visitor(ME)):
            joined = client.say("conversation:join", "01900000-0000-7000-8000-00000000dead")
            await settle()
            reply = client.reply(joined)
            assert reply is not None
            assert reply["error"]["code"] == "unavailable"
            assert client.tape.code is None
            client.socket.tick(time.monotonic() + 60)
            assert client.tape.code == 4001

    run(scenario)


def test_a_lost_visitor_is_sent_away() -> None:
    async def scenario(stage: Stage) -> None:
        clients = [stage.visitor(ME), stage.visitor(ME), stage.visitor(SOMEBODY)]
        clients[0].say("conversation:join")
        await settle()
        stage.bus.publish(events.VisitorLost(lead_ids=frozenset({LEAD})))
        assert [client.tape.code for client in clients] == [4401, 4401, None]

    run(scenario)


def test_sockets_of_one_address() -> None:
    async def scenario(stage: Stage) -> None:
        clients = [stage.visitor(number, "10.0.0.1") for number in range(4)]
        elsewhere = stage.visitor(9, "10.0.0.2")
        await settle()
        assert [client.tape.code for client in clients] == [None, None, None, 4409]
        assert elsewhere.tape.code is None
        clients[0].socket.disconnected(1000)
        again = stage.visitor(5, "10.0.0.1")
        await settle()
        assert again.tape.code is None
        assert stage.realtime.visitors.count == 4

    run(scenario, visitor_sockets_per_address=3)


def test_sockets_of_one_ipv6_network() -> None:
    """A subscriber has all addresses of a /64."""

    async def scenario(stage: Stage) -> None:
        clients = [stage.visitor(number, f"2001:db8:1:1:{number}::1") for number in range(4)]
        elsewhere = stage.visitor(9, "2001:db8:1:2::1")
        await settle()
        assert [client.tape.code for client in clients] == [None, None, None, 4409]
        assert elsewhere.tape.code is None

    run(scenario, visitor_sockets_per_address=3)


def test_nothing_is_kept_of_sockets_that_have_gone() -> None:
    async def scenario(stage: Stage) -> None:
        conversation_id, _ = stage.world.start(LEAD)
        clients = [stage.visitor(number % 3) for number in range(9)]
        for client in clients:
            client.say("conversation:join")
            client.say("typing:start")
        await settle(stage.world.chance.randrange(40))
        for client in clients:
            client.socket.disconnected(1000)
        await settle()
        visitors = stage.realtime.visitors
        assert not visitors.authenticated()
        assert visitors.count == 0
        assert visitors._by_network == {}
        assert stage.realtime.typists._until == {}
        assert conversation_id not in stage.realtime.public_rooms

    for seed in range(30):
        run(scenario, seed=seed)


def test_a_mark_may_fail_without_harm() -> None:
    async def scenario(stage: Stage) -> None:
        conversation_id, _ = stage.world.start(LEAD)
        client = stage.visitor(ME)
        await settle()

        async def away(*_: Any, **__: Any) -> None:
            raise Unavailable("away")

        stage.realtime.visitors.directory.mark_delivered = away  # type: ignore[method-assign]
        failed = client.say("message:delivered", {"seq": 1})
        done = client.say("message:seen", {"seq": 1})
        await settle()
        reply = client.reply(failed)
        assert reply is not None
        assert reply["error"]["code"] == "unavailable"
        assert client.reply(done) == {"id": done, "ok": True, "data": {}}
        assert stage.world.marks == [("read", conversation_id, 1)]

    run(scenario)


def test_resuming_marks_what_the_client_has() -> None:
    """But nothing that does not exist."""

    async def scenario(stage: Stage) -> None:
        conversation_id, _ = stage.world.start(LEAD)
        for _ in range(3):
            stage.world.append(conversation_id, "x", author=AGENT)
        client = stage.visitor(ME)
        for after in (0, 2, 1_000):
            client.say("conversation:join", {"afterSeq": after})
        await settle()
        assert stage.world.marks == [
            ("delivered", conversation_id, 2),
            ("delivered", conversation_id, 3),
        ]

    run(scenario)
