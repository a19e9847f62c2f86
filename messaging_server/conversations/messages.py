"""Messages: what is said in a conversation, once, in order, and what follows from it."""

import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
from msgspec import Meta, Struct, structs

from messaging_server import metrics
from messaging_server.attachments import queries as attachment_queries
from messaging_server.attachments.queries import Uploader
from messaging_server.conversations import message_queries
from messaging_server.conversations.append_queries import Appended, Draft
from messaging_server.conversations.appender import Appender
from messaging_server.conversations.message_queries import MessageCursor
from messaging_server.conversations.service import NO_SUCH_CONVERSATION, Seq, fetch_conversation
from messaging_server.database import Database
from messaging_server.errors import Conflict, NotFound, ValidationFailed
from messaging_server.events import MessageCreated
from messaging_server.models import (
    PREVIEW_CHARACTERS,
    VISIBLE,
    Caller,
    ContentType,
    Message,
    PublicMessage,
    Request,
    Sender,
    SenderType,
    timestamp,
)

MISSED_MESSAGES = 50
_visible = re.compile(VISIBLE)
_committed = {kind: metrics.MESSAGES.labels(kind.value) for kind in SenderType}
ContentText = Annotated[str, Meta(min_length=1, max_length=10_000)]
MediaUrl = Annotated[str, Meta(min_length=1, max_length=2_000)]
AttachmentIds = Annotated[tuple[UUID, ...], Meta(min_length=1, max_length=10)]
ClientMessageId = Annotated[str, Meta(min_length=1, max_length=200)]


class MessageContent(Request, frozen=True):
    """TEXT needs `contentText`; the other types need media, and may have a caption."""

    content_text: ContentText | None = None
    content_type: ContentType = ContentType.TEXT
    media_url: MediaUrl | None = None


class MessageWithAttachments(MessageContent, frozen=True):
    """Media is a `mediaUrl`, or attachments that were uploaded before; TEXT may have some, too."""

    attachment_ids: AttachmentIds | None = None


class NewMessage(MessageWithAttachments, frozen=True):
    private: bool = False
    client_message_id: ClientMessageId | None = None
    expected_last_seq: Seq | None = None


class Sent(Struct, frozen=True):
    """`created` is False when the message had been sent before."""

    message: Message
    created: bool


class StaleSend(Conflict):
    """Somebody wrote meanwhile; `missed` has the messages (at most 50) and the newest `seq`."""

    def __init__(self, missed: Sequence[Message]) -> None:
        super().__init__("There are newer messages in this conversation")
        self.missed = {"lastSeq": missed[-1].seq if missed else 0, "messages": missed}


async def send_message(
    database: Database,
    appender: Appender,
    caller: Caller,
    conversation_id: UUID,
    message: NewMessage,
) -> Sent:
    """Append an agent's message; a repeated `clientMessageId` finds the first one.

    Raises `StaleSend` when there is a newer public message than the sender expected.
    """
    check_content(message, message.attachment_ids)
    draft = Draft(
        conversation_id=conversation_id,
        sender_type=SenderType.AGENT,
        sender_id=caller.id,
        content_type=message.content_type,
        content_text=message.content_text,
        media_url=message.media_url,
        preview=preview_of(message),
        private=message.private,
        client_message_id=message.client_message_id,
        attachment_ids=message.attachment_ids or (),
        only_agent_id=None if caller.is_admin else caller.id,
        expected_last_seq=message.expected_last_seq,
    )
    try:
        appended = await append(database, appender, draft)
    except asyncpg.UniqueViolationError:
        return await _sent_before(database, caller, draft)
    if appended is None:
        return await _refused(database, caller, draft)
    sender = Sender(id=caller.id, name=caller.name or caller.email.partition("@")[0])
    message_sent = announce(database, draft, appended, sender, agent_name=caller.name)
    return Sent(message_sent, created=True)


async def append(database: Database, appender: Appender, draft: Draft) -> Appended | None:
    """`draft`, together with the sender's uploads that it names: all or nothing.

    Raises `ValidationFailed` when one of them is not the sender's own, or was sent before.
    """
    if not draft.attachment_ids:
        return await appender.append(draft)
    async with database.transaction():
        appended = await appender.append(draft)
        if appended is None:
            return None
        attachments = await attachment_queries.link_attachments(
            database,
            draft.attachment_ids,
            uploader=_uploader(draft),
            message_id=draft.id,
            conversation_id=draft.conversation_id,
        )
        if len(attachments) != len(draft.attachment_ids):
            raise ValidationFailed.of(
                "attachmentIds", "must be uploads of your own that were not sent yet"
            )
        return structs.replace(appended, attachments=attachments)


def _uploader(draft: Draft) -> Uploader:
    if draft.sender_type is SenderType.LEAD:
        return Uploader(lead_id=draft.sender_id)
    return Uploader(user_id=draft.sender_id)


