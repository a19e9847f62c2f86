"""SQL that reads conversations as one user sees them: an ADMIN, or the agent it is assigned to."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec

from messaging_server.conversations.urgency import URGENT_SINCE, Wait
from messaging_server.conversations.view_cache import Versions, View, ViewCache
from messaging_server.database import Database, shown_time
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
    Urgency,
    members,
)

VISIBLE = "($1 or c.assigned_agent_id = $2)"
"""$1: the caller is ADMIN; $2: the caller's id."""

VERSIONS = "c.xmin as version_of_row, (select version from shown_users) as version_of_users"

UNREAD = """
    c.lead_message_count - coalesce((
        select r.lead_message_count from conversation_reads r
        where r.conversation_id = c.id and r.user_id = {user_id}
    ), 0) as unread_count
"""
READ_AT = "(select date_part('epoch', now())) as read_at"

LISTED = f"c.id, {VERSIONS}, {UNREAD}, {READ_AT}"
"""What a list reads of each conversation."""

STATE = f"""
    c.id, c.inbox_id, c.status, c.priority, c.priority_source, c.tags, c.tags_source,
    c.ai_summary, c.ai_priority, c.ai_tags, c.ai_provider,
    {shown_time("c.ai_updated_at")} as ai_updated_at, c.analyzed_seq,
    c.last_seq, c.last_public_seq, c.last_message_sender_type, c.last_message_content_type,
    c.last_message_preview, {shown_time("c.last_message_at")} as last_message_at,
    {shown_time("c.waiting_since")} as waiting_since,
    {shown_time("c.snoozed_until")} as snoozed_until,
    {shown_time("c.created_at")} as created_at, {shown_time("c.updated_at")} as updated_at,
    c.version, c.assigned_agent_id, date_part('epoch', c.waiting_since) as waiting_at,
    date_part('epoch', {URGENT_SINCE}) as urgent_at,
    u.email as agent_email, u.name as agent_name,
    l.id as lead_id, l.name as lead_name, l.email as lead_email, l.phone as lead_phone,
    l.attributes as lead_attributes, {shown_time("l.created_at")} as lead_created_at,
    {shown_time("l.updated_at")} as lead_updated_at
"""
"""What is shown of a conversation, but for what depends on the viewer or the moment."""

JOINS = "join leads l on l.id = c.lead_id left join users u on u.id = c.assigned_agent_id"

COLUMNS = f"{STATE}, {UNREAD}, {READ_AT}"


_STATUSES = members(Status)
_PRIORITIES = members(Priority)
_SOURCES = members(Source)
_SENDER_TYPES = members(SenderType)
_CONTENT_TYPES = members(ContentType)


def to_conversation(row: Mapping[str, Any]) -> Conversation:
    """Of a row with `COLUMNS`."""
    wait = wait_of(row)
    urgency = wait.urgency(row["read_at"]) if wait else None
    return _conversation(row, unread_count=row["unread_count"], urgency=urgency)


def _conversation(
    row: Mapping[str, Any], *, unread_count: int, urgency: Urgency | None
) -> Conversation:
    return Conversation(
        id=row["id"],
        inbox_id=row["inbox_id"],
        lead=_lead(row),
        assigned_agent=_agent(row),
        status=_STATUSES[row["status"]],
        priority=_priority(row["priority"]),
        priority_source=_SOURCES[row["priority_source"]],
        tags=row["tags"],
        tags_source=_SOURCES[row["tags_source"]],
        summary=row["ai_summary"],
        ai=_ai_view(row),
        last_message=_last_message(row),
        last_seq=row["last_seq"],
        waiting_since=row["waiting_since"],
        snoozed_until=row["snoozed_until"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        version=row["version"],
        unread_count=unread_count,
        urgency=urgency,
    )


def wait_of(row: Mapping[str, Any]) -> Wait | None:
    """None for a conversation that needs no reply."""
    if row["waiting_at"] is None or row["status"] != Status.OPEN:
        return None
    return Wait.of(_priority(row["priority"]), row["waiting_at"], row["urgent_at"])


def _priority(value: str | None) -> Priority | None:
    return _PRIORITIES[value] if value is not None else None


def _lead(row: Mapping[str, Any]) -> Lead:
    attributes = row["lead_attributes"]
    return Lead(
        id=row["lead_id"],
        name=row["lead_name"],
        email=row["lead_email"],
        phone=row["lead_phone"],
        attributes=msgspec.json.decode(attributes) if attributes != "{}" else {},
        created_at=row["lead_created_at"],
        updated_at=row["lead_updated_at"],
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
        priority=_PRIORITIES[row["ai_priority"]],
        tags=row["ai_tags"],
        updated_at=row["ai_updated_at"],
        analyzed_through_seq=row["analyzed_seq"],
        provider=row["ai_provider"],
    )


def _last_message(row: Mapping[str, Any]) -> LastMessage | None:
    if row["last_message_at"] is None:
        return None
    return LastMessage(
        seq=row["last_public_seq"],
        sender_type=_SENDER_TYPES[row["last_message_sender_type"]],
        content_type=_CONTENT_TYPES[row["last_message_content_type"]],
        preview=row["last_message_preview"],
        created_at=row["last_message_at"],
    )


async def fetch_conversation(
    database: Database, caller: Caller, conversation_id: UUID
) -> Conversation | None:
    row = await database.fetch_row(
        f"""
        select {COLUMNS.format(user_id="$2")}
        from conversations c {JOINS}
        where {VISIBLE} and c.id = $3
        """,
        caller.is_admin,
        caller.id,
        conversation_id,
    )
    return to_conversation(row) if row else None


async def views_of(
    database: Database, cache: ViewCache, caller: Caller, rows: Sequence[Mapping[str, Any]]
) -> list[msgspec.Raw]:
    """The conversations of rows with `LISTED`, as JSON; without those just lost to sight."""
    views = [cache.find(row["id"], versions_of(row)) for row in rows]
    if not all(views):
        missing = [row["id"] for row, view in zip(rows, views, strict=True) if view is None]
        read = await _read_views(database, cache, caller, missing)
        views = [view or read.get(row["id"]) for row, view in zip(rows, views, strict=True)]
    return [
        view.shown(unread_count=row["unread_count"], now=row["read_at"])
        for row, view in zip(rows, views, strict=True)
        if view is not None
    ]


async def _read_views(
    database: Database, cache: ViewCache, caller: Caller, conversation_ids: list[UUID]
) -> dict[UUID, View]:
    rows = await database.fetch(
        f"""
        select {VERSIONS}, {STATE}
        from conversations c {JOINS}
        where {VISIBLE} and c.id = any($3)
        """,
        caller.is_admin,
        caller.id,
        conversation_ids,
    )
    found = {}
    for row in rows:
        plain = _conversation(row, unread_count=0, urgency=None)
        view = View.of(versions_of(row), plain, wait_of(row))
        found[row["id"]] = view
        cache.keep(row["id"], view)
    return found


def versions_of(row: Mapping[str, Any]) -> Versions:
    return row["version_of_row"], row["version_of_users"]


async def fetch_views(
    database: Database, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
) -> list[tuple[UUID, Conversation]]:
    """Each conversation as each caller sees it, pairs that may not be seen left out.

    Callers to whom it looks alike share one object.
    """
    rows = await database.fetch(
        f"""
        select viewer.id as viewer_id, {COLUMNS.format(user_id="viewer.id")}
        from unnest($1::uuid[], $2::boolean[]) as viewer (id, is_admin)
        join conversations c
            on c.id = any($3) and (viewer.is_admin or c.assigned_agent_id = viewer.id)
        {JOINS}
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
