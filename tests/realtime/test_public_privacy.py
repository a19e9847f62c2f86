"""Whatever happens in the inbox, a visitor hears of its own conversation's public side only."""

import asyncio
import json
import random
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from messaging_server import events
from messaging_server.models import DeliveryStatus, Priority
from messaging_server.realtime.public_protocol import PUBLIC_PUSHES
from tests.realtime.public_world import (
    AGENT,
    AT,
    COLLEAGUE,
    INBOX,
    Client,
    Stage,
    World,
    settle,
    visitor,
)

OWN, FOREIGN = 1, 2
EVENTS = {str(kind.__struct_config__.tag) for kind in PUBLIC_PUSHES}
KEYS = {
    "top": {"id", "ok", "data", "error", "event", "conversationId", "seq"},
    "data": {
        *("lead", "conversationId", "expiresIn", "lastSeq", "messages", "reset"),
        *("message", "reason", "name"),
    },
    "lead": {"id", "name", "verified"},
    "sender": {"name"},
    "message": {
        *("id", "conversationId", "seq", "senderType", "sender", "contentType", "contentText"),
        *("mediaUrl", "attachments", "clientMessageId", "createdAt"),
    },
    "error": {"code", "message", "retryable"},
}
"""All that a visitor may ever be told, by where it stands."""

SECRETS = [
    *("PRIVATE", "SECRET", "FOREIGN", "@", "beatrice", "the-agents-own"),
    *("aiData", "summary", "priority", "tags", "version", "assignedAgent", "unreadCount"),
    *("presence", "viewing", "online", "userId", "email"),
    *(str(AGENT.id), str(COLLEAGUE.id), str(INBOX), str(visitor(FOREIGN).lead_id)),
]

steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("public", "public", "private", "lead", "assigned", "analysed", "updated"),
                *("read", "status", "renamed", "typing", "visitor types", "inbox", "presence"),
                *("join", "leave", "come back", "sweep", "start another", "erase foreign"),
            ]
        ),
        st.booleans(),  # in the own conversation, or in a foreign one
        st.sampled_from(["publish", "publish", "publish", "late", "lose"]),
    ),
    min_size=15,
    max_size=60,
)


def check_frame(frame: dict[str, Any], own: set[str]) -> None:
    """Within the own conversation, an allowed event, and nothing in it that is not known."""
    text = json.dumps(frame)
    for secret in SECRETS:
        assert secret not in text, frame
    assert set(frame) <= KEYS["top"], frame
    if "event" in frame:
        assert frame["event"] in EVENTS
        assert frame["event"] == "ping" or frame["conversationId"] in own
    for name, value in objects(frame):
        assert set(value) <= KEYS[name], (name, value)
        assert value.get("conversationId") in {*own, None}


def objects(value: Any, name: str = "top") -> list[tuple[str, dict[str, Any]]]:
    """Every object in `value`, with the field in which it stands."""
    if isinstance(value, list):
        return [found for item in value for found in objects(item, name.removesuffix("s"))]
    if not isinstance(value, dict):
        return []
    inner = [found for key, item in value.items() for found in objects(item, key)]
    return [(name, value), *inner]


