"""SQL that appends messages: one statement and one round trip, for one message or for many.

The row lock of the conversation makes `seq` gapless and equal to the order of commits.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct, field
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.models import Attachment, ContentType, SenderType


class Debounce(Struct, frozen=True):
    """How long a conversation must be quiet before it is analysed, and the longest wait."""

    quiet: timedelta
    max_wait: timedelta


class Draft(Struct, frozen=True, kw_only=True):
    """A message that has not been numbered yet.

    It is refused when the conversation is not assigned to `only_agent_id`, or has a newer public
    message than `expected_last_seq`.
    """

    id: UUID = field(default_factory=uuid7)
    conversation_id: UUID
    sender_type: SenderType
    sender_id: UUID | None
    content_type: ContentType
    content_text: str | None
    media_url: str | None
    preview: str
    private: bool = False
    client_message_id: str | None = None
    external_id: str | None = None
    inbox_id: UUID | None = None  # in which `external_id` is known
    attachment_ids: tuple[UUID, ...] = ()
    only_agent_id: UUID | None = None
    expected_last_seq: int | None = None


class Appended(Struct, frozen=True):
    """What numbering a draft gave, with the conversation as of then."""

    seq: int
    public_seq: int | None
    created_at: datetime
    version: int
    assigned_agent_id: UUID | None
    attachments: tuple[Attachment, ...] = ()


PARAMETERS = {
    "id": "uuid",
    "conversation_id": "uuid",
    "sender_type": "text",
    "sender_id": "uuid",
    "content_type": "text",
    "content_text": "text",
    "media_url": "text",
    "preview": "text",
    "client_message_id": "text",
    "external_id": "text",
    "inbox_id": "uuid",
    "attachment_count": "integer",
    "only_agent_id": "uuid",
    "expected_last_seq": "integer",
}
"""What a statement gets of each draft, with its type; then come the two of the debounce, if any."""

_NAMES = ", ".join(PARAMETERS)
_NUMBERED = list(enumerate(PARAMETERS.values(), start=1))
_ONE = f"(values ({', '.join(f'${n}::{kind}' for n, kind in _NUMBERED)})) draft ({_NAMES})"
_MANY = f"unnest({', '.join(f'${n}::{kind}[]' for n, kind in _NUMBERED)}) draft ({_NAMES})"

# One message waits for whoever has its conversation locked. Many must not, for the sake of the
# others: what is locked is left out, and comes again alone. So is what changed since the statement
# began: to come upon the version from before would mean to wait after all, behind whoever waits
# for the lock that is held here.
_UNLOCKED = f"""
draft as (
    select draft.*, c.ctid as place
    from {_MANY} join conversations c on c.id = draft.conversation_id
    order by c.id
    for no key update of c skip locked
),
"""
_UNCHANGED = "and c.ctid = draft.place"

_EVERY_MESSAGE = """
    last_seq = c.last_seq + 1,
    last_activity_at = greatest(now(), c.last_activity_at),
    version = c.version + 1,
    updated_at = now()
"""

# A failed analysis keeps its back-off, one that was given up gets a new chance.
_PUBLIC_MESSAGE = """,
    last_public_seq = c.last_seq + 1,
    public_count = c.public_count + 1,
    last_message_sender_type = draft.sender_type,
    last_message_content_type = draft.content_type,
    last_message_preview = draft.preview,
    last_message_at = greatest(now(), c.last_activity_at),
    analysis_due_at = case
        when c.analysis_attempts > 0 and c.analysis_failed_at is null then c.analysis_due_at
        else least(now() + $15, coalesce(c.analysis_first_at, now()) + $16) end,
    analysis_first_at = coalesce(c.analysis_first_at, now()),
    analysis_trigger = 'message',
    analysis_attempts = case when c.analysis_failed_at is null then c.analysis_attempts else 0 end,
    analysis_error = case when c.analysis_failed_at is null then c.analysis_error end,
    analysis_failed_at = null
"""

_LEAD_MESSAGE = """,
    lead_message_count = c.lead_message_count + 1,
    waiting_since = coalesce(c.waiting_since, now()),
    first_lead_message_at = coalesce(c.first_lead_message_at, now()),
    status = 'OPEN',
    snoozed_until = null
"""

_REPLY = """,
    waiting_since = null,
    first_reply_seconds = coalesce(
        c.first_reply_seconds, extract(epoch from now() - c.first_lead_message_at)
    )
