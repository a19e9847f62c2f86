"""The SQL of the outbox: facts as their transactions left them, made into deliveries in order."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct, structs
from uuid_utils.compat import uuid7

from messaging_server.conversations import message_queries
from messaging_server.database import Database
from messaging_server.leads.queries import COLUMNS as LEAD_COLUMNS
from messaging_server.leads.queries import to_lead
from messaging_server.models import (
    AssignedAgent,
    WebhookEvent,
    timestamp,
)
from messaging_server.webhooks.payloads import (
    OutboxEntry,
    Sources,
    ToldAiView,
    ToldConversation,
    ToldLead,
)

OUTBOX_LOCK = 7_002


class Listener(Struct, frozen=True):
    """What a webhook wants to be told; `events` is empty for everything."""

    id: UUID
    events: frozenset[str]
    include_private_notes: bool


class NewDelivery(Struct, frozen=True):
    webhook_id: UUID
    entry: OutboxEntry
    private: bool


async def try_lock_outbox(database: Database) -> bool:
    """Until the commit; one at a time, so that what is taken later gets a later place."""
    locked = await database.fetch_value("select pg_try_advisory_xact_lock($1)", OUTBOX_LOCK)
    return bool(locked)


async def lock_outbox(database: Database) -> None:
    """As `try_lock_outbox`, waiting: for whoever removes deliveries. Before locking webhooks."""
    await database.execute("select pg_advisory_xact_lock($1)", OUTBOX_LOCK)


async def fetch_listeners(database: Database) -> list[Listener]:
    rows = await database.fetch("select id, events, include_private_notes from webhooks")
    return [
        Listener(row["id"], frozenset(row["events"]), row["include_private_notes"]) for row in rows
    ]


async def take_outbox(database: Database, *, limit: int) -> list[Mapping[str, Any]]:
    """Remove the oldest entries, in the order of their facts within a conversation or lead.

    `to_entry` reads them; it may fail where somebody has written something else by hand.
    """
    rows = await database.fetch(
        """
        with oldest as (select position from webhook_outbox order by position limit $1)
        delete from webhook_outbox o
        using oldest
        where o.position = oldest.position
        returning o.position, o.event, o.ordering_key, o.subject_id, o.detail, o.created_at
        """,
        limit,
    )
    return sorted(rows, key=lambda row: int(row["position"]))


def to_entry(row: Mapping[str, Any]) -> OutboxEntry:
    return OutboxEntry(
        position=row["position"],
        event=WebhookEvent(row["event"]),
        ordering_key=row["ordering_key"],
        subject_id=row["subject_id"],
        detail=msgspec.json.decode(row["detail"]) if row["detail"] else {},
        created_at=row["created_at"],
    )


async def fetch_sources(database: Database, entries: Sequence[OutboxEntry]) -> Sources:
    """What the entries are about, as it is now."""
    message_ids, conversation_ids, lead_ids, agent_ids = set(), set(), set(), set()
    for entry in entries:
        if entry.event.startswith("lead."):
            lead_ids.add(entry.subject_id)
            continue
        conversation_ids.add(entry.ordering_key)
        if entry.event.startswith("message."):
            message_ids.add(entry.subject_id)
        elif entry.event is WebhookEvent.CONVERSATION_ASSIGNED:
            concerned = (entry.detail["agentId"], entry.detail["previousAgentId"])
            agent_ids |= {UUID(agent_id) for agent_id in concerned if agent_id}
    return Sources(
        await message_queries.fetch_by_ids(database, list(message_ids)) if message_ids else {},
        await _fetch_conversations(database, list(conversation_ids)) if conversation_ids else {},
        await _fetch_leads(database, list(lead_ids)) if lead_ids else {},
        await _fetch_agents(database, list(agent_ids)) if agent_ids else {},
    )


async def _fetch_conversations(
    database: Database, conversation_ids: Sequence[UUID]
) -> dict[UUID, tuple[ToldConversation, ToldLead]]:
    rows = await database.fetch(
        f"""
        select {LEAD_COLUMNS}, l.contact_verified, c.id as conversation_id, c.inbox_id,
            c.status, c.priority, c.priority_source, c.tags, c.tags_source, c.ai_summary,
            c.ai_priority, c.ai_tags, c.ai_provider, c.ai_updated_at, c.analyzed_seq,
            c.waiting_since, c.snoozed_until,
            c.created_at as conversation_created_at, c.updated_at as conversation_updated_at,
            c.version, c.assigned_agent_id, u.email as agent_email, u.name as agent_name
        from conversations c
        join leads l on l.id = c.lead_id
        left join users u on u.id = c.assigned_agent_id
        where c.id = any($1::uuid[])
        """,
        conversation_ids,
    )
    return {row["conversation_id"]: (_to_conversation(row), _to_lead(row)) for row in rows}


def _to_conversation(row: Mapping[str, Any]) -> ToldConversation:
    waiting_since, snoozed_until = row["waiting_since"], row["snoozed_until"]
    agent_id = row["assigned_agent_id"]
    return ToldConversation(
        id=row["conversation_id"],
        inbox_id=row["inbox_id"],
        status=row["status"],
        priority=row["priority"],
        priority_source=row["priority_source"],
        tags=row["tags"],
        tags_source=row["tags_source"],
        summary=row["ai_summary"],
        ai=_ai_view(row),
        assigned_agent=(
            AssignedAgent(id=agent_id, email=row["agent_email"], name=row["agent_name"])
            if agent_id
            else None
        ),
        waiting_since=timestamp(waiting_since) if waiting_since else None,
        snoozed_until=timestamp(snoozed_until) if snoozed_until else None,
        created_at=timestamp(row["conversation_created_at"]),
        updated_at=timestamp(row["conversation_updated_at"]),
        version=row["version"],
    )


def _ai_view(row: Mapping[str, Any]) -> ToldAiView | None:
    if row["ai_updated_at"] is None:
        return None
    return ToldAiView(
        summary=row["ai_summary"],
        priority=row["ai_priority"],
        tags=row["ai_tags"],
        updated_at=timestamp(row["ai_updated_at"]),
        analyzed_through_seq=row["analyzed_seq"],
        provider=row["ai_provider"],
    )


async def _fetch_leads(database: Database, lead_ids: Sequence[UUID]) -> dict[UUID, ToldLead]:
    rows = await database.fetch(
        f"select {LEAD_COLUMNS}, l.contact_verified from leads l where l.id = any($1::uuid[])",
        lead_ids,
    )
    return {row["id"]: _to_lead(row) for row in rows}


def _to_lead(row: Mapping[str, Any]) -> ToldLead:
    return ToldLead(**structs.asdict(to_lead(row)), verified=row["contact_verified"])


async def _fetch_agents(database: Database, agent_ids: Sequence[UUID]) -> dict[UUID, AssignedAgent]:
    rows = await database.fetch(
        "select id, email, name from users where id = any($1::uuid[])", agent_ids
    )
    return {
        row["id"]: AssignedAgent(id=row["id"], email=row["email"], name=row["name"]) for row in rows
    }


async def insert_deliveries(
    database: Database, deliveries: Sequence[NewDelivery], bodies: Mapping[int, str]
) -> None:
    """`bodies` by the positions of the entries; all webhooks are told the same."""
    await database.execute(
        """
        with bodies as (
            insert into webhook_bodies (position, body)
            select * from unnest($8::bigint[], $9::text[])
        )
        insert into webhook_deliveries
            (id, position, webhook_id, event, ordering_key, private, created_at)
        select * from unnest(
            $1::uuid[], $2::bigint[], $3::uuid[], $4::text[], $5::uuid[], $6::boolean[],
            $7::timestamptz[]
        )
        """,
        [uuid7() for _ in deliveries],
        [each.entry.position for each in deliveries],
        [each.webhook_id for each in deliveries],
        [each.entry.event for each in deliveries],
        [each.entry.ordering_key for each in deliveries],
        [each.private for each in deliveries],
        [each.entry.created_at for each in deliveries],
        list(bodies),
        list(bodies.values()),
    )
