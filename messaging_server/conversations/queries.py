"""SQL that makes and changes conversations; `view_queries` reads them as a user sees them.

Who may change a conversation is part of what locks it: an ADMIN, or the agent it is assigned to.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.conversations.view_queries import VISIBLE
from messaging_server.database import Database, row_count
from messaging_server.errors import Conflict, NotFound
from messaging_server.models import Caller

COUNTS_WORTH_COMPACTING = 1_000


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


class Locked(Struct, frozen=True):
    """A conversation that nobody else changes until the end of the transaction."""

    assigned_agent_id: UUID | None


async def lock_conversation(
    database: Database, caller: Caller, conversation_id: UUID
) -> Locked | None:
    """Returns None when it is not visible.

    A statement of its own: one that locks a row and changes it too may come upon the version from
    before it waited, and then queue for a row that it holds behind those who wait for it.
    """
    row = await database.fetch_row(
        f"""
        select c.assigned_agent_id
        from conversations c
        where {VISIBLE} and c.id = $3
        for no key update
        """,
        caller.is_admin,
        caller.id,
        conversation_id,
    )
    return Locked(row["assigned_agent_id"]) if row else None


async def update_conversation(
    database: Database, conversation_id: UUID, changes: Mapping[str, Any]
) -> int | None:
    """Set what `changes` holds of status, priority, tags and snoozed_until; the new version.

    A priority or tags of None go back to the AI's own; a snoozed_until of None without a status
    ends a snooze, if there is one. Returns None where nothing is different. Call it with the
    conversation locked.
    """
    version: int | None = await database.fetch_value(
        """
        with wanted as (
            select c.id,
                coalesce(
                    $2, case when $8 and c.status = 'SNOOZED' then 'OPEN' else c.status end
                ) as status,
                case when $2 is null and not $8 then c.snoozed_until else $3::timestamptz end
                    as snoozed_until,
                case when not $4 then c.priority else coalesce($5, c.ai_priority) end as priority,
                case when not $4 then c.priority_source when $5::text is null then 'AI'
                    else 'HUMAN' end as priority_source,
                case when not $6 then c.tags else coalesce($7::text[], c.ai_tags) end as tags,
                case when not $6 then c.tags_source when $7 is null then 'AI' else 'HUMAN' end
                    as tags_source
            from conversations c
            where c.id = $1
        )
        update conversations c
        set status = w.status, snoozed_until = w.snoozed_until, priority = w.priority,
            priority_source = w.priority_source, tags = w.tags, tags_source = w.tags_source,
            version = c.version + 1, updated_at = now()
        from wanted w
        where c.id = w.id and
            (c.status, c.snoozed_until, c.priority, c.priority_source, c.tags, c.tags_source)
            is distinct from
            (w.status, w.snoozed_until, w.priority, w.priority_source, w.tags, w.tags_source)
        returning c.version
        """,
        conversation_id,
        changes.get("status"),
        changes.get("snoozed_until"),
        "priority" in changes,
        changes.get("priority"),
        "tags" in changes,
        changes.get("tags"),
        "snoozed_until" in changes,
    )
    return version


async def update_assignment(
    database: Database, conversation_id: UUID, agent_id: UUID | None
) -> int | None:
    """The new version, or None where nothing is different."""
    version: int | None = await database.fetch_value(
        """
        update conversations
        set assigned_agent_id = $2, version = version + 1, updated_at = now()
        where id = $1 and assigned_agent_id is distinct from $2
        returning version
        """,
        conversation_id,
        agent_id,
    )
    return version


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
    """Reopen what was snoozed until now; ids and versions.

    One that is locked, or changed since the statement began, is left for the next time.
    """
    rows = await database.fetch(
        """
        with awake as materialized (
            select id, ctid as place
            from conversations
            where status = 'SNOOZED' and snoozed_until <= now()
            limit 500
            for no key update skip locked
        )
        update conversations c
        set status = 'OPEN', snoozed_until = null, version = c.version + 1, updated_at = now()
        from awake
        where c.id = awake.id and c.ctid = awake.place
        returning c.id, c.version
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
