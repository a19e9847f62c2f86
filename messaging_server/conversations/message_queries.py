"""SQL that reads messages: the log of each conversation."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.attachments import queries as attachment_queries
from messaging_server.database import Database, shown_time
from messaging_server.models import (
    Attachment,
    Caller,
    ContentType,
    DeliveryStatus,
    Message,
    Sender,
    SenderType,
    members,
)

_COLUMNS = f"""
    m.id, m.conversation_id, m.seq, m.sender_type, m.content_type, m.content_text, m.media_url,
    m.private, m.delivery, m.client_message_id, m.attachment_count,
    {shown_time("m.created_at")} as created_at,
    case m.sender_type when 'LEAD' then l.id when 'AGENT' then u.id end as sender_id,
    case m.sender_type
        when 'LEAD' then l.name
        when 'AGENT' then coalesce(u.name, split_part(u.email, '@', 1))
    end as sender_name
"""

_SENDER_TYPES = members(SenderType)
_CONTENT_TYPES = members(ContentType)

_JOINS = "join leads l on l.id = c.lead_id"
_SENDER = "left join users u on m.sender_type = 'AGENT' and u.id = m.sender_id"


class MessageCursor(Struct, frozen=True):
    """Goes on after `seq`, upwards or downwards."""

    seq: int
    ascending: bool


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
    sender_type = _SENDER_TYPES[row["sender_type"]]
    return Message(
        id=row["id"],
        conversation_id=row["conversation_id"],
        seq=row["seq"],
        sender_type=sender_type,
        sender=Sender(id=sender_id, name=row["sender_name"]) if sender_id else None,
        content_type=_CONTENT_TYPES[row["content_type"]],
        content_text=row["content_text"],
        media_url=media_url_of(row["media_url"], attachments),
        attachments=attachments,
        private=row["private"],
        status=status_of(sender_type, private=row["private"], delivery=row["delivery"]),
        client_message_id=row["client_message_id"],
        created_at=row["created_at"],
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
