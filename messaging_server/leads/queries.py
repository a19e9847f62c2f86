"""All SQL about leads. An agent sees a lead of a conversation of theirs, or that they made."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from msgspec import Struct, structs
from uuid_utils.compat import uuid7

from messaging_server.database import Database, row_count
from messaging_server.errors import Conflict
from messaging_server.leads.search import LeadText, contains, matches_indexed
from messaging_server.models import Caller, Lead, LeadDetails, timestamp

COLUMNS = "l.id, l.name, l.email, l.phone, l.attributes, l.created_at, l.updated_at"

VISIBLE = """
    ($1 or l.created_by = $2 or exists (
        select 1 from conversations v where v.lead_id = l.id and v.assigned_agent_id = $2
    ))
"""
"""$1: the caller is ADMIN; $2: the caller's id."""


class LeadCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


def to_lead(row: Mapping[str, Any]) -> Lead:
    return Lead(
        id=row["id"],
        name=row["name"],
        email=row["email"],
        phone=row["phone"],
        attributes=msgspec.json.decode(row["attributes"]),
        created_at=timestamp(row["created_at"]),
        updated_at=timestamp(row["updated_at"]),
    )


async def insert_lead(
    database: Database,
    *,
    name: str,
    email: str | None,
    phone: str | None,
    attributes: Mapping[str, Any] | None = None,
    inbox_id: UUID | None = None,
    external_id: str | None = None,
    created_by: UUID | None = None,
) -> Lead:
    row = await database.fetch_row(
        f"""
        insert into leads as l
            (id, name, email, phone, attributes, inbox_id, external_id, created_by)
        values ($1, $2, $3, $4, $5::jsonb, $6, $7, $8)
        returning {COLUMNS}
        """,
        uuid7(),
        name,
        email,
        phone,
        msgspec.json.encode(attributes or {}).decode(),
        inbox_id,
        external_id,
        created_by,
    )
    assert row is not None
    return to_lead(row)


async def fetch_lead(database: Database, caller: Caller, lead_id: UUID) -> Lead | None:
    row = await database.fetch_row(
        f"select {COLUMNS} from leads l where {VISIBLE} and l.id = $3",
        caller.is_admin,
        caller.id,
        lead_id,
    )
    return to_lead(row) if row else None


POSSIBLE_DUPLICATES = 10


async def fetch_lead_details(
    database: Database, caller: Caller, lead_id: UUID
) -> LeadDetails | None:
    """With the newest other leads that have the same e-mail or phone and that the caller sees."""
    row = await database.fetch_row(
        f"select {COLUMNS}, l.contact_verified from leads l where {VISIBLE} and l.id = $3",
        caller.is_admin,
        caller.id,
        lead_id,
    )
    if row is None:
        return None
    lead = to_lead(row)
    rows = await database.fetch(
        f"""
        select {COLUMNS}
        from leads l
        where l.id in (
                select id from leads where lower(email) = lower($4)
                union all
                select id from leads where phone = $5
            )
            and l.id <> $3 and {VISIBLE}
        order by l.created_at desc, l.id desc
        limit {POSSIBLE_DUPLICATES}
        """,
        caller.is_admin,
        caller.id,
        lead_id,
        lead.email,
        lead.phone,
    )
    return LeadDetails(
        **structs.asdict(lead),
        verified=row["contact_verified"],
        possible_duplicates=[to_lead(each) for each in rows],
    )


