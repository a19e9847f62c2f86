"""SQL about conversations; `message_queries` has the log, `search` the filters of the list.

Who may see a conversation is part of each statement: an ADMIN, or the agent it is assigned to.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct, structs
from uuid_utils.compat import uuid7

from messaging_server.conversations.urgency import URGENT_SINCE, urgency_of
from messaging_server.conversations.view_cache import Versions, ViewCache
from messaging_server.database import Database, row_count
from messaging_server.errors import Conflict, NotFound
from messaging_server.models import (
    AiView,
    AssignedAgent,
    Caller,
    ContentType,
    Conversation,
    LastMessage,
    Lead,
    Priority,
    SenderType,
    Source,
    Status,
    timestamp,
)

VISIBLE = "($1 or c.assigned_agent_id = $2)"
"""$1: the caller is ADMIN; $2: the caller's id."""

LOOK = f"""
    c.waiting_since, {URGENT_SINCE} as urgent_since, now() as read_at,
    c.lead_message_count - coalesce(r.lead_message_count, 0) as unread_count
"""
"""What depends on the viewer or on the moment."""

VERSIONS = "c.id, c.xmin as version_of_row, l.xmin as version_of_lead, u.xmin as version_of_agent"

COLUMNS = f"""
    c.id, c.inbox_id, c.status, c.priority, c.priority_source, c.tags, c.tags_source,
    c.ai_summary, c.ai_priority, c.ai_tags, c.ai_provider, c.ai_updated_at, c.analyzed_seq,
    c.last_seq, c.last_public_seq, c.last_message_sender_type, c.last_message_content_type,
    c.last_message_preview, c.last_message_at, c.snoozed_until, c.created_at, c.updated_at,
    c.version, c.assigned_agent_id, {LOOK},
    u.email as agent_email, u.name as agent_name,
    l.id as lead_id, l.name as lead_name, l.email as lead_email, l.phone as lead_phone,
    l.attributes as lead_attributes, l.created_at as lead_created_at,
    l.updated_at as lead_updated_at
"""

COUNTS_WORTH_COMPACTING = 1_000

JOINS = """
    join leads l on l.id = c.lead_id
    left join users u on u.id = c.assigned_agent_id
    left join conversation_reads r on r.conversation_id = c.id and r.user_id = {user_id}
"""


def to_conversation(row: Mapping[str, Any]) -> Conversation:
    status, priority = Status(row["status"]), _priority(row["priority"])
    return Conversation(
        id=row["id"],
        inbox_id=row["inbox_id"],
        lead=_lead(row),
        assigned_agent=_agent(row),
        status=status,
        priority=priority,
        priority_source=Source(row["priority_source"]),
        tags=row["tags"],
        tags_source=Source(row["tags_source"]),
        summary=row["ai_summary"],
        ai=_ai_view(row),
        last_message=_last_message(row),
        last_seq=row["last_seq"],
        unread_count=row["unread_count"],
        waiting_since=_optional_timestamp(row["waiting_since"]),
        urgency=urgency_of(
            status,
            priority,
            waiting_since=row["waiting_since"],
            urgent_since=row["urgent_since"],
            now=row["read_at"],
        ),
        snoozed_until=_optional_timestamp(row["snoozed_until"]),
        created_at=timestamp(row["created_at"]),
        updated_at=timestamp(row["updated_at"]),
        version=row["version"],
    )


def _optional_timestamp(at: datetime | None) -> str | None:
    return timestamp(at) if at is not None else None


def _priority(value: str | None) -> Priority | None:
    return Priority(value) if value is not None else None


def _lead(row: Mapping[str, Any]) -> Lead:
    attributes = row["lead_attributes"]
    return Lead(
        id=row["lead_id"],
        name=row["lead_name"],
        email=row["lead_email"],
        phone=row["lead_phone"],
        attributes=msgspec.json.decode(attributes) if attributes != "{}" else {},
        created_at=timestamp(row["lead_created_at"]),
        updated_at=timestamp(row["lead_updated_at"]),
    )


