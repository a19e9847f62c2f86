"""Everybody locks in the same order, so that nobody waits for whom they hold up.

Somebody else holds what comes first. What is tested waits for it, and must not yet hold what
comes later: the other one locks that too, without waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID, uuid4

import asyncpg
import pytest

from messaging_server.analysis.ledger_queries import NewEntry, insert_entry
from messaging_server.analysis.queries import claim_due
from messaging_server.analysis.spending import Budget
from messaging_server.conversations.append_queries import REPLY, Draft, append_messages
from messaging_server.conversations.queries import wake_snoozed
from messaging_server.conversations.visitor_queries import update_delivery_through
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.inboxes.queries import delete_inbox, insert_api_key, insert_inbox
from messaging_server.leads.queries import Erased, delete_lead
from messaging_server.models import (
    ContentType,
    DeliveryStatus,
    Inbox,
    InboxKind,
    SenderType,
    Visitor,
)
from tests.analysis.waiting import until
from tests.conversations.conftest import DEADLINE_SECONDS, DEBOUNCE, outsider

pytestmark = pytest.mark.anyio

T = TypeVar("T")

CONVERSATION = "select from conversations where id = $1 for update"
MESSAGE = "select from messages where id = $1 for update"
ATTACHMENT = "select from attachments where id = $1 for update"
ENTRY = "select from analyses where id = $1 for update"
SPENDING = "select from analysis_spending for update"
DELIVERY = "select from webhook_deliveries where id = $1 for update"
DELIVERY_AFTER_WEBHOOK = """
select from webhooks w join webhook_deliveries d on d.webhook_id = w.id where d.id = $1 for update
"""


async def until_waited_for(other: asyncpg.Connection, count: int = 1) -> None:
    """Until so many wait for what `other` has locked."""

    async def are_waiting() -> bool:
        waiting = await other.fetchval(
            """
            select count(distinct pid) from pg_locks
            where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))
            """
        )
        return bool(waiting >= count)

    await until(are_waiting)


async def held_up(other: asyncpg.Connection, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """`call`, which waits for what `other` has locked."""
    task = asyncio.create_task(call)
    waits = asyncio.create_task(until_waited_for(other))
    await asyncio.wait([task, waits], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        waits.cancel()
        raise AssertionError(f"it waited for nobody: {task}")
    await waits
    return task


async def erase(database: Database, lead_id: UUID) -> Erased | None:
    async with database.transaction():
        return await delete_lead(database, lead_id)


async def result_of(task: asyncio.Task[T]) -> T:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await task


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(module_dsn: str) -> AsyncIterator[Database]:
    """Whose joins take one row after the other, so that a statement can be stopped in between."""
    options = quote("-c enable_hashjoin=off -c enable_mergejoin=off")
    database = Database(f"{module_dsn}&options={options}", pool_size=4, bus=Bus())
    await database.start()
    try:
        yield database
    finally:
        await database.stop()


@pytest.fixture
async def lead_id(database: Database) -> UUID:
    found: UUID = await database.fetch_value("insert into leads (name) values ('Ana') returning id")
    return found


@pytest.fixture
async def agent_id(database: Database) -> UUID:
    found: UUID = await database.fetch_value(
        """
        insert into users (email, password_hash, role) values ($1, 'x', 'SALES_AGENT') returning id
        """,
        f"{uuid4().hex}@example.com",
    )
    return found


@pytest.fixture
async def conversation_id(database: Database, lead_id: UUID) -> UUID:
    found: UUID = await database.fetch_value(
        "insert into conversations (lead_id, inbox_id) values ($1, gen_random_uuid()) returning id",
        lead_id,
    )
    return found


async def inbox_of(database: Database, kind: InboxKind) -> Inbox:
    return await insert_inbox(
        database, name="x", kind=kind, allowed_origins=[], greeting=None, secret="s"
    )


async def upload(database: Database, lead_id: UUID, inbox_id: UUID | None = None) -> UUID:
    """An attachment that was not sent with a message."""
    found: UUID = await database.fetch_value(
        """
        insert into attachments
            (lead_id, inbox_id, file_name, content_type, size_bytes, storage_key)
        values ($1, $2, 'x', 'text/plain', 1, gen_random_uuid())
        returning id
        """,
        lead_id,
        inbox_id,
    )
    return found


async def messages_in(database: Database, conversation_id: UUID) -> tuple[UUID, UUID]:
    """Two from agents, by their ids; numbered and stored the other way round."""
    earlier, later = sorted([uuid4(), uuid4()])
    await database.execute(
        """
        insert into messages
            (id, conversation_id, seq, public_seq, sender_type, content_text, lead_message_count)
        values ($2, $1, 1, 1, 'AGENT', 'x', 0), ($3, $1, 2, 2, 'AGENT', 'x', 0)
        """,
        conversation_id,
        later,
        earlier,
    )
    return earlier, later


# --- Who deletes ------------------------------------------------------------------------------


async def delete_by_hand(database: Database, lead_id: UUID) -> None:
    """As the data browser does."""
    await database.execute("delete from leads where id = $1", lead_id)


@pytest.mark.parametrize("delete", [erase, delete_by_hand], ids=["erased", "by hand"])
async def test_conversations_come_before_attachments(
    database: Database,
    lead_id: UUID,
    conversation_id: UUID,
    delete: Callable[[Database, UUID], Coroutine[Any, Any, object]],
) -> None:
    attachment_id = await upload(database, lead_id)
    async with outsider(database.dsn, CONVERSATION, conversation_id) as other:
        task = await held_up(other, delete(database, lead_id))
        await other.execute(f"{ATTACHMENT} nowait", attachment_id)
    await result_of(task)
    assert not await database.fetch(ATTACHMENT, attachment_id)
    assert not await database.fetch(CONVERSATION, conversation_id)


async def test_webhooks_come_before_deliveries(
    database: Database, lead_id: UUID, conversation_id: UUID
) -> None:
    webhook_id = await database.fetch_value(
        "insert into webhooks (url, secret) values ('https://example.com', 's') returning id"
    )
    first, second = [
        await database.fetch_value(
            """
            insert into webhook_deliveries (position, webhook_id, event, ordering_key, created_at)
            values ($3, $1, 'message.created', $2, now())
            returning id
            """,
            webhook_id,
            conversation_id,
            position,
        )
        for position in (1, 2)
    ]
    async with outsider(database.dsn, DELIVERY_AFTER_WEBHOOK, second) as other:
        task = await held_up(other, erase(database, lead_id))
        await other.execute(f"{DELIVERY} nowait", first)
    assert await result_of(task) == Erased((conversation_id,), frozenset())
    assert not await database.fetch(DELIVERY, first)


async def test_messages_are_deleted_by_their_ids(
    database: Database, lead_id: UUID, conversation_id: UUID
) -> None:
    earlier, later = await messages_in(database, conversation_id)
    async with outsider(database.dsn, MESSAGE, earlier) as other:
        task = await held_up(other, erase(database, lead_id))
        await other.execute(f"{MESSAGE} nowait", later)
    assert await result_of(task) == Erased((conversation_id,), frozenset())
    assert not await database.fetch(MESSAGE, later)


async def test_what_is_erased_is_what_the_lead_had(
    database: Database, lead_id: UUID, agent_id: UUID, conversation_id: UUID
) -> None:
    """Also a conversation that began while its deletion waited for the lead."""
    begun = uuid4()
    sql = "insert into conversations (id, lead_id, assigned_agent_id) values ($1, $2, $3)"
    async with outsider(database.dsn, sql, begun, lead_id, agent_id) as other:
        task = await held_up(other, erase(database, lead_id))
    erased = await result_of(task)
    assert erased == Erased(tuple(sorted([conversation_id, begun])), frozenset([agent_id]))
    assert not await database.fetch(CONVERSATION, begun)


async def test_an_inbox_goes_without_its_attachments(database: Database, lead_id: UUID) -> None:
    inbox = await inbox_of(database, InboxKind.WIDGET)
    attachment_id = await upload(database, lead_id, inbox.id)
    async with outsider(database.dsn, ATTACHMENT, attachment_id):
        await result_of(asyncio.create_task(delete_inbox(database, inbox.id)))
    kept = "select inbox_id from attachments where id = $1"
    assert await database.fetch_value(kept, attachment_id) == inbox.id


async def test_no_key_for_an_inbox_that_is_being_deleted(
    database: Database, agent_id: UUID
) -> None:
    inbox = await inbox_of(database, InboxKind.API)
    key_hash = uuid4().bytes
    call = insert_api_key(
        database, inbox_id=inbox.id, name="x", prefix="x", key_hash=key_hash, created_by=agent_id
    )
    async with outsider(database.dsn, "delete from inboxes where id = $1", inbox.id) as other:
        task = await held_up(other, call)
    assert await result_of(task) is None
    assert not await database.fetch("select from api_keys where key_hash = $1", key_hash)


# --- Who changes ------------------------------------------------------------------------------


async def test_marks_are_set_by_the_ids_of_messages(
    database: Database, lead_id: UUID, conversation_id: UUID
) -> None:
    earlier, later = await messages_in(database, conversation_id)
    inbox_id = await database.fetch_value(
        "select inbox_id from conversations where id = $1", conversation_id
    )
    call = update_delivery_through(
        database,
        Visitor(lead_id, inbox_id, "Ana", verified=False),
        2,
        DeliveryStatus.READ,
        conversation_id=conversation_id,
    )
    async with outsider(database.dsn, MESSAGE, earlier) as other:
        task = await held_up(other, call)
        await other.execute(f"{MESSAGE} nowait", later)
    changes = await result_of(task)
    assert [(each.message_id, each.seq) for each in changes] == [(later, 1), (earlier, 2)]


async def test_lines_of_the_ledger_come_before_their_day(
    database: Database, conversation_id: UUID
) -> None:
    entry = NewEntry(
        conversation_id=conversation_id,
        trigger="message",
        provider="openai",
        model="m",
        prompt_version="1",
        fingerprint=None,
        through_seq=1,
        attempt=1,
        reserved_micro_dollars=1_000,
    )
    running = await insert_entry(database, entry, Budget())
    assert running is not None
    async with outsider(database.dsn, ENTRY, running) as other:
        task = await held_up(other, insert_entry(database, entry, Budget(daily=100_000)))
        await other.execute(f"{SPENDING} nowait")
    assert await result_of(task) not in (None, running)
    status = "select status from analyses where id = $1"
    assert await database.fetch_value(status, running) == "INTERRUPTED"


# --- Who leaves out what changes --------------------------------------------------------------

HELD_UP = """
create or replace function hold_up() returns trigger
language plpgsql
as $$
begin
    perform pg_advisory_xact_lock_shared(1);
    return new;
