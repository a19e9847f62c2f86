"""Conversations: who sees and changes them, and what follows from it; `messages` has what is said.

Facts are stated after the commit; this module knows neither sockets nor analysers.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from messaging_server.conversations import message_queries, queries, view_queries
from messaging_server.database import Database
from messaging_server.errors import Forbidden, NotFound, ValidationFailed
from messaging_server.events import (
    ConversationAssigned,
    ConversationCreated,
    ConversationRead,
    ConversationUpdated,
)
from messaging_server.leads import queries as lead_queries
from messaging_server.leads.service import NewLead, check_attributes
from messaging_server.models import (
    VISIBLE,
    Caller,
    Conversation,
    Message,
    Model,
    Priority,
    Request,
    Status,
    timestamp,
)

NO_SUCH_CONVERSATION = "No such conversation"
LAST_TIME = datetime.max.replace(microsecond=999_000, tzinfo=UTC)
"""asyncpg stores the last microsecond of all as infinity, which can't be shown."""

Seq = Annotated[int, Meta(ge=0, le=2_147_483_647)]
TagName = Annotated[str, Meta(min_length=1, max_length=50, pattern=VISIBLE)]


class NewConversation(Request, frozen=True):
    """Either `leadId` or `lead`."""

    lead_id: UUID | None = None
    lead: NewLead | None = None
    assigned_agent_id: UUID | None = None


class ConversationChanges(Request, frozen=True):
    status: Status | UnsetType = UNSET
    priority: Priority | UnsetType | None = UNSET
    tags: Annotated[list[TagName], Meta(max_length=20)] | UnsetType | None = UNSET
    snoozed_until: Annotated[datetime, Meta(tz=True)] | UnsetType | None = UNSET


class AssignmentRequest(Request, frozen=True):
    agent_id: UUID | None


class ReadRequest(Request, frozen=True):
    seq: Seq


class ReadMark(Model, frozen=True):
    conversation_id: UUID
    seq: int
    unread_count: int


class Opened(Struct, frozen=True):
    """A conversation with what came after a given number; `reset`: there is too much of it."""

    conversation: Conversation
    messages: Sequence[Message]
    reset: bool


async def fetch_conversation(
    database: Database, caller: Caller, conversation_id: UUID
) -> Conversation:
    conversation = await view_queries.fetch_conversation(database, caller, conversation_id)
    if conversation is None:
        raise NotFound(NO_SUCH_CONVERSATION)
    return conversation


async def create_conversation(
    database: Database, caller: Caller, request: NewConversation
) -> Conversation:
    """An agent's new conversation is the agent's own; an ADMIN may assign it to anyone."""
    if (request.lead_id is None) == (request.lead is None):
        raise ValidationFailed.of("lead", "exactly one of leadId and lead is required")
    agent_id = request.assigned_agent_id
    if not caller.is_admin and agent_id not in (None, caller.id):
        raise Forbidden("Only an ADMIN may assign a conversation to somebody else")
    if not caller.is_admin:
        agent_id = caller.id
    async with database.transaction():
        await check_assignee(database, agent_id, field="assignedAgentId")
        lead_id = await _lead_of(database, caller, request)
        conversation_id = await queries.insert_conversation(
            database, lead_id=lead_id, agent_id=agent_id
        )
        conversation = await fetch_conversation(database, caller, conversation_id)
        database.publish(
            ConversationCreated(
                conversation_id=conversation_id, lead_id=lead_id, assigned_agent_id=agent_id
            )
        )
    return conversation


async def _lead_of(database: Database, caller: Caller, request: NewConversation) -> UUID:
    if request.lead is None:
        assert request.lead_id is not None
        lead = await lead_queries.fetch_lead(database, caller, request.lead_id)
        if lead is None:
            raise NotFound("No such lead")
        return lead.id
    new = request.lead
    check_attributes(new.attributes)
    lead = await lead_queries.insert_lead(
        database,
        name=new.name,
        email=new.email.strip() if new.email else None,
        phone=new.phone,
        attributes=new.attributes,
        created_by=caller.id,
    )
    return lead.id


async def check_assignee(database: Database, agent_id: UUID | None, *, field: str) -> None:
    if agent_id is not None and not await queries.lock_active_user(database, agent_id):
        raise ValidationFailed.of(field, "is not an active user")


