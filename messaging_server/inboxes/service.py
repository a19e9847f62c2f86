"""How leads write in: API keys, and a lead's message in one call."""

from typing import Annotated
from uuid import UUID

import asyncpg
from msgspec import Meta, Struct

from messaging_server.conversations import message_queries
from messaging_server.conversations import queries as conversation_queries
from messaging_server.conversations.append_queries import Draft
from messaging_server.conversations.appender import Appender
from messaging_server.conversations.messages import (
    MessageContent,
    announce,
    check_content,
    preview_of,
)
from messaging_server.database import Database
from messaging_server.errors import Conflict, NotFound, Unauthenticated, ValidationFailed
from messaging_server.events import ConversationCreated
from messaging_server.inboxes import queries
from messaging_server.leads import queries as lead_queries
from messaging_server.leads.service import LeadEmail, LeadName, LeadPhone
from messaging_server.models import (
    VISIBLE,
    Caller,
    KeyIdentity,
    Message,
    Model,
    Request,
    Sender,
    SenderType,
)
from messaging_server.remembered import Remembered
from messaging_server.security import API_KEY_PREFIX, hash_key, new_api_key

SHOWN_PREFIX_CHARACTERS = len(API_KEY_PREFIX) + 6

ExternalId = Annotated[str, Meta(min_length=1, max_length=200)]


class NewApiKey(Request, frozen=True):
    """Without `inboxId` the key belongs to the oldest API inbox."""

    name: Annotated[str, Meta(min_length=1, max_length=200, pattern=VISIBLE)]
    inbox_id: UUID | None = None


class ShownApiKey(Model, frozen=True):
    """A new key; `key` is shown this once and stored only as a hash."""

    id: UUID
    inbox_id: UUID
    name: str
    key: str


class InboundLead(Request, frozen=True):
    """Found by the first of `externalId`, `email` and `phone` that is given; else created."""

    name: LeadName
    external_id: ExternalId | None = None
    email: LeadEmail | None = None
    phone: LeadPhone | None = None


class Inbound(Request, frozen=True):
    external_id: ExternalId
    lead: InboundLead
    message: MessageContent
    conversation_external_id: ExternalId | None = None


class InboundResult(Model, frozen=True):
    lead_id: UUID
    conversation_id: UUID
    message: Message


class Received(Struct, frozen=True):
    """`created` is False when this `externalId` had come before."""

    result: InboundResult
    created: bool


class ApiKeyCheck:
    """Says which key a secret belongs to, remembering the answer for a few seconds."""

    CACHE_SECONDS = 5.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Remembered[bytes, KeyIdentity] = Remembered(seconds=self.CACHE_SECONDS)

    async def authenticate(self, key: str) -> KeyIdentity:
        """Raises `Unauthenticated` for a key that does not exist (any more)."""
        if not key.startswith(API_KEY_PREFIX):
            raise Unauthenticated("This call needs an API key: Authorization: Bearer ik_…")
        return await self._known.find(hash_key(key), self._read)

    async def _read(self, key_hash: bytes) -> KeyIdentity:
        identity = await queries.fetch_api_key(self._database, key_hash)
        if identity is None:
            raise Unauthenticated("The API key is not valid")
        await queries.touch_api_key(self._database, identity.id)
        return identity

    def forget(self) -> None:
        """After a key or an inbox was deleted: the next call of each is looked up again."""
        self._known.forget()


async def create_api_key(database: Database, caller: Caller, request: NewApiKey) -> ShownApiKey:
    key = new_api_key()
    made = await queries.insert_api_key(
        database,
        inbox_id=request.inbox_id,
        name=request.name,
        prefix=key[:SHOWN_PREFIX_CHARACTERS],
        key_hash=hash_key(key),
        created_by=caller.id,
    )
    if made is None:
        raise ValidationFailed.of("inboxId", "is not an inbox of kind API")
    key_id, inbox_id = made
    return ShownApiKey(id=key_id, inbox_id=inbox_id, name=request.name, key=key)


