"""What a visitor does in the one conversation that it has with an inbox.

A visitor knows messages by their public numbers and sees neither private notes nor who an agent
is beyond the name; access is the lead's and the inbox's, in each statement.
"""

from collections.abc import Sequence
from uuid import UUID

import asyncpg
from msgspec import Struct

from messaging_server.conversations import queries, visitor_queries
from messaging_server.conversations.append_queries import Draft
from messaging_server.conversations.appender import Appender
from messaging_server.conversations.messages import (
    ClientMessageId,
    MessageWithAttachments,
    announce,
    append,
    check_content,
    is_same,
    preview_of,
)
from messaging_server.conversations.visitor_queries import (
    AGENT,
    DeliveryChange,
    PublicMessageCursor,
)
from messaging_server.database import Database
from messaging_server.errors import Conflict, Unauthenticated
from messaging_server.events import ConversationCreated, MessageStatusChanged
from messaging_server.models import (
    DeliveryStatus,
    Message,
    PublicMessage,
    PublicSender,
    Sender,
    SenderType,
    Visitor,
)

SESSION_ENDED = "The session has ended"
PUBLISHED_CHANGES = 200


class NewVisitorMessage(MessageWithAttachments, frozen=True):
    client_message_id: ClientMessageId | None = None


class VisitorOpened(Struct, frozen=True):
    """The visitor's conversation, None before the first message, and what came after a number.

    `last_seq` and the messages' numbers are public ones; `reset`: there is too much of it.
    """

    conversation_id: UUID | None
    last_seq: int
    messages: Sequence[PublicMessage]
    reset: bool


class VisitorSent(Struct, frozen=True):
    """`created` is False when the message had been sent before."""

    message: PublicMessage
    created: bool


def to_public(message: Message, public_seq: int, *, agent_name: str | None) -> PublicMessage:
    """`message`, which must not be private, as its lead may see it.

    `agent_name` is the one of the event: an agent's `message.sender` may be made of the e-mail.
    """
    from_lead = message.sender_type is SenderType.LEAD
    name = message.sender.name if message.sender else None
    if message.sender_type is SenderType.AGENT:
        name = agent_name or AGENT
    return PublicMessage(
        id=message.id,
        conversation_id=message.conversation_id,
        seq=public_seq,
        sender_type=message.sender_type,
        sender=PublicSender(name=name) if name is not None else None,
        content_type=message.content_type,
        content_text=message.content_text,
        media_url=message.media_url,
        attachments=message.attachments,
        client_message_id=message.client_message_id if from_lead else None,
        created_at=message.created_at,
    )


# --- Reading ----------------------------------------------------------------------------------


async def open_visitor_conversation(
    database: Database, visitor: Visitor, *, after_seq: int | None, limit: int, max_bytes: int
) -> VisitorOpened:
    """The log from `after_seq` to the `last_seq` that is returned, if there is that little.

    That is at most `limit` messages with `max_bytes` of text; what is more is not read.
    """
    found = await visitor_queries.fetch_newest(database, visitor)
    if found is None:
        return VisitorOpened(None, 0, (), reset=False)
    conversation_id, last_seq = found
    if after_seq is None or after_seq >= last_seq:
        return VisitorOpened(conversation_id, last_seq, (), reset=False)
    if last_seq - after_seq > limit:
        return VisitorOpened(conversation_id, last_seq, (), reset=True)
    text_bytes = await visitor_queries.fetch_text_bytes(
        database, conversation_id, after_seq=after_seq, through_seq=last_seq
    )
    if text_bytes > max_bytes:
        return VisitorOpened(conversation_id, last_seq, (), reset=True)
    messages = await fetch_public_messages_between(
        database, conversation_id, after_seq=after_seq, through_seq=last_seq
    )
    return VisitorOpened(conversation_id, last_seq, messages, reset=False)


async def fetch_public_messages_between(
    database: Database, conversation_id: UUID, *, after_seq: int, through_seq: int
) -> list[PublicMessage]:
    """Oldest first, by public numbers; for visitors that were let in before."""
    return await visitor_queries.fetch_between(
        database, conversation_id, after_seq=after_seq, through_seq=through_seq
    )


async def fetch_public_heads(
    database: Database, conversation_ids: Sequence[UUID]
) -> dict[UUID, int]:
    """The newest public number by conversation; those that are gone are missing."""
    return await visitor_queries.fetch_heads(database, conversation_ids)


async def fetch_visitor_conversations(
    database: Database, visitors: Sequence[Visitor]
) -> list[UUID | None]:
    """The conversation of each visitor, None before the first message."""
    return await visitor_queries.fetch_newest_of_many(database, visitors)


async def list_public_messages(
    database: Database, visitor: Visitor, *, limit: int, cursor: PublicMessageCursor | None
) -> tuple[list[PublicMessage], PublicMessageCursor | None]:
    return await visitor_queries.list_messages(database, visitor, limit=limit, cursor=cursor)