async def update_conversation(
    database: Database, caller: Caller, conversation_id: UUID, request: ConversationChanges
) -> Conversation:
    changes = checked_changes(request)
    if changes:
        async with database.transaction():
            await _lock(database, caller, conversation_id)
            version = await queries.update_conversation(database, conversation_id, changes)
            if version is not None:
                database.publish(
                    ConversationUpdated(conversation_id=conversation_id, version=version)
                )
    return await fetch_conversation(database, caller, conversation_id)


def checked_changes(request: ConversationChanges) -> dict[str, Any]:
    """The columns to set. A `snoozedUntil` implies SNOOZED; any other status ends the snooze."""
    changes = {
        name: getattr(request, name)
        for name in ConversationChanges.__struct_fields__
        if getattr(request, name) is not UNSET
    }
    until = changes.get("snoozed_until")
    if until is not None:
        if changes.setdefault("status", Status.SNOOZED) is not Status.SNOOZED:
            raise ValidationFailed.of("snoozedUntil", "goes only with status SNOOZED")
        if until <= datetime.now(UTC):
            raise ValidationFailed.of("snoozedUntil", "must be in the future")
        if until > LAST_TIME:
            raise ValidationFailed.of("snoozedUntil", f"must be at most {timestamp(LAST_TIME)}")
    if changes.get("tags"):
        changes["tags"] = list(dict.fromkeys(changes["tags"]))
    return changes


async def assign_conversation(
    database: Database, caller: Caller, conversation_id: UUID, agent_id: UUID | None
) -> Conversation:
    """Give the conversation to an active user, or to nobody; only for ADMINs."""
    async with database.transaction():
        await check_assignee(database, agent_id, field="agentId")
        before = await _lock(database, caller, conversation_id)
        version = await queries.update_assignment(database, conversation_id, agent_id)
        conversation = await fetch_conversation(database, caller, conversation_id)
        if version is not None:
            database.publish(
                ConversationAssigned(
                    conversation=conversation,
                    previous_agent_id=before.assigned_agent_id,
                    assigned_agent_id=agent_id,
                    version=version,
                )
            )
    return conversation


async def _lock(database: Database, caller: Caller, conversation_id: UUID) -> queries.Locked:
    locked = await queries.lock_conversation(database, caller, conversation_id)
    if locked is None:
        raise NotFound(NO_SUCH_CONVERSATION)
    return locked


async def mark_read(
    database: Database, caller: Caller, conversation_id: UUID, seq: int
) -> ReadMark:
    """Moves the caller's mark forward; a late or doubled call never moves it back."""
    mark = await queries.upsert_read_mark(database, caller, conversation_id, seq)
    if mark is None:
        raise NotFound(NO_SUCH_CONVERSATION)
    read_seq, unread = mark
    database.publish(
        ConversationRead(conversation_id=conversation_id, user_id=caller.id, seq=read_seq)
    )
    return ReadMark(conversation_id=conversation_id, seq=read_seq, unread_count=unread)


async def wake_snoozed(database: Database) -> None:
    """Reopen the conversations whose snooze is over."""
    for conversation_id, version in await queries.wake_snoozed(database):
        database.publish(ConversationUpdated(conversation_id=conversation_id, version=version))


async def fetch_views(
    database: Database, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
) -> list[tuple[UUID, Conversation]]:
    """Each conversation as each caller sees it, with the caller's id."""
    return await view_queries.fetch_views(database, conversation_ids, callers)


async def fetch_heads(database: Database, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
    return await view_queries.fetch_heads(database, conversation_ids)


async def open_conversation(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    *,
    after_seq: int | None,
    limit: int,
) -> Opened:
    """The conversation, then its log from `after_seq` to the `last_seq` that it shows."""
    conversation = await fetch_conversation(database, caller, conversation_id)
    if after_seq is None or after_seq >= conversation.last_seq:
        return Opened(conversation, (), reset=False)
    if conversation.last_seq - after_seq > limit:
        return Opened(conversation, (), reset=True)
    messages = await message_queries.fetch_messages_between(
        database, conversation_id, after_seq=after_seq, through_seq=conversation.last_seq
    )
    return Opened(conversation, messages, reset=False)