def announce(
    database: Database,
    draft: Draft,
    appended: Appended,
    sender: Sender,
    *,
    agent_name: str | None = None,
) -> Message:
    """State that `draft` was committed, and return it as the API shows it.

    `agent_name` is what a visitor may read of the agent who wrote it.
    """
    message = Message(
        id=draft.id,
        conversation_id=draft.conversation_id,
        seq=appended.seq,
        sender_type=draft.sender_type,
        sender=sender,
        content_type=draft.content_type,
        content_text=draft.content_text,
        media_url=message_queries.media_url_of(draft.media_url, appended.attachments),
        attachments=appended.attachments,
        private=draft.private,
        status=message_queries.status_of(draft.sender_type, private=draft.private),
        client_message_id=draft.client_message_id,
        created_at=timestamp(appended.created_at),
    )
    _committed[draft.sender_type].inc()
    database.publish(
        MessageCreated(
            message=message,
            public_seq=appended.public_seq,
            agent_name=agent_name,
            version=appended.version,
            assigned_agent_id=appended.assigned_agent_id,
        )
    )
    return message


async def _sent_before(database: Database, caller: Caller, draft: Draft) -> Sent:
    await fetch_conversation(database, caller, draft.conversation_id)
    assert draft.client_message_id is not None
    first = await message_queries.fetch_by_client_id(
        database, draft.conversation_id, caller.id, draft.client_message_id
    )
    if first is None:
        raise Conflict("The message was sent at the same moment; try again")
    if not is_same(first, draft) or first.private != draft.private:
        raise Conflict("This clientMessageId was used for another message")
    return Sent(first, created=False)


async def _refused(database: Database, caller: Caller, draft: Draft) -> Sent:
    """Say why nothing was appended: sent before, stale, or not visible."""
    conversation = await fetch_conversation(database, caller, draft.conversation_id)
    if draft.client_message_id is not None:
        before = await message_queries.fetch_by_client_id(
            database, draft.conversation_id, caller.id, draft.client_message_id
        )
        if before is not None:
            return await _sent_before(database, caller, draft)
    if draft.expected_last_seq is None:  # it became visible between the two statements
        raise NotFound(NO_SUCH_CONVERSATION)
    missed = await message_queries.fetch_messages_between(
        database,
        draft.conversation_id,
        after_seq=max(draft.expected_last_seq, conversation.last_seq - MISSED_MESSAGES),
        through_seq=conversation.last_seq,
    )
    raise StaleSend(missed)


def is_same(first: Message | PublicMessage, draft: Draft) -> bool:
    """Whether a message says what `draft` says. Its address may be its attachment's."""
    attachments = first.attachments
    return (
        first.content_type,
        first.content_text,
        first.media_url,
        tuple(attachment.id for attachment in attachments),
    ) == (
        draft.content_type,
        draft.content_text,
        message_queries.media_url_of(draft.media_url, attachments),
        draft.attachment_ids,
    )


def check_content(
    content: MessageContent, attachment_ids: Sequence[UUID] | None = None, *, within: str = ""
) -> None:
    """`within` stands before the names of fields in errors."""
    if attachment_ids is not None and len(set(attachment_ids)) != len(attachment_ids):
        raise ValidationFailed.of("attachmentIds", "must not name an attachment twice")
    if content.content_type is ContentType.TEXT:
        if not _visible.search(content.content_text or ""):
            raise ValidationFailed.of(f"{within}contentText", "is required for a TEXT message")
        if content.media_url is not None:
            raise ValidationFailed.of(f"{within}mediaUrl", "does not go with a TEXT message")
        return
    if content.media_url is not None:
        check_media_url(content.media_url, within=within)
    elif attachment_ids is None:
        raise ValidationFailed.of(
            f"{within}mediaUrl",
            f"is required for a message of type {content.content_type} without attachmentIds",
        )


def check_media_url(url: str, *, within: str = "") -> None:
    try:
        parts = urlsplit(url)
        is_http = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        valid = bool(is_http) and url.isprintable()
    except ValueError:
        valid = False
    if not valid or " " in url:
        raise ValidationFailed.of(f"{within}mediaUrl", "must be an http or https address")


def preview_of(content: MessageContent) -> str:
    """The beginning of the text on one line; the type in brackets when there is none."""
    text = " ".join((content.content_text or "")[: PREVIEW_CHARACTERS * 4].split())
    if not text:
        return f"[{content.content_type.value.lower()}]"
    return text if len(text) <= PREVIEW_CHARACTERS else f"{text[: PREVIEW_CHARACTERS - 1]}…"


async def list_messages(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    *,
    limit: int,
    cursor: MessageCursor | None,
) -> tuple[list[Message], MessageCursor | None]:
    found = await message_queries.list_messages(
        database, caller, conversation_id, limit=limit, cursor=cursor
    )
    if found is None:
        raise NotFound(NO_SUCH_CONVERSATION)
    return found


async def fetch_messages_between(
    database: Database, conversation_id: UUID, *, after_seq: int, through_seq: int
) -> list[Message]:
    """Oldest first; for callers that were let in before."""
    return await message_queries.fetch_messages_between(
        database, conversation_id, after_seq=after_seq, through_seq=through_seq
    )
