"""SQL about what a lead sees of its own conversation: public messages only, by `public_seq`.

A visitor's conversation is the lead's newest one in the visitor's inbox. No column here tells
of private notes, agents' e-mails or the AI.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.conversations.message_queries import (
    DELIVERY,
    attachments_of,
    media_url_of,
)
from messaging_server.database import Database, shown_time
from messaging_server.models import (
    Attachment,
    ContentType,
    DeliveryStatus,
    PublicMessage,
    PublicSender,
    SenderType,
    Visitor,
)

SILENT_LIFETIME = timedelta(days=2)
VISITOR_LIFETIME = timedelta(days=180)
"""How long a visitor's token is good without use: before the first message, and after it."""

AGENT = "Agent"
"""Who answers, where an agent has no name."""

NEWEST = """
    select c.id, c.public_count, c.lead_id
    from conversations c
    where c.lead_id = $1 and c.inbox_id = $2
    order by c.last_activity_at desc, c.id desc
    limit 1
"""
"""$1: the lead; $2: the inbox."""

COLUMNS = f"""
    m.id, m.conversation_id, m.public_seq, m.sender_type, m.content_type, m.content_text,
    m.media_url, m.attachment_count, {shown_time("m.created_at")} as created_at,
    case m.sender_type when 'LEAD' then m.client_message_id end as client_message_id,
    case m.sender_type
        when 'LEAD' then l.name
        when 'AGENT' then coalesce(u.name, '{AGENT}')
    end as sender_name
"""

_SENDER = """
    join leads l on l.id = c.lead_id
    left join users u on m.sender_type = 'AGENT' and u.id = m.sender_id
"""


class PublicMessageCursor(Struct, frozen=True):
    """Goes on after public number `seq` of this conversation, upwards or downwards."""

    conversation_id: UUID | None
    seq: int
    ascending: bool


class DeliveryChange(Struct, frozen=True):
    """A message that got further."""

    conversation_id: UUID
    message_id: UUID
    seq: int
    status: DeliveryStatus
    error: str | None = None


async def to_public_messages(
    database: Database, rows: Sequence[Mapping[str, Any]]
) -> list[PublicMessage]:
    """With their attachments, which take a second statement where there are any."""
    found = await attachments_of(database, rows)
    return [to_public_message(row, found.get(row["id"], ())) for row in rows]


def to_public_message(row: Mapping[str, Any], attachments: Sequence[Attachment]) -> PublicMessage:
    name = row["sender_name"]
    return PublicMessage(
        id=row["id"],
        conversation_id=row["conversation_id"],
        seq=row["public_seq"],
        sender_type=SenderType(row["sender_type"]),
        sender=PublicSender(name=name) if name is not None else None,
        content_type=ContentType(row["content_type"]),
        content_text=row["content_text"],
        media_url=media_url_of(row["media_url"], attachments),
        attachments=attachments,
        client_message_id=row["client_message_id"],
        created_at=row["created_at"],
    )


async def fetch_newest(database: Database, visitor: Visitor) -> tuple[UUID, int] | None:
    """The visitor's conversation and the number of its newest public message."""
    row = await database.fetch_row(NEWEST, visitor.lead_id, visitor.inbox_id)
    return (row["id"], row["public_count"]) if row else None


async def fetch_newest_of_many(
    database: Database, visitors: Sequence[Visitor]
) -> list[UUID | None]:
    """The conversation of each visitor."""
    rows = await database.fetch(
        """
        select newest.id
        from unnest($1::uuid[], $2::uuid[]) with ordinality v (lead_id, inbox_id, position)
        left join lateral (
            select c.id
            from conversations c
            where c.lead_id = v.lead_id and c.inbox_id = v.inbox_id
            order by c.last_activity_at desc, c.id desc
            limit 1
        ) newest on true
        order by v.position
        """,
        [visitor.lead_id for visitor in visitors],
        [visitor.inbox_id for visitor in visitors],
    )
    return [row["id"] for row in rows]


async def lock_lead(database: Database, visitor: Visitor) -> bool:
    """Whether the lead is there, which then stays so until the end of the transaction.

    Two first messages must not make two conversations: the second waits here.
    """
    found = await database.fetch_value(
        "select true from leads where id = $1 and inbox_id = $2 for no key update",
        visitor.lead_id,
        visitor.inbox_id,
    )
    return bool(found)


async def list_messages(
    database: Database, visitor: Visitor, *, limit: int, cursor: PublicMessageCursor | None
) -> tuple[list[PublicMessage], PublicMessageCursor | None]:
    """Newest first without a cursor, else in its direction; empty without a conversation."""
    ascending = cursor is not None and cursor.ascending
    if cursor is None:
        position = "and $4::integer is null"
    elif ascending:
        position = "and seq > $4 and public_seq > $4"
    else:
        position = """
            and seq < (
                select p.seq from messages p
                where p.conversation_id = c.id and p.seq >= $4 and p.public_seq = $4
                order by p.seq
                limit 1
            )
        """
    chosen = cursor.conversation_id if cursor else None
    rows = await database.fetch(
        f"""
        with c as (
            select c.id, c.lead_id
            from conversations c
            where c.lead_id = $1 and c.inbox_id = $2 and ($3::uuid is null or c.id = $3)
            order by c.last_activity_at desc, c.id desc
            limit 1
        )
        select {COLUMNS}
        from c
        cross join lateral (
            select id, conversation_id, seq, public_seq, sender_type, sender_id, content_type,
                content_text, media_url, attachment_count, client_message_id, created_at
            from messages
            where conversation_id = c.id and not private {position}
            order by seq {"asc" if ascending else "desc"}
            limit {limit + 1}
        ) m
        {_SENDER}
        order by m.seq {"asc" if ascending else "desc"}
        """,
        visitor.lead_id,
        visitor.inbox_id,
        chosen,
        cursor.seq if cursor else None,
    )
    messages = await to_public_messages(database, rows[:limit])
    if len(rows) <= limit:
        return messages, None
    last = messages[-1]
    return messages, PublicMessageCursor(last.conversation_id, last.seq, ascending)


