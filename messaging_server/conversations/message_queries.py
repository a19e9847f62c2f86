"""SQL about messages: the log of each conversation.

Appending is one statement and one round trip. The row lock of the conversation makes `seq`
gapless and equal to the order of commits.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.attachments import queries as attachment_queries
from messaging_server.database import Database
from messaging_server.models import (
    Attachment,
    Caller,
    ContentType,
    DeliveryStatus,
    Message,
    Sender,
    SenderType,
    timestamp,
)

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
    last_message_sender_type = $6,
    last_message_content_type = $7,
    last_message_preview = $14,
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
with conversation as (
    update conversations c set {changes}
    where c.id = $1 and ($2::uuid is null or c.assigned_agent_id = $2)
        and ($3::integer is null or c.last_public_seq <= $3){condition}
    returning c.id, c.last_seq, c.public_count, c.lead_message_count, c.last_activity_at,
        c.version, c.assigned_agent_id
),
message as (
    insert into messages (
        id, conversation_id, seq, public_seq, sender_type, sender_id, content_type, content_text,
        media_url, private, client_message_id, external_id, inbox_id, attachment_count,
        lead_message_count, created_at
    )
    select $4, c.id, c.last_seq, {public_seq}, $6, $5, $7, $8, $9, {private}, $10, $11, $12, $13,
        c.lead_message_count, c.last_activity_at
    from conversation c
)
select last_seq, {public_seq} as public_seq, last_activity_at, version, assigned_agent_id
from conversation c
"""

# The conversation may have gone to another lead while the statement waited for its lock.
APPEND_FROM_LEAD = _APPEND.format(
    changes=_EVERY_MESSAGE + _PUBLIC_MESSAGE + _LEAD_MESSAGE,
    condition=" and c.lead_id = $5",
    private="false",
    public_seq="c.public_count",
)
APPEND_REPLY = _APPEND.format(
    changes=_EVERY_MESSAGE + _PUBLIC_MESSAGE + _REPLY,
    condition="",
    private="false",
    public_seq="c.public_count",
)
APPEND_NOTE = _APPEND.format(
    changes=_EVERY_MESSAGE, condition="", private="true", public_seq="null::integer"
)

_COLUMNS = """
    m.id, m.conversation_id, m.seq, m.sender_type, m.content_type, m.content_text, m.media_url,
    m.private, m.delivery, m.client_message_id, m.attachment_count, m.created_at,
    case m.sender_type when 'LEAD' then l.id when 'AGENT' then u.id end as sender_id,
    case m.sender_type
        when 'LEAD' then l.name
        when 'AGENT' then coalesce(u.name, split_part(u.email, '@', 1))
    end as sender_name
"""

_JOINS = "join leads l on l.id = c.lead_id"
_SENDER = "left join users u on m.sender_type = 'AGENT' and u.id = m.sender_id"


class Debounce(Struct, frozen=True):
    """How long a conversation must be quiet before it is analysed, and the longest wait."""

    quiet: timedelta
    max_wait: timedelta


class Draft(Struct, frozen=True, kw_only=True):
    """A message that has not been numbered yet."""

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


class Appended(Struct, frozen=True):
    """What numbering a draft gave, with the conversation as of then."""

    id: UUID
    seq: int
    public_seq: int | None
    created_at: datetime
    version: int
    assigned_agent_id: UUID | None
    attachments: tuple[Attachment, ...] = ()


class MessageCursor(Struct, frozen=True):
    """Goes on after `seq`, upwards or downwards."""

    seq: int
    ascending: bool


async def append_message(
    database: Database,
    draft: Draft,
    *,
    only_agent_id: UUID | None,
    expected_last_seq: int | None,
    debounce: Debounce,
) -> Appended | None:
    """Number and store `draft`, and make the conversation due for analysis.

    None when the conversation is not there, not assigned to `only_agent_id`, not that of the
    lead who writes, or has a newer public message than expected. Raises
    `asyncpg.UniqueViolationError` when the client's or the external id was used before.
    """
    arguments = [
        draft.conversation_id,
        only_agent_id,
        expected_last_seq,
        message_id := uuid7(),
        draft.sender_id,
        draft.sender_type,
        draft.content_type,
        draft.content_text,
        draft.media_url,
        draft.client_message_id,
        draft.external_id,
        draft.inbox_id,
        len(draft.attachment_ids),
    ]
    if draft.private:
        row = await database.fetch_row(APPEND_NOTE, *arguments)
    else:
        statement = APPEND_FROM_LEAD if draft.sender_type is SenderType.LEAD else APPEND_REPLY
        row = await database.fetch_row(
            statement, *arguments, draft.preview, debounce.quiet, debounce.max_wait
        )
    if row is None:
        return None
    return Appended(
        message_id,
        row["last_seq"],
        row["public_seq"],
        row["last_activity_at"],
        row["version"],
        row["assigned_agent_id"],
    )


DELIVERY = tuple(DeliveryStatus)
"""The statuses by the number that is stored."""


def status_of(
    sender_type: SenderType, *, private: bool, delivery: int = 0
) -> DeliveryStatus | None:
    """Only what an agent says to the lead is on its way anywhere."""
    return DELIVERY[delivery] if sender_type is SenderType.AGENT and not private else None