class Play:
    """Feeds one sequence of steps to a stage."""

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self.stage = stage
        self.world = stage.world
        self.chance = chance
        self.late: list[events.Event] = []
        self.conversations: dict[bool, UUID] = {}
        for own in (True, False):
            self.start(own)
        self.own = {str(self.conversations[True])}
        self.clients = [stage.visitor(OWN), stage.visitor(OWN)]
        self.foreigner = stage.visitor(FOREIGN)
        self.agents = [stage.agent(), stage.agent("colleague")]

    def start(self, own: bool) -> None:
        lead = visitor(OWN if own else FOREIGN).lead_id
        self.conversations[own], fact = self.world.start(lead)
        self.stage.bus.publish(fact)

    def state(self, fact: events.Event, how: str) -> None:
        if how == "publish":
            self.stage.bus.publish(fact)
        elif how == "late":
            self.late.append(fact)
        if self.late and self.chance.random() < 0.3:
            self.stage.bus.publish(self.late.pop(self.chance.randrange(len(self.late))))

    async def step(self, what: str, own: bool, how: str) -> None:
        conversation_id = self.conversations[own]
        if what in ("public", "private", "lead"):
            author = None if what == "lead" else self.chance.choice([AGENT, COLLEAGUE])
            words = "hello" if own else "FOREIGN"
            text = f"PRIVATE {words}" if what == "private" else words
            fact = self.world.append(
                conversation_id, text, author=author, private=what == "private"
            )
            self.state(fact, how)
        elif (state := self.fact(what, conversation_id)) is not None:
            self.state(state, how)
        else:
            await self.act(what, own, conversation_id)

    def fact(self, what: str, conversation_id: UUID) -> events.Event | None:
        version = len(self.world.logs[conversation_id])
        match what:
            case "assigned":
                return events.ConversationAssigned(
                    conversation=self.world.conversation(conversation_id),
                    previous_agent_id=AGENT.id,
                    assigned_agent_id=COLLEAGUE.id,
                    version=version,
                )
            case "analysed":
                return events.AnalysisCompleted(
                    conversation_id=conversation_id,
                    summary="SECRET summary",
                    priority=Priority.HIGH,
                    tags=("SECRET tag",),
                    updated_at=AT,
                    version=version,
                )
            case "updated":
                return events.ConversationUpdated(conversation_id=conversation_id, version=version)
            case "read":
                return events.ConversationRead(
                    conversation_id=conversation_id, user_id=AGENT.id, seq=version
                )
            case "status":
                return events.MessageStatusChanged(
                    conversation_id=conversation_id,
                    message_id=conversation_id,
                    seq=1,
                    status=DeliveryStatus.FAILED,
                    error="SECRET error",
                )
            case "renamed":
                return events.LeadUpdated(
                    lead_id=self.world.leads[conversation_id], conversation_ids=(conversation_id,)
                )
        return None

    async def act(self, what: str, own: bool, conversation_id: UUID) -> None:
        realtime = self.stage.realtime
        match what:
            case "typing":
                await self.agent_types(str(conversation_id))
            case "inbox":
                await realtime.inbox.flush()
            case "presence":
                realtime.presence._quiet_until = 0
                realtime.presence.tick(realtime.sockets)
            case "sweep":
                await realtime.visitors.sweep()
            case "start another":
                self.start(own)
                if own:
                    self.own.add(str(self.conversations[True]))
            case "erase foreign":
                self.erase_foreign()
            case _:
                self.visit(what, own)

    def visit(self, what: str, own: bool) -> None:
        client = self.chance.choice(self.clients)
        match what:
            case "visitor types":
                (client if own else self.foreigner).say("typing:start")
            case "join":
                after = self.chance.choice([None, 0, 1, 1_000])
                asked = self.chance.choice([None, *map(str, self.conversations.values())])
                data = {"conversationId": asked, "afterSeq": after}
                client.say("conversation:join", {key: data[key] for key in data if data[key]})
                self.foreigner.say("conversation:join")
            case "leave":
                client.say("conversation:leave")
            case "come back":
                self.clients.append(self.stage.visitor(OWN))

    async def agent_types(self, conversation_id: str) -> None:
        agent = self.chance.choice(self.agents)
        agent.say("conversation:join", conversation_id)
        await settle(5)
        agent.say(self.chance.choice(["typing:start", "typing:stop"]), conversation_id)

    def erase_foreign(self) -> None:
        conversation_id = self.conversations[False]
        lead_id = self.world.leads.pop(conversation_id)
        del self.world.logs[conversation_id], self.world.newest[lead_id]
        self.late.clear()
        self.stage.bus.publish(
            events.ConversationsDeleted(
                conversation_ids=(conversation_id,), agent_ids=frozenset({AGENT.id})
            )
        )
        self.start(own=False)


@given(seed=st.integers(0, 2**32), script=steps)
@settings(max_examples=150, deadline=None)
def test_nothing_else_reaches_a_visitor(seed: int, script: list[tuple[str, bool, str]]) -> None:
    chance = random.Random(seed)  # noqa: S311  # for tests

    async def scenario() -> None:
        stage = Stage(World(chance))
        play = Play(stage, chance)
        for client in play.clients:
            client.say("conversation:join", {"afterSeq": 0})
        await settle(chance.randrange(20))
        for what, own, how in script:
            await play.step(what, own, how)
            await settle(chance.randrange(4))
        await settle()
        await stage.stop()
        for client in play.clients:
            check(client, play)

    def check(client: Client, play: Play) -> None:
        assert client.tape.code == 1012
        for frame in client.tape.frames:
            check_frame(frame, play.own)

    asyncio.run(scenario())


def test_the_check_finds_what_must_not_be() -> None:
    """The property above can fail: each of these frames would be found."""
    own = "01900000-0000-7000-8000-000000000001"
    good = {"event": "typing:start", "conversationId": own, "data": {"name": "Carl"}}
    check_frame(good, {own})
    bad: list[dict[str, Any]] = [
        {**good, "conversationId": str(INBOX)},
        {**good, "conversationId": None},
        {**good, "event": "conversation:updated"},
        {**good, "data": {"name": "Carl", "role": "ADMIN"}},
        {**good, "data": {"name": "carl@secret.example"}},
        {**good, "data": {"message": {"contentText": "PRIVATE"}}},
        {**good, "data": {"message": {"private": False}}},
        {**good, "data": {"messages": [{"status": "sent"}]}},
    ]
    for frame in bad:
        try:
            check_frame(frame, {own})
        except AssertionError:
            continue
        raise RuntimeError(f"not found: {frame}")