def _agent(row: Mapping[str, Any]) -> AssignedAgent | None:
    if row["assigned_agent_id"] is None:
        return None
    return AssignedAgent(
        id=row["assigned_agent_id"], email=row["agent_email"], name=row["agent_name"]
    )


def _ai_view(row: Mapping[str, Any]) -> AiView | None:
    if row["ai_updated_at"] is None:
        return None
    return AiView(
        summary=row["ai_summary"],
        priority=Priority(row["ai_priority"]),
        tags=row["ai_tags"],
        updated_at=timestamp(row["ai_updated_at"]),
        analyzed_through_seq=row["analyzed_seq"],
        provider=row["ai_provider"],
    )


def _last_message(row: Mapping[str, Any]) -> LastMessage | None:
    if row["last_message_at"] is None:
        return None
    return LastMessage(
        seq=row["last_public_seq"],
        sender_type=SenderType(row["last_message_sender_type"]),
        content_type=ContentType(row["last_message_content_type"]),
        preview=row["last_message_preview"],
        created_at=timestamp(row["last_message_at"]),
    )


async def fetch_conversation(
    database: Database, caller: Caller, conversation_id: UUID
) -> Conversation | None:
    row = await database.fetch_row(
        f"""
        select {COLUMNS}
        from conversations c {JOINS.format(user_id="$2")}
        where {VISIBLE} and c.id = $3
        """,
        caller.is_admin,
        caller.id,
        conversation_id,
    )
    return to_conversation(row) if row else None


async def views_of(
    database: Database, cache: ViewCache, caller: Caller, rows: Sequence[Mapping[str, Any]]
) -> list[Conversation]:
    """The conversations of rows with `VERSIONS` and `LOOK`; without those just lost to sight."""
    held = [(row, cache.find(row["id"], versions_of(row))) for row in rows]
    missing = [row["id"] for row, view in held if view is None]
    read = await _read_views(database, cache, caller, missing) if missing else {}
    views = (_as_of(row, view) if view else read.get(row["id"]) for row, view in held)
    return [view for view in views if view is not None]


async def _read_views(
    database: Database, cache: ViewCache, caller: Caller, conversation_ids: list[UUID]
) -> dict[UUID, Conversation]:
    rows = await database.fetch(
        f"""
        select {VERSIONS}, {COLUMNS}
        from conversations c {JOINS.format(user_id="$2")}
        where {VISIBLE} and c.id = any($3)
        """,
        caller.is_admin,
        caller.id,
        conversation_ids,
    )
    found = {}
    for row in rows:
        found[row["id"]] = conversation = to_conversation(row)
        cache.keep(versions_of(row), conversation)
    return found


def versions_of(row: Mapping[str, Any]) -> Versions:
    return row["version_of_row"], row["version_of_lead"], row["version_of_agent"]


def _as_of(row: Mapping[str, Any], view: Conversation) -> Conversation:
    """`view` with what depends on the viewer or the moment."""
    unread_count = row["unread_count"]
    if unread_count == view.unread_count and view.urgency is None:
        return view
    urgency = urgency_of(
        view.status,
        view.priority,
        waiting_since=row["waiting_since"],
        urgent_since=row["urgent_since"],
        now=row["read_at"],
    )
    return structs.replace(view, unread_count=unread_count, urgency=urgency)


async def fetch_views(
    database: Database, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
) -> list[tuple[UUID, Conversation]]:
    """Each conversation as each caller sees it, pairs that may not be seen left out.

    Callers to whom it looks alike share one object.
    """
    rows = await database.fetch(
        f"""
        select viewer.id as viewer_id, {COLUMNS}
        from unnest($1::uuid[], $2::boolean[]) as viewer (id, is_admin)
        join conversations c
            on c.id = any($3) and (viewer.is_admin or c.assigned_agent_id = viewer.id)
        {JOINS.format(user_id="viewer.id")}
        """,
        [caller.id for caller in callers],
        [caller.is_admin for caller in callers],
        list(conversation_ids),
    )
    views: dict[tuple[UUID, int], Conversation] = {}
    for row in rows:
        look = (row["id"], row["unread_count"])
        if look not in views:
            views[look] = to_conversation(row)
    return [(row["viewer_id"], views[row["id"], row["unread_count"]]) for row in rows]


