"""Many change, read and write one conversation at the same moment."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from messaging_server import database as database_module
from messaging_server.conversations.append_queries import append_message
from messaging_server.conversations.service import (
    ConversationChanges,
    assign_conversation,
    mark_read,
    update_conversation,
)
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.models import Caller, Priority, Role
from messaging_server.security import Links
from tests.conftest import SECRET
from tests.conversations.conftest import DEBOUNCE, Inbox

pytestmark = pytest.mark.anyio

ROUNDS = 96
READERS = 60


async def insert_user(reader: asyncpg.Connection, name: str, role: Role) -> Caller:
    user_id = await reader.fetchval(
        "insert into users (email, password_hash, role) values ($1, 'x', $2) returning id",
        f"{name}@example.com",
        role,
    )
    return Caller(id=user_id, email=f"{name}@example.com", name=None, role=role)


async def test_nobody_waits_for_whom_they_hold_up(
    inbox: Inbox, module_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First marks of readers hold key-share locks while others change the conversation."""
    monkeypatch.setattr(database_module, "DEADLOCK_ATTEMPTS", 1)
    database = Database(module_dsn, pool_size=12, bus=Bus(), links=Links(SECRET, public_url=""))
    await database.start()
    admin = await insert_user(inbox.reader, "admin", Role.ADMIN)
    readers = [await insert_user(inbox.reader, f"r{n}", Role.ADMIN) for n in range(READERS)]

    async def patch(conversation_id: UUID, turn: int) -> None:
        priority = Priority.HIGH if turn % 2 else Priority.LOW
        changes = ConversationChanges(priority=priority)
        await update_conversation(database, admin, conversation_id, changes)

    async def assign(conversation_id: UUID, turn: int) -> None:
        agent_id = admin.id if turn % 2 else None
        await assign_conversation(database, admin, conversation_id, agent_id)

    async def append(conversation_id: UUID, _turn: int) -> None:
        await append_message(database, inbox.draft(conversation_id), DEBOUNCE)

    async def read(conversation_id: UUID, turn: int) -> None:
        await mark_read(database, readers[turn % READERS], conversation_id, 1)

    async def repeat(
        call: Callable[[UUID, int], Coroutine[Any, Any, None]], conversation_ids: list[UUID]
    ) -> None:
        for turn in range(ROUNDS):
            await call(conversation_ids[turn * len(conversation_ids) // ROUNDS], turn)

    try:
        conversation_ids = await inbox.conversations(12)
        calls = [patch, patch, patch, assign, assign, append, append, append, read, read]
        await asyncio.gather(*(repeat(call, conversation_ids) for call in calls))
        for conversation_id in conversation_ids:
            assert len(await inbox.texts(conversation_id)) == 3 * ROUNDS // 12
    finally:
        await database.stop()
