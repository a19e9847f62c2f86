"""The nouns: what the API shows, in the shape in which it shows it.

Python names are snake_case and JSON names camelCase; times are strings in RFC 3339, UTC,
with `Z` and milliseconds. Nothing here knows storage or transport.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

Timestamp = Annotated[
    str, Meta(extra_json_schema={"format": "date-time"}, examples=["2026-01-31T12:00:00.000Z"])
]

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

TRANSCRIPT_MESSAGES = 30
SUMMARY_CHARACTERS = 200
PREVIEW_CHARACTERS = 120
MAX_TAGS = 5

VISIBLE = (
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""A pattern: some character that is seen. Neither space nor control, nor what Unicode calls
`Default_Ignorable_Code_Point` (zero-width and format characters, fillers, variation selectors).
JavaScript reads it alike, hence no escapes for the last ranges."""


def timestamp(at: datetime) -> str:
    """`at`, which must be aware, as the API writes it; a third of the time of `isoformat`."""
    text = msgspec.json.encode(at.astimezone(UTC) if at.tzinfo is not UTC else at).decode()
    return f"{text[1:24]}Z" if at.microsecond else f"{text[1:20]}.000Z"


def members(kind: type[E]) -> dict[str, E]:
    """By their values, for what is read in rows: a lookup takes a tenth of `kind(value)`."""
    return {member.value: member for member in kind}


class Role(StrEnum):
    ADMIN = "ADMIN"
    SALES_AGENT = "SALES_AGENT"


class Status(StrEnum):
    OPEN = "OPEN"
    SNOOZED = "SNOOZED"
    RESOLVED = "RESOLVED"


class Priority(StrEnum):
    HIGH = "HIGH"
    MEDIUM = "MEDIUM"
    LOW = "LOW"


class Source(StrEnum):
    """Who decided a priority or tags; what a person set, the AI does not overwrite."""

    AI = "AI"
    HUMAN = "HUMAN"


class SenderType(StrEnum):
    LEAD = "LEAD"
    AGENT = "AGENT"
    SYSTEM = "SYSTEM"


class ContentType(StrEnum):
    TEXT = "TEXT"
    IMAGE = "IMAGE"
    FILE = "FILE"
    AUDIO = "AUDIO"
    VIDEO = "VIDEO"


class InboxKind(StrEnum):
    """WIDGET: a website's visitors write in; API: another system writes for its people."""

    WIDGET = "WIDGET"
    API = "API"


class DeliveryStatus(StrEnum):
    """How far an agent's message got on its way to the lead; it never goes back.

    In this order: a message that failed may arrive after all, and what was read had arrived.
    """

    SENT = "sent"
    FAILED = "failed"
    DELIVERED = "delivered"
    READ = "read"


class Model(Struct, frozen=True, kw_only=True, rename="camel"):
    """The base of what the API sends."""