async def delete_api_key(database: Database, keys: ApiKeyCheck, key_id: UUID) -> None:
    if not await queries.delete_api_key(database, key_id):
        raise NotFound("No such API key")
    keys.forget()


async def receive(
    database: Database, appender: Appender, inbox_id: UUID, inbound: Inbound
) -> Received:
    """Find or create lead and conversation, and append the lead's message: all or nothing."""
    check_content(inbound.message, within="message.")
    before = await _received_before(database, inbox_id, inbound.external_id)
    if before is not None:
        return before
    try:
        async with database.transaction():
            result = await _append(database, appender, inbox_id, inbound)
    except (asyncpg.UniqueViolationError, NotFound) as error:
        before = await _received_before(database, inbox_id, inbound.external_id)
        if before is None:
            what = "lead was deleted" if isinstance(error, NotFound) else "same message came"
            raise Conflict(f"The {what} at the same moment; try again") from None
        return before
    return Received(result, created=True)


async def _received_before(database: Database, inbox_id: UUID, external_id: str) -> Received | None:
    found = await message_queries.fetch_by_external_id(database, inbox_id, external_id)
    if found is None:
        return None
    message, lead_id = found
    result = InboundResult(
        lead_id=lead_id, conversation_id=message.conversation_id, message=message
    )
    return Received(result, created=False)


async def _append(
    database: Database, appender: Appender, inbox_id: UUID, inbound: Inbound
) -> InboundResult:
    conversation_id, lead_id = await _conversation_of(database, inbox_id, inbound)
    lead_name = await lead_queries.fetch_lead_name(database, lead_id)
    draft = Draft(
        conversation_id=conversation_id,
        sender_type=SenderType.LEAD,
        sender_id=lead_id,
        content_type=inbound.message.content_type,
        content_text=inbound.message.content_text,
        media_url=inbound.message.media_url,
        preview=preview_of(inbound.message),
        external_id=inbound.external_id,
        inbox_id=inbox_id,
    )
    appended = await appender.append(draft)
    if appended is None:
        raise Conflict("The conversation was deleted at the same moment; try again")
    message = announce(database, draft, appended, Sender(id=lead_id, name=lead_name))
    return InboundResult(lead_id=lead_id, conversation_id=conversation_id, message=message)


async def _conversation_of(
    database: Database, inbox_id: UUID, inbound: Inbound
) -> tuple[UUID, UUID]:
    """The conversation and its lead, created where there is none."""
    external_id = inbound.conversation_external_id
    if external_id is not None:
        found = await _external_conversation(database, inbox_id, external_id)
        if found is not None:
            return found
    lead = inbound.lead
    lead_id = await lead_queries.find_or_insert_lead(
        database,
        inbox_id,
        external_id=lead.external_id,
        name=lead.name,
        email=lead.email.strip() if lead.email else None,
        phone=lead.phone,
    )
    if external_id is None:
        newest = await conversation_queries.fetch_newest_conversation(database, lead_id, inbox_id)
        if newest is not None:
            return newest, lead_id
    conversation_id = await conversation_queries.insert_conversation(
        database, lead_id=lead_id, agent_id=None, inbox_id=inbox_id, external_id=external_id
    )
    database.publish(
        ConversationCreated(
            conversation_id=conversation_id, lead_id=lead_id, assigned_agent_id=None
        )
    )
    return conversation_id, lead_id


async def _external_conversation(
    database: Database, inbox_id: UUID, external_id: str
) -> tuple[UUID, UUID] | None:
    """As in `_conversation_of`; None means that the caller, and nobody else, may create it."""
    found = await conversation_queries.fetch_external_conversation(database, inbox_id, external_id)
    if found is None:
        await conversation_queries.lock_external_conversation(database, inbox_id, external_id)
        found = await conversation_queries.fetch_external_conversation(
            database, inbox_id, external_id
        )
    return found