# --- Writing ----------------------------------------------------------------------------------


async def send_visitor_message(
    database: Database, appender: Appender, visitor: Visitor, message: NewVisitorMessage
) -> VisitorSent:
    """Append a lead's message; the first one makes the conversation.

    A repeated `clientMessageId` finds the first one. Raises `Unauthenticated` when the lead has
    gone meanwhile.
    """
    check_content(message, message.attachment_ids)
    found = await visitor_queries.fetch_newest(database, visitor)
    if found is None:
        started = await _start_conversation(database, appender, visitor, message)
        if isinstance(started, VisitorSent):
            return started
        conversation_id = started
    else:
        conversation_id, _ = found
    draft = _draft(visitor, conversation_id, message)
    try:
        return await _append(database, appender, visitor, draft)
    except asyncpg.UniqueViolationError:
        return await _sent_before(database, visitor, draft)


async def _start_conversation(
    database: Database, appender: Appender, visitor: Visitor, message: NewVisitorMessage
) -> VisitorSent | UUID:
    """A new conversation with its first message; the id alone when another was quicker."""
    async with database.transaction():
        if not await visitor_queries.lock_lead(database, visitor):
            raise Unauthenticated(SESSION_ENDED)
        found = await visitor_queries.fetch_newest(database, visitor)
        if found is not None:
            return found[0]
        conversation_id = await queries.insert_conversation(
            database, lead_id=visitor.lead_id, agent_id=None, inbox_id=visitor.inbox_id
        )
        await visitor_queries.keep_visitor(database, visitor)
        database.publish(
            ConversationCreated(
                conversation_id=conversation_id, lead_id=visitor.lead_id, assigned_agent_id=None
            )
        )
        draft = _draft(visitor, conversation_id, message)
        return await _append(database, appender, visitor, draft)


def _draft(visitor: Visitor, conversation_id: UUID, message: NewVisitorMessage) -> Draft:
    return Draft(
        conversation_id=conversation_id,
        sender_type=SenderType.LEAD,
        sender_id=visitor.lead_id,
        content_type=message.content_type,
        content_text=message.content_text,
        media_url=message.media_url,
        preview=preview_of(message),
        client_message_id=message.client_message_id,
        attachment_ids=message.attachment_ids or (),
    )


async def _append(
    database: Database, appender: Appender, visitor: Visitor, draft: Draft
) -> VisitorSent:
    appended = await append(database, appender, draft)
    if appended is None:
        raise Unauthenticated(SESSION_ENDED)
    sender = Sender(id=visitor.lead_id, name=visitor.name)
    message = announce(database, draft, appended, sender)
    assert appended.public_seq is not None
    return VisitorSent(to_public(message, appended.public_seq, agent_name=None), created=True)


async def _sent_before(database: Database, visitor: Visitor, draft: Draft) -> VisitorSent:
    assert draft.client_message_id is not None
    first = await visitor_queries.fetch_by_client_id(
        database, visitor, draft.conversation_id, draft.client_message_id
    )
    if first is None:
        raise Conflict("The message was sent at the same moment; try again")
    if not is_same(first, draft):
        raise Conflict("This clientMessageId was used for another message")
    return VisitorSent(first, created=False)


async def forget_expired_visitors(database: Database) -> None:
    """Tokens that have run out, and leads that never wrote."""
    await visitor_queries.delete_expired_visitors(database)


# --- How far agents' messages got -------------------------------------------------------------


async def mark_delivered(
    database: Database, visitor: Visitor, seq: int, *, conversation_id: UUID | None = None
) -> None:
    """The visitor has all messages through public number `seq`."""
    await _mark(database, visitor, seq, DeliveryStatus.DELIVERED, conversation_id)


async def mark_read(
    database: Database, visitor: Visitor, seq: int, *, conversation_id: UUID | None = None
) -> None:
    """The visitor has seen all messages through public number `seq`."""
    await _mark(database, visitor, seq, DeliveryStatus.READ, conversation_id)


async def _mark(
    database: Database,
    visitor: Visitor,
    seq: int,
    status: DeliveryStatus,
    conversation_id: UUID | None,
) -> None:
    changes = await visitor_queries.update_delivery_through(
        database, visitor, seq, status, conversation_id=conversation_id
    )
    publish_delivery(database, changes)


def publish_delivery(database: Database, changes: Sequence[DeliveryChange]) -> None:
    """State the newest of these changes; older ones show when the messages are read."""
    for change in changes[-PUBLISHED_CHANGES:]:
        database.publish(
            MessageStatusChanged(
                conversation_id=change.conversation_id,
                message_id=change.message_id,
                seq=change.seq,
                status=change.status,
                error=change.error,
            )
        )