class Request(
    Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """The base of what the API receives; an unknown field is an error that names it."""


class Page(Model, Generic[T], frozen=True):
    """One page of a list; `next_cursor` is null on the last."""

    items: Sequence[T]
    next_cursor: str | None


class Caller(Model, frozen=True):
    """Who is asking: an active user with a valid token."""

    id: UUID
    email: str
    name: str | None
    role: Role

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


class User(Model, frozen=True):
    id: UUID
    email: str
    name: str | None
    role: Role
    active: bool
    created_at: Timestamp
    updated_at: Timestamp


class UserIdentity(Model, frozen=True):
    id: UUID
    email: str
    name: str | None
    role: Role


class Lead(Model, frozen=True):
    id: UUID
    name: str
    email: str | None
    phone: str | None
    attributes: Mapping[str, Any]
    created_at: Timestamp
    updated_at: Timestamp


class LeadDetails(Lead, frozen=True):
    """`verified` is False where e-mail and phone are only what a visitor typed.

    `possible_duplicates` are other leads with the same e-mail or phone, as far as they are seen.
    """

    verified: bool
    possible_duplicates: Sequence[Lead]


class AssignedAgent(Model, frozen=True):
    id: UUID
    email: str
    name: str | None


class Sender(Model, frozen=True):
    id: UUID
    name: str


class LastMessage(Model, frozen=True):
    """The newest public message; `preview` is its first characters on one line."""

    seq: int
    sender_type: SenderType
    content_type: ContentType
    preview: str
    created_at: Timestamp


class AiView(Model, frozen=True):
    """What the analyser thinks, also where a person decided otherwise."""

    summary: str
    priority: Priority
    tags: Sequence[str]
    updated_at: Timestamp
    analyzed_through_seq: int
    provider: str


class Urgency(Model, frozen=True):
    """How much an OPEN conversation whose lead waits needs a reply; grows with every hour."""

    score: float
    reason: str


class Conversation(Model, frozen=True):
    """A conversation as one user sees it: `unread_count` is that user's own.

    What depends on the viewer or the moment comes last, so that the rest is one piece of JSON.
    """

    id: UUID
    inbox_id: UUID | None
    lead: Lead
    assigned_agent: AssignedAgent | None
    status: Status
    priority: Priority | None
    priority_source: Source
    tags: Sequence[str]
    tags_source: Source
    summary: str | None
    ai: AiView | None
    last_message: LastMessage | None
    last_seq: int
    waiting_since: Timestamp | None
    snoozed_until: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp
    version: int
    unread_count: int
    urgency: Urgency | None


class Attachment(Model, frozen=True):
    """A file; `content_type` was found from its content. The addresses are short-lived.

    `width`, `height` and `thumbnail_url` are null unless it is an image that could be read.
    """

    id: UUID
    file_name: str
    content_type: str
    size_bytes: int
    url: str
    width: int | None
    height: int | None
    thumbnail_url: str | None


class Message(Model, frozen=True):
    """One entry of a conversation's log; `seq` has no gaps and follows the commit order.

    `status` is how far an agent's public message got; null for all others.
    """

    id: UUID
    conversation_id: UUID
    seq: int
    sender_type: SenderType
    sender: Sender | None
    content_type: ContentType
    content_text: str | None
    media_url: str | None
    attachments: Sequence[Attachment]
    private: bool
    status: DeliveryStatus | None
    client_message_id: str | None
    created_at: Timestamp


class PublicSender(Model, frozen=True):
    """An agent or the lead, as a visitor may know them."""

    name: str


class PublicMessage(Model, frozen=True):
    """A message as its lead sees it; `seq` counts the public messages, without gaps."""

    id: UUID
    conversation_id: UUID
    seq: int
    sender_type: SenderType
    sender: PublicSender | None
    content_type: ContentType
    content_text: str | None
    media_url: str | None
    attachments: Sequence[Attachment]
    client_message_id: str | None
    created_at: Timestamp


class TranscriptMessage(Struct, frozen=True, kw_only=True):
    """A public message as the analyser reads it."""

    sender: SenderType
    text: str


class AnalysisResult(Struct, frozen=True, kw_only=True):
    """What an analyser found; `priority_reason` is a short English sentence."""

    summary: str
    priority: Priority
    priority_reason: str | None
    tags: tuple[str, ...]
    language: str | None
    suggested_reply: str | None = None


class AnalysisStatus(StrEnum):
    """`INTERRUPTED`: the run was cut off, or somebody else had taken over; nothing was saved."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    INTERRUPTED = "INTERRUPTED"


class Verdict(StrEnum):
    CORRECT = "correct"
    WRONG = "wrong"


class Feedback(Model, frozen=True):
    """What a person thinks of an analysis; priority and tags are what would have been right."""

    verdict: Verdict
    priority: Priority | None
    tags: Sequence[str] | None
    user_id: UUID | None
    created_at: Timestamp


class Analysis(Model, frozen=True):
    """One run of an analyser over a conversation; part of its history and of the ledger."""

    id: UUID
    conversation_id: UUID
    status: AnalysisStatus
    trigger: str
    provider: str
    model: str
    prompt_version: str | None
    through_seq: int
    attempt: int
    summary: str | None
    priority: Priority | None
    priority_reason: str | None
    tags: Sequence[str]
    language: str | None
    suggested_reply: str | None
    error: str | None
    calls: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_micro_dollars: int
    latency_milliseconds: int | None
    feedback: Feedback | None
    created_at: Timestamp


class Inbox(Model, frozen=True):
    """Where leads write in; `secret_prefix` is enough to recognise the secret by."""

    id: UUID
    name: str
    kind: InboxKind
    allowed_origins: Sequence[str]
    greeting: str | None
    secret_prefix: str
    previous_secret_valid_until: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp


class ApiKey(Model, frozen=True):
    id: UUID
    inbox_id: UUID
    name: str
    prefix: str
    created_at: Timestamp
    last_used_at: Timestamp | None


class KeyIdentity(Struct, frozen=True):
    """An API key and the inbox for which it speaks."""

    id: UUID
    inbox_id: UUID


class Visitor(Struct, frozen=True):
    """The lead for whom a session of the public API speaks, in one inbox.

    `verified`: the website's own server has said who it is.
    """

    lead_id: UUID
    inbox_id: UUID
    name: str
    verified: bool


class WebhookEvent(StrEnum):
    """What webhooks can be told."""

    MESSAGE_CREATED = "message.created"
    MESSAGE_STATUS = "message.status"
    CONVERSATION_CREATED = "conversation.created"
    CONVERSATION_UPDATED = "conversation.updated"
    CONVERSATION_ASSIGNED = "conversation.assigned"
    CONVERSATION_STATUS_CHANGED = "conversation.status_changed"
    CONVERSATION_AI_UPDATED = "conversation.ai_updated"
    LEAD_CREATED = "lead.created"
    LEAD_UPDATED = "lead.updated"
    LEAD_MERGED = "lead.merged"


class WebhookDeliveryStatus(StrEnum):
    """`PENDING`: still to be attempted, for the first time or again. `FAILED`: given up."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class Webhook(Model, frozen=True):
    """An address that is told of events, of all of them when `events` is empty.

    A disabled one is paused; `disabled_reason` says why the server itself disabled it.
    `failing_since` is when the first of nothing but failures was.
    """

    id: UUID
    url: str
    description: str | None
    events: Sequence[WebhookEvent]
    include_private_notes: bool
    enabled: bool
    disabled_reason: str | None
    failing_since: Timestamp | None
    created_at: Timestamp
    updated_at: Timestamp


class WebhookDelivery(Model, frozen=True):
    """One event for one webhook; `id` is the header `webhook-id` of every attempt."""

    id: UUID
    event: WebhookEvent
    status: WebhookDeliveryStatus
    attempts: int
    next_attempt_at: Timestamp | None
    response_status: int | None
    error: str | None
    created_at: Timestamp
    finished_at: Timestamp | None