async def fetch_heads(database: Database, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
    """`last_seq` by conversation; those that are gone are missing."""
    rows = await database.fetch(
        "select id, last_seq from conversations where id = any($1)", list(conversation_ids)
    )
    return {row["id"]: row["last_seq"] for row in rows}


async def insert_conversation(
    database: Database,
    *,
    lead_id: UUID,
    agent_id: UUID | None,
    inbox_id: UUID | None = None,
    external_id: str | None = None,
) -> UUID:
    """Raises `Conflict` when the external id is taken, `NotFound` when the lead is gone."""
    conversation_id = uuid7()
    try:
        await database.execute(
            """
            insert into conversations (id, lead_id, assigned_agent_id, inbox_id, external_id)
            values ($1, $2, $3, $4, $5)
            """,
            conversation_id,
            lead_id,
            agent_id,
            inbox_id,
            external_id,
        )
    except asyncpg.UniqueViolationError:
        raise Conflict("The conversation was created at the same moment; try again") from None
    except asyncpg.ForeignKeyViolationError:
        raise NotFound("No such lead") from None
    return conversation_id


async def fetch_external_conversation(
    database: Database, inbox_id: UUID, external_id: str
) -> tuple[UUID, UUID] | None:
    """The conversation that the other system of this inbox knows by this id, and its lead."""
    row = await database.fetch_row(
        "select id, lead_id from conversations where inbox_id = $1 and external_id = $2",
        inbox_id,
        external_id,
    )
    return (row["id"], row["lead_id"]) if row else None


async def lock_external_conversation(database: Database, inbox_id: UUID, external_id: str) -> None:
    """Until the end of the transaction: two first messages must not make two conversations."""
    await database.execute(
        "select pg_advisory_xact_lock(hashtextextended($1 || $2, 2))", str(inbox_id), external_id
    )


async def fetch_newest_conversation(
    database: Database, lead_id: UUID, inbox_id: UUID
) -> UUID | None:
    """Of this inbox, or begun by an agent, and claimed by no external id."""
    conversation_id: UUID | None = await database.fetch_value(
        """
        select id from conversations
        where lead_id = $1 and (inbox_id = $2 or inbox_id is null) and external_id is null
        order by last_activity_at desc, id desc
        limit 1
        """,
        lead_id,
        inbox_id,
    )
    return conversation_id


async def update_conversation(
    database: Database, caller: Caller, conversation_id: UUID, changes: Mapping[str, Any]
) -> int | None:
    """Set what `changes` holds of status, priority, tags and snoozed_until.

    A priority or tags of None go back to the AI's own; a snoozed_until of None without a status
    ends a snooze, if there is one. Returns the new version, or None when the conversation is not
    visible.
    """
    status: Status | None = changes.get("status")
    version: int | None = await database.fetch_value(
        f"""
        update conversations c
        set status = coalesce(
                $4, case when $10 and c.status = 'SNOOZED' then 'OPEN' else c.status end),
            snoozed_until = case
                when $4 is null and not $10 then c.snoozed_until else $5::timestamptz end,
            priority = case when not $6 then c.priority else coalesce($7, c.ai_priority) end,
            priority_source = case
                when not $6 then c.priority_source when $7::text is null then 'AI' else 'HUMAN' end,
            tags = case when not $8 then c.tags else coalesce($9::text[], c.ai_tags) end,
            tags_source = case
                when not $8 then c.tags_source when $9 is null then 'AI' else 'HUMAN' end,
            version = c.version + 1,
            updated_at = now()
        where {VISIBLE} and c.id = $3
        returning version
        """,
        caller.is_admin,
        caller.id,
        conversation_id,
        status,
        changes.get("snoozed_until"),
        "priority" in changes,
        changes.get("priority"),
        "tags" in changes,
        changes.get("tags"),
        "snoozed_until" in changes,
    )
    return version


class Assignment(Struct, frozen=True):
    """What an assignment changed; `version` is None when it changed nothing."""

    previous_agent_id: UUID | None
    version: int | None


async def update_assignment(
    database: Database, conversation_id: UUID, agent_id: UUID | None
) -> Assignment | None:
    """Returns None when there is no such conversation."""
    row = await database.fetch_row(
        """
        with previous as (
            select id, assigned_agent_id from conversations where id = $1 for no key update
        ),
        changed as (
            update conversations c
            set assigned_agent_id = $2, version = c.version + 1, updated_at = now()
            from previous p
            where c.id = p.id and p.assigned_agent_id is distinct from $2
            returning c.version
        )
        select p.assigned_agent_id, changed.version from previous p left join changed on true
        """,
        conversation_id,
        agent_id,
    )
    return Assignment(row["assigned_agent_id"], row["version"]) if row else None


async def lock_active_user(database: Database, user_id: UUID) -> bool:
    """Whether the user is active, which then stays so until the end of the transaction."""
    found = await database.fetch_value(
        "select true from users where id = $1 and active for share", user_id
    )
    return bool(found)


_MOVE_MARK = f"""
with seen as (
    select c.id, c.lead_message_count as total, least($4, c.last_seq) as seq
    from conversations c
    where {VISIBLE} and c.id = $3
),
mark as (
    insert into conversation_reads as r
        (id, conversation_id, user_id, seq, lead_message_count)
    select $5, seen.id, $2, seen.seq, coalesce(m.lead_message_count, 0)
    from seen
    left join messages m on m.conversation_id = seen.id and m.seq = seen.seq
    on conflict (conversation_id, user_id) do update
    set seq = greatest(r.seq, excluded.seq),
        lead_message_count = greatest(r.lead_message_count, excluded.lead_message_count),
        updated_at = now()
    returning r.seq, r.lead_message_count
)
select mark.seq, greatest(seen.total - mark.lead_message_count, 0) as unread
from mark, seen
"""


async def upsert_read_mark(
    database: Database, caller: Caller, conversation_id: UUID, seq: int
) -> tuple[int, int] | None:
    """Move the caller's mark forward, at most to the newest message.

    Returns the mark and how many of the lead's messages are after it; None when not visible.
    """
    try:
        row = await database.fetch_row(
            _MOVE_MARK, caller.is_admin, caller.id, conversation_id, seq, uuid7()
        )
    except asyncpg.ForeignKeyViolationError:  # deleted meanwhile
        return None
    return (row["seq"], row["unread"]) if row else None


async def wake_snoozed(database: Database) -> list[tuple[UUID, int]]:
    """Reopen what was snoozed until now; ids and versions."""
    rows = await database.fetch(
        """
        update conversations
        set status = 'OPEN', snoozed_until = null, version = version + 1, updated_at = now()
        where id in (
            select id from conversations
            where status = 'SNOOZED' and snoozed_until <= now()
            limit 500
            for no key update skip locked
        )
        returning id, version
        """
    )
    return [(row["id"], row["version"]) for row in rows]


async def compact_counts(database: Database, *, at_least: int = COUNTS_WORTH_COMPACTING) -> int:
    """Add up the counters' differences into one row a kind, when there are many; rows written."""
    tag = await database.execute(
        """
        with removed as (
            delete from conversation_counts
            where id in (
                select id from conversation_counts
                where (select count(*) from (select 1 from conversation_counts limit $1) few) = $1
                order by id
                limit 20000
                for update skip locked
            )
            returning assigned_agent_id, status, priority, waiting, count
        )
        insert into conversation_counts (assigned_agent_id, status, priority, waiting, count)
        select assigned_agent_id, status, priority, waiting, sum(count)
        from removed
        group by 1, 2, 3, 4
        having sum(count) <> 0
        """,
        at_least,
    )
    return row_count(tag)
