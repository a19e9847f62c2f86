"""Slow sockets get the newest state later, and nobody hears anything twice for their sake."""

import asyncio
from collections.abc import Sequence
from typing import cast
from uuid import UUID, uuid4

import msgspec
import pytest

from messaging_server.errors import Unavailable
from messaging_server.models import Caller, Conversation, Lead, Role, Source, Status
from messaging_server.realtime.inbox import Inbox
from messaging_server.realtime.protocol import Frame
from messaging_server.realtime.sockets import Sockets

NOW = "2026-01-31T12:00:00.000Z"
UPDATED, ASSIGNED = "conversation:updated", "conversation:assigned"


class FakeSocket:
    def __init__(self) -> None:
        self.full = False
        self.closed = False
        self.heard: list[tuple[str, int]] = []

    def send(self, frame: Frame) -> None:
        shown = msgspec.json.decode(frame.data[frame.data.index(b"{") :])
        self.heard.append((shown["event"], shown["version"]))


class World:
    """Two users, an ADMIN with two sockets and an agent with one; conversations by version."""

    def __init__(self) -> None:
        self.admin, self.agent = (
            Caller(id=uuid4(), email=f"{role}@example.com", name=None, role=role) for role in Role
        )
        self.healthy, self.slow, self.agents = FakeSocket(), FakeSocket(), FakeSocket()
        self.owned = {self.admin.id: [self.healthy, self.slow], self.agent.id: [self.agents]}
        self.versions: dict[UUID, int] = {}
        self.reads = 0
        self.is_away = False
        self.inbox = Inbox(self, cast("Sockets", self))

    count = 3

    def callers(self) -> list[Caller]:
        return [self.admin, self.agent]

    def of_owner(self, user_id: UUID) -> list[FakeSocket]:
        return list(self.owned[user_id])

    async def fetch_views(
        self, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
    ) -> list[tuple[UUID, Conversation]]:
        self.reads += 1
        if self.is_away:
            raise Unavailable("away")
        return [
            (caller.id, shown)
            for shown in map(self._conversation, conversation_ids)
            for caller in callers
        ]

    def _conversation(self, conversation_id: UUID) -> Conversation:
        lead = Lead(
            id=uuid4(), name="Ana", email=None, phone=None, attributes={},
            created_at=NOW, updated_at=NOW,
        )  # fmt: skip
        return Conversation(
            id=conversation_id, inbox_id=None, lead=lead,
            assigned_agent=None, status=Status.OPEN, priority=None, priority_source=Source.AI,
            tags=(), tags_source=Source.AI, summary=None, ai=None, last_message=None, last_seq=0,
            waiting_since=None, snoozed_until=None, created_at=NOW, updated_at=NOW,
            version=self.versions[conversation_id], unread_count=0, urgency=None,
        )  # fmt: skip

    def change(self, conversation_id: UUID) -> None:
        self.versions[conversation_id] = self.versions.get(conversation_id, 0) + 1
        self.inbox.changed(conversation_id)

    def flush(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            asyncio.run(self.inbox.flush())


@pytest.fixture
def world() -> World:
    return World()


def test_a_slow_socket_costs_the_others_nothing(world: World) -> None:
    first, second = uuid4(), uuid4()
    world.slow.full = True
    world.change(first)
    world.flush(rounds=5)
    world.change(second)
    world.flush(rounds=5)
    assert world.healthy.heard == world.agents.heard == [(UPDATED, 1)] * 2
    assert world.slow.heard == []
    assert world.reads == 2
    world.slow.full = False
    world.flush(rounds=3)
    assert world.slow.heard == [(UPDATED, 1)] * 2
    assert len(world.healthy.heard) == 2
    assert world.reads == 3


def test_it_gets_the_newest_state_once(world: World) -> None:
    conversation_id = uuid4()
    world.slow.full = True
    for _ in range(4):
        world.change(conversation_id)
        world.flush()
    world.slow.full = False
    world.change(conversation_id)
    world.flush(rounds=3)
    assert world.slow.heard == [(UPDATED, 5)]
    assert world.healthy.heard == [(UPDATED, version) for version in range(1, 6)]


def test_what_was_gained_is_still_said(world: World) -> None:
    conversation_id = uuid4()
    world.slow.full = True
    world.versions[conversation_id] = 1
    world.inbox.gained(conversation_id, world.admin.id)
    world.flush(rounds=2)
    world.change(conversation_id)
    world.flush(rounds=2)
    world.slow.full = False
    world.flush()
    assert world.healthy.heard == [(ASSIGNED, 1), (UPDATED, 2)]
    assert world.agents.heard == [(UPDATED, 1), (UPDATED, 2)]
    assert world.slow.heard == [(ASSIGNED, 2)]


def test_nothing_is_lost_while_the_database_is_away(world: World) -> None:
    first, second = uuid4(), uuid4()
    world.slow.full = True
    world.change(first)
    world.flush()
    world.slow.full, world.is_away = False, True
    world.change(second)
    for _ in range(2):
        with pytest.raises(Unavailable):
            world.flush()
    world.is_away = False
    world.flush(rounds=2)
    assert world.healthy.heard == [(UPDATED, 1)] * 2
    assert world.slow.heard == [(UPDATED, 1)] * 2


def test_what_a_closed_socket_missed_is_forgotten(world: World) -> None:
    world.slow.full = True
    world.change(uuid4())
    world.flush()
    world.slow.closed = True
    world.owned[world.admin.id].remove(world.slow)
    world.flush(rounds=3)
    assert world.slow.heard == []
    assert len(world.healthy.heard) == 1
    assert not world.inbox._missed