async def to_messages(database: Database, rows: Sequence[Mapping[str, Any]]) -> list[Message]:
    """With their attachments, which take a second statement where there are any."""
    found = await attachments_of(database, rows)
    return [to_message(row, found.get(row["id"], ())) for row in rows]


async def attachments_of(
    database: Database, rows: Sequence[Mapping[str, Any]]
) -> dict[UUID, tuple[Attachment, ...]]:
    """Those of the messages in `rows`, by message."""
    message_ids = [row["id"] for row in rows if row["attachment_count"]]
    return await attachment_queries.fetch_of_messages(database, message_ids)


def media_url_of(given: str | None, attachments: Sequence[Attachment]) -> str | None:
    """The address that the sender gave, else that of the first attachment."""
    return attachments[0].url if given is None and attachments else given


def to_message(row: Mapping[str, Any], attachments: Sequence[Attachment]) -> Message:
    sender_id = row["sender_id"]
    sender_type = SenderType(row["sender_type"])
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        seq=row["seq"],
        sender_type=sender_type,
        sender=Sender(id=sender_id, name=row["sender_name"]) if sender_id else None,
        content_type=ContentType(row["content_type"]),
        content_text=row["content_text"],
        media_url=media_url_of(row["media_url"], attachments),
        attachments=attachments,
        private=row["private"],
        status=status_of(sender_type, private=row["private"], delivery=row["delivery"]),
        client_message_id=row["client_message_id"],
        created_at=timestamp(row["created_at"]),
    )


async def list_messages(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    *,
    limit: int,
    cursor: MessageCursor | None,
) -> tuple[list[Message], MessageCursor | None] | None:
    """Newest first without a cursor, else in its direction; None when not visible."""
    ascending = cursor is not None and cursor.ascending
    rows = await database.fetch(
        f"""
        select {_COLUMNS}
        from conversations c {_JOINS}
        left join lateral (
            select id, conversation_id, seq, sender_type, sender_id, content_type, content_text,
                media_url, private, delivery, client_message_id, attachment_count, created_at
            from messages
            where conversation_id = c.id
                and ($4::integer is null or seq {">" if ascending else "<"} $4)
            order by seq {"asc" if ascending else "desc"}
            limit {limit + 1}
        ) m on true
        {_SENDER}
        where c.id = $3 and ($1 or c.assigned_agent_id = $2)
        order by m.seq {"asc" if ascending else "desc"}
        """,
        caller.is_admin,
        caller.id,
        conversation_id,
        cursor.seq if cursor else None,
    )
    if not rows:
        return None
    shown = [row for row in rows[:limit] if row["id"] is not None]
    messages = await to_messages(database, shown)
    more = len(rows) > limit
    return messages, MessageCursor(messages[-1].seq, ascending) if more else None


async def fetch_messages_between(
    database: Database, conversation_id: UUID, *, after_seq: int, through_seq: int
) -> list[Message]:
    """Oldest first, without a question of access: for what has been granted before."""
    rows = await database.fetch(
        f"""
        select {_COLUMNS}
        from messages m join conversations c on c.id = m.conversation_id {_JOINS} {_SENDER}
        where m.conversation_id = $1 and m.seq > $2 and m.seq <= $3
        order by m.seq
        """,
        conversation_id,
        after_seq,
        through_seq,
    )
    return await to_messages(database, rows)


async def fetch_by_ids(database: Database, message_ids: Sequence[UUID]) -> dict[UUID, Message]:
    """Without a question of access: for what the server itself tells others."""
    rows = await database.fetch(
        f"""
        select {_COLUMNS}
        from messages m join conversations c on c.id = m.conversation_id {_JOINS} {_SENDER}
        where m.id = any($1::uuid[])
        """,
        message_ids,
    )
    return {message.id: message for message in await to_messages(database, rows)}


async def fetch_by_client_id(
    database: Database, conversation_id: UUID, sender_id: UUID, client_message_id: str
) -> Message | None:
    return await _fetch_one(
        database,
        "m.conversation_id = $1 and m.sender_id = $2 and m.client_message_id = $3",
        conversation_id,
        sender_id,
        client_message_id,
    )


async def fetch_by_external_id(
    database: Database, inbox_id: UUID, external_id: str
) -> tuple[Message, UUID] | None:
    """The message that the other system of this inbox knows by this id, and its lead."""
    row = await database.fetch_row(
        f"""
        select {_COLUMNS}, c.lead_id
        from messages m join conversations c on c.id = m.conversation_id {_JOINS} {_SENDER}
        where m.inbox_id = $1 and m.external_id = $2
        """,
        inbox_id,
        external_id,
    )
    return ((await to_messages(database, [row]))[0], row["lead_id"]) if row else None


async def _fetch_one(database: Database, condition: str, *arguments: Any) -> Message | None:
    row = await database.fetch_row(
        f"""
        select {_COLUMNS}
        from messages m join conversations c on c.id = m.conversation_id {_JOINS} {_SENDER}
        where {condition}
        """,
        *arguments,
    )
    return (await to_messages(database, [row]))[0] if row else None