async def fetch_between(
    database: Database, conversation_id: UUID, *, after_seq: int, through_seq: int
) -> list[PublicMessage]:
    """Oldest first, without a question of access: for what has been granted before."""
    rows = await database.fetch(
        f"""
        select {COLUMNS}
        from messages m join conversations c on c.id = m.conversation_id {_SENDER}
        where m.conversation_id = $1 and m.seq > $2 and m.public_seq > $2 and m.public_seq <= $3
            and not m.private
        order by m.seq
        limit $4
        """,
        conversation_id,
        after_seq,
        through_seq,
        max(0, through_seq - after_seq),
    )
    return await to_public_messages(database, rows)


async def fetch_text_bytes(
    database: Database, conversation_id: UUID, *, after_seq: int, through_seq: int
) -> int:
    """How much text `fetch_between` would read; the texts themselves are not."""
    found: int = await database.fetch_value(
        """
        select coalesce(sum(octet_length(content_text)), 0)
        from messages
        where conversation_id = $1 and seq > $2 and public_seq > $2 and public_seq <= $3
            and not private
        """,
        conversation_id,
        after_seq,
        through_seq,
    )
    return found


async def fetch_by_client_id(
    database: Database, visitor: Visitor, conversation_id: UUID, client_message_id: str
) -> PublicMessage | None:
    row = await database.fetch_row(
        f"""
        select {COLUMNS}
        from messages m join conversations c on c.id = m.conversation_id {_SENDER}
        where m.conversation_id = $3 and m.sender_id = $1 and m.client_message_id = $4
            and c.lead_id = $1 and c.inbox_id = $2
        """,
        visitor.lead_id,
        visitor.inbox_id,
        conversation_id,
        client_message_id,
    )
    return (await to_public_messages(database, [row]))[0] if row else None


async def keep_visitor(database: Database, visitor: Visitor) -> None:
    """The visitor has written: from now on the token is good for longer."""
    await database.execute(
        "update visitors set expires_at = now() + $2 where lead_id = $1",
        visitor.lead_id,
        VISITOR_LIFETIME,
    )


async def fetch_heads(database: Database, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
    """`public_count` by conversation; those that are gone are missing."""
    rows = await database.fetch(
        "select id, public_count from conversations where id = any($1)", list(conversation_ids)
    )
    return {row["id"]: row["public_count"] for row in rows}


async def delete_expired_visitors(database: Database) -> None:
    """Forget tokens that have run out, with their leads where these never wrote."""
    await database.execute(
        """
        with expired as (
            select v.id, l.id as lead_id
            from visitors v join leads l on l.id = v.lead_id
            where v.expires_at <= now()
            limit 2000
            for update of l skip locked
        ),
        forgotten as (
            delete from visitors v
            using expired e
            where v.id = e.id and v.expires_at <= now()
            returning v.lead_id
        )
        delete from leads l
        using forgotten f
        where l.id = f.lead_id and l.identity is null
            and not exists (select 1 from conversations c where c.lead_id = l.id)
        """
    )


async def update_delivery_through(
    database: Database,
    visitor: Visitor,
    seq: int,
    status: DeliveryStatus,
    *,
    conversation_id: UUID | None,
) -> list[DeliveryChange]:
    """Raise agents' messages through public number `seq` to `status`; oldest first.

    Those of this conversation of the visitor; None: of the newest.

    What a visitor has marked is always a beginning of the log, so the newest message that is
    there already ends the search.
    """
    rows = await database.fetch(
        """
        with c as (
            select c.id
            from conversations c
            where c.lead_id = $1 and c.inbox_id = $2 and ($5::uuid is null or c.id = $5)
            order by c.last_activity_at desc, c.id desc
            limit 1
        ),
        known as (
            select coalesce((
                select m.seq from messages m
                where m.conversation_id = c.id and m.public_seq <= $3
                    and m.sender_type = 'AGENT' and m.delivery >= $4
                order by m.seq desc
                limit 1
            ), 0) as seq
            from c
        ),
        behind as (
            select m.id
            from messages m
            where m.conversation_id = (select id from c) and m.seq > (select seq from known)
                and m.public_seq <= $3 and m.sender_type = 'AGENT' and not m.private
                and m.delivery < $4
            order by m.id
            for no key update of m
        ),
        changed as (
            update messages m
            set delivery = $4, delivery_error = null
            from behind
            where m.id = behind.id and m.delivery < $4
            returning m.conversation_id, m.id, m.seq
        )
        select conversation_id, id, seq from changed order by seq
        """,
        visitor.lead_id,
        visitor.inbox_id,
        seq,
        DELIVERY.index(status),
        conversation_id,
    )
    return [DeliveryChange(row["conversation_id"], row["id"], row["seq"], status) for row in rows]
