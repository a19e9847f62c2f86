"""What webhooks are told: an event with the state of what it is about, as JSON under 20 KB.

Messages and leads have the API's own shapes; a conversation has what does not depend on a user
and says nothing of private notes.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from messaging_server.models import (
    AssignedAgent,
    Lead,
    Message,
    Model,
    Timestamp,
    WebhookEvent,
    timestamp,
)

LARGEST_BODY_BYTES = 20_000
CUT_LENGTHS = (8_000, 4_000, 2_000, 1_000, 500, 200, 100, 50)
CUT_LIST_LENGTH = 20
NEVER_CUT = frozenset({"mediaUrl", "thumbnailUrl", "url"})


class ToldAiView(Model, frozen=True):
    """An `AiView`, with words as they are stored."""

    summary: str
    priority: str
    tags: Sequence[str]
    updated_at: Timestamp
    analyzed_through_seq: int
    provider: str


class ToldConversation(Model, frozen=True):
    """A conversation as webhooks see it, when the event was made ready to be sent.

    Words are what is stored, unchecked: one that SQL by hand got wrong must not hold up others.
    """

    id: UUID
    inbox_id: UUID | None
    status: str
    priority: str | None
    priority_source: str
    tags: Sequence[str]
    tags_source: str
    summary: str | None
    ai: ToldAiView | None
    assigned_agent: AssignedAgent | None
    waiting_since: Timestamp | None
    snoozed_until: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp
    version: int


class ToldLead(Lead, frozen=True):
    """`verified` is False where e-mail and phone are only what a visitor typed."""

    verified: bool


class OutboxEntry(Struct, frozen=True, kw_only=True):
    """A fact that has been committed and not been made into deliveries yet.

    `subject_id` is the message, the conversation or the lead; deliveries with the same
    `ordering_key` (a conversation or a lead) keep their order.
    """

    position: int
    event: WebhookEvent
    ordering_key: UUID
    subject_id: UUID
    detail: Mapping[str, Any]
    created_at: datetime


class Sources(Struct, frozen=True):
    """What entries are about, by id; what has been erased meanwhile is missing."""

    messages: Mapping[UUID, Message]
    conversations: Mapping[UUID, tuple[ToldConversation, ToldLead]]
    leads: Mapping[UUID, ToldLead]
    agents: Mapping[UUID, AssignedAgent]


def render(entry: OutboxEntry, sources: Sources) -> str | None:
    """The body, None when what the entry tells of is no longer there."""
    data = _data(entry, sources)
    return None if data is None else encode(entry.event, timestamp(entry.created_at), data)


def encode(event: str, at: str, data: Mapping[str, Any]) -> str:
    """Of Standard Webhooks' recommended form; long texts are cut where it would be too long."""
    body = _encoded(event, at, {**data, "truncated": False})
    if len(body) < LARGEST_BODY_BYTES:
        return body.decode()
    for smaller in _smaller(msgspec.to_builtins(data)):
        body = _encoded(event, at, {**smaller, "truncated": True})
        if len(body) < LARGEST_BODY_BYTES:
            break
    return body.decode()


def _encoded(event: str, at: str, data: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode({"type": event, "timestamp": at, "data": data})


def _smaller(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Shorter and shorter texts; the lead's attributes go first, the message's files last."""
    yield {key: _cut(value, CUT_LENGTHS[0]) for key, value in data.items()}
    if "lead" in data:
        data = {**data, "lead": {**data["lead"], "attributes": {}}}
    for length in CUT_LENGTHS:
        yield {key: _cut(value, length) for key, value in data.items()}
    if "message" in data:
        data = {**data, "message": {**data["message"], "attachments": [], "mediaUrl": None}}
        yield {key: _cut(value, CUT_LENGTHS[-1]) for key, value in data.items()}


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= length else value[: length - 1] + "…"
    if isinstance(value, list):
        return [_cut(item, length) for item in value[:CUT_LIST_LENGTH]]
    if isinstance(value, dict):
        return {
            key: item if key in NEVER_CUT else _cut(item, length) for key, item in value.items()
        }
    return value


def _data(entry: OutboxEntry, sources: Sources) -> dict[str, Any] | None:
    if entry.event.startswith("lead."):
        lead = sources.leads.get(entry.subject_id)
        return {**entry.detail, "lead": lead} if lead else None
    known = sources.conversations.get(entry.ordering_key)
    if known is None:
        return None
    conversation, lead = known
    about = {"conversation": conversation, "lead": lead}
    if entry.event.startswith("message."):
        message = sources.messages.get(entry.subject_id)
        return {**entry.detail, "message": message, **about} if message else None
    if entry.event is WebhookEvent.CONVERSATION_ASSIGNED:
        return {
            "assignedAgent": _agent(entry.detail["agentId"], sources),
            "previousAgent": _agent(entry.detail["previousAgentId"], sources),
            **about,
        }
    return {**entry.detail, **about}


def _agent(agent_id: str | None, sources: Sources) -> AssignedAgent | None:
    return sources.agents.get(UUID(agent_id)) if agent_id else None