"""

_APPEND = """
with {unlocked} conversation as (
    update conversations c set {changes}
    from {drafts}
    where c.id = draft.conversation_id
        and (draft.only_agent_id is null or c.assigned_agent_id = draft.only_agent_id)
        and (draft.expected_last_seq is null or c.last_public_seq <= draft.expected_last_seq)
        {condition}
    returning draft.*, c.last_seq, c.public_count, c.lead_message_count, c.last_activity_at,
        c.version, c.assigned_agent_id
),
message as (
    insert into messages (
        id, conversation_id, seq, public_seq, sender_type, sender_id, content_type, content_text,
        media_url, private, client_message_id, external_id, inbox_id, attachment_count,
        lead_message_count, created_at
    )
    select id, conversation_id, last_seq, {public_seq}, sender_type, sender_id, content_type,
        content_text, media_url, {private}, client_message_id, external_id, inbox_id,
        attachment_count, lead_message_count, last_activity_at
    from conversation
)
select id, last_seq, {public_seq} as public_seq, last_activity_at, version, assigned_agent_id
from conversation
"""


class Statement(Struct, frozen=True):
    """How messages of one kind are appended: one alone, or many at once."""

    one: str
    many: str
    debounced: bool = True


def _statement(changes: str, *, condition: str = "", private: bool = False) -> Statement:
    clauses = {
        "changes": _EVERY_MESSAGE + changes,
        "private": str(private).lower(),
        "public_seq": "null::integer" if private else "public_count",
    }
    return Statement(
        one=_APPEND.format(unlocked="", drafts=_ONE, condition=condition, **clauses),
        many=_APPEND.format(
            unlocked=_UNLOCKED, drafts="draft", condition=f"{condition} {_UNCHANGED}", **clauses
        ),
        debounced=not private,
    )


# The conversation may have gone to another lead while the statement waited for its lock.
FROM_LEAD = _statement(_PUBLIC_MESSAGE + _LEAD_MESSAGE, condition="and c.lead_id = draft.sender_id")
REPLY = _statement(_PUBLIC_MESSAGE + _REPLY)
NOTE = _statement("", private=True)


def statement_of(draft: Draft) -> Statement:
    if draft.private:
        return NOTE
    return FROM_LEAD if draft.sender_type is SenderType.LEAD else REPLY


async def append_message(database: Database, draft: Draft, debounce: Debounce) -> Appended | None:
    """Number and store `draft`, and make the conversation due for analysis.

    None when the conversation is not there, not that of the lead who writes, or the draft's
    conditions don't hold. Raises `asyncpg.UniqueViolationError` when the client's or the external
    id was used before.
    """
    statement = statement_of(draft)
    row = await database.fetch_row(
        statement.one, *values_of(draft), *_intervals(statement, debounce)
    )
    return _to_appended(row) if row else None


async def append_messages(
    database: Database, statement: Statement, drafts: Sequence[Draft], debounce: Debounce
) -> dict[UUID, Appended]:
    """Those of the drafts that could be appended at once, by id; none when any breaks a rule.

    Their conversations must differ, and `statement` be that of all of them. What is missing was
    refused, or its conversation is locked: `append_message` tells. What that raises, this raises.
    """
    columns = zip(*(values_of(draft) for draft in drafts), strict=True)
    rows = await database.fetch(statement.many, *columns, *_intervals(statement, debounce))
    return {row["id"]: _to_appended(row) for row in rows}


def values_of(draft: Draft) -> tuple[Any, ...]:
    """In the order of `PARAMETERS`."""
    return (
        draft.id,
        draft.conversation_id,
        draft.sender_type,
        draft.sender_id,
        draft.content_type,
        draft.content_text,
        draft.media_url,
        draft.preview,
        draft.client_message_id,
        draft.external_id,
        draft.inbox_id,
        len(draft.attachment_ids),
        draft.only_agent_id,
        draft.expected_last_seq,
    )


def _intervals(statement: Statement, debounce: Debounce) -> tuple[timedelta, ...]:
    return (debounce.quiet, debounce.max_wait) if statement.debounced else ()


def _to_appended(row: Any) -> Appended:
    return Appended(
        row["last_seq"],
        row["public_seq"],
        row["last_activity_at"],
        row["version"],
        row["assigned_agent_id"],
    )