end
$$;
create or replace trigger conversations_held_up before update on conversations
    for each row when (old.external_id = 'held up') execute function hold_up();
"""


async def append(database: Database, conversation_ids: list[UUID]) -> set[UUID]:
    drafts = {
        each: Draft(
            conversation_id=each,
            sender_type=SenderType.AGENT,
            sender_id=uuid4(),
            content_type=ContentType.TEXT,
            content_text="x",
            media_url=None,
            preview="x",
        )
        for each in conversation_ids
    }
    appended = await append_messages(database, REPLY, list(drafts.values()), DEBOUNCE)
    return {each for each, draft in drafts.items() if draft.id in appended}


async def claim(database: Database, conversation_ids: list[UUID]) -> set[UUID]:
    claims = await claim_due(database, limit=100, lease_seconds=3_600)
    return {each.conversation_id for each in claims} & set(conversation_ids)


async def wake(database: Database, conversation_ids: list[UUID]) -> set[UUID]:
    return {each for each, _version in await wake_snoozed(database)} & set(conversation_ids)


@pytest.mark.parametrize("change", [append, claim, wake], ids=["append", "claim", "wake"])
async def test_what_changed_since_the_statement_began_is_left_for_the_next_time(
    database: Database,
    lead_id: UUID,
    change: Callable[[Database, list[UUID]], Coroutine[Any, Any, set[UUID]]],
) -> None:
    """Of two conversations the second changes while the statement is held up at the first."""
    await database.execute(HELD_UP)
    first, second = conversation_ids = sorted([uuid4(), uuid4()])
    await database.execute(
        """
        insert into conversations (
            id, lead_id, external_id, status, snoozed_until, analysis_due_at, last_activity_at
        )
        select id, $2, name, 'SNOOZED', at, at, at
        from (values
            ($1::uuid, 'held up', now() - interval '2 hours'),
            ($3::uuid, null, now() - interval '1 hour')
        ) as conversation (id, name, at)
        """,
        first,
        lead_id,
        second,
    )
    async with outsider(database.dsn, "select pg_advisory_xact_lock(1)") as other:
        task = await held_up(other, change(database, conversation_ids))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await database.execute("update conversations set tags = '{a}' where id = $1", second)
    assert await result_of(task) == {first}
    assert await change(database, [second]) == {second}