async def list_leads(
    database: Database,
    caller: Caller,
    *,
    text: LeadText | None,
    limit: int,
    cursor: LeadCursor | None,
) -> tuple[list[Lead], LeadCursor | None]:
    """Newest first; `text` is part of the name, e-mail or phone."""
    source, arguments = _matching(text, wanted=limit + 1)
    rows = await database.fetch(
        f"""
        select {COLUMNS}
        from {source}
        where {VISIBLE}
          and ($3::timestamptz is null or (l.created_at, l.id) < ($3, $4::uuid))
        order by l.created_at desc, l.id desc
        limit {limit + 1}
        """,
        caller.is_admin,
        caller.id,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
        *arguments,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    following = LeadCursor(last["created_at"], last["id"]) if last else None
    return [to_lead(row) for row in rows[:limit]], following


def _matching(text: LeadText | None, *, wanted: int) -> tuple[str, list[Any]]:
    """All leads `l`, or those that match, with the parameters from `$5` on."""
    if text is None:
        return "leads l", []
    if text.is_common(wanted=wanted):
        matching = contains("$5", "l.search_text")
        return f"(select * from leads l where {matching}) l", [text.pattern]
    found = f"select * from leads l where {matches_indexed('$5', '$6')} offset 0"
    return f"({found}) l", [text.pattern, text.pieces]


async def update_lead(
    database: Database, caller: Caller, lead_id: UUID, changes: Mapping[str, Any]
) -> tuple[Lead, tuple[UUID, ...]] | None:
    """Set the columns in `changes`; the lead and its conversations, None when not visible.

    A trigger makes a new version of each of these.
    """
    attributes = changes.get("attributes")
    row = await database.fetch_row(
        f"""
        with l as (
            update leads l
            set name = coalesce($4, l.name),
                email = case when $5 then $6 else l.email end,
                phone = case when $7 then $8 else l.phone end,
                attributes = coalesce($9::jsonb, l.attributes),
                contact_changed_by_agent =
                    case when $5 or $7 then not $1 else l.contact_changed_by_agent end,
                updated_at = now()
            where {VISIBLE} and l.id = $3
            returning {COLUMNS}
        )
        select {COLUMNS},
            array(select c.id from conversations c where c.lead_id = l.id) as conversation_ids
        from l
        """,
        caller.is_admin,
        caller.id,
        lead_id,
        changes.get("name"),
        "email" in changes,
        changes.get("email"),
        "phone" in changes,
        changes.get("phone"),
        msgspec.json.encode(attributes).decode() if attributes is not None else None,
    )
    return (to_lead(row), tuple(row["conversation_ids"])) if row else None


class Erased(Struct, frozen=True):
    """The conversations that went with a lead, and the agents who had them."""

    conversation_ids: tuple[UUID, ...]
    agent_ids: frozenset[UUID]


async def delete_lead(database: Database, lead_id: UUID) -> Erased | None:
    """Erase the lead with its conversations and messages; None when there is no such lead.

    Locked first, so that what it has and what is erased are the same: call it in a transaction.
    """
    await database.execute("select from leads where id = $1 for update", lead_id)
    rows = await database.fetch(
        """
        select id, assigned_agent_id from conversations
        where lead_id = $1
        order by id
        for update
        """,
        lead_id,
    )
    if row_count(await database.execute("delete from leads where id = $1", lead_id)) == 0:
        return None
    agents = frozenset(row["assigned_agent_id"] for row in rows)
    return Erased(tuple(row["id"] for row in rows), agents - {None})


async def find_or_insert_lead(
    database: Database,
    inbox_id: UUID,
    *,
    external_id: str | None,
    name: str,
    email: str | None,
    phone: str | None,
) -> UUID:
    """The lead that an inbox's other system means: by its external id, else by e-mail or phone.

    An external id is known in its inbox only; e-mail and phone are the same person everywhere.
    Call it in a transaction: an advisory lock keeps two first messages from making two leads.
    """
    identity = external_id or email or phone
    if identity is None:
        return (await insert_lead(database, name=name, email=None, phone=None)).id
    await database.execute("select pg_advisory_xact_lock(hashtextextended(lower($1), 1))", identity)
    arguments: list[str | UUID] = [identity]
    if external_id:
        same = "external_id = $1 and inbox_id = $2"
        arguments.append(inbox_id)
    else:
        # What an agent changed or a visitor claims must not draw other people's messages there.
        same = "lower(email) = lower($1)" if email else "phone = $1"
        same += " and contact_verified and not contact_changed_by_agent"
    # In two steps: the planner would rather go through all leads in the order of their creation.
    found: UUID | None = await database.fetch_value(
        f"""
        with same as materialized (select id, created_at from leads where {same})
        select id from same order by created_at, id limit 1
        """,
        *arguments,
    )
    if found is not None:
        return found
    try:
        lead = await insert_lead(
            database,
            name=name,
            email=email,
            phone=phone,
            inbox_id=inbox_id if external_id else None,
            external_id=external_id,
        )
    except asyncpg.UniqueViolationError:
        raise Conflict("The lead was created at the same moment; try again") from None
    return lead.id


async def fetch_lead_name(database: Database, lead_id: UUID) -> str:
    name: str = await database.fetch_value("select name from leads where id = $1", lead_id)
    return name
