"""The facts that the domain states after a commit, and the bus that carries them.

A fact is a hint: who misses one reads Postgres. Subscribers are plain functions that return at
once; slow work belongs to a task of the subscriber's own.
"""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from loguru import logger
from msgspec import Struct

from messaging_server.models import Conversation, DeliveryStatus, Message, Priority, Timestamp


class Event(Struct, frozen=True, kw_only=True):
    """Something that has been committed."""


class MessageCreated(Event, frozen=True):
    """A message was appended; `version` and `assigned_agent_id` are the conversation's then.

    `public_seq` is its number among the public messages, None when it is private; `agent_name`
    is what a visitor may read of the agent who wrote it, None without a name.
    """

    message: Message
    public_seq: int | None
    version: int
    assigned_agent_id: UUID | None
    agent_name: str | None = None


class ConversationCreated(Event, frozen=True):
    conversation_id: UUID
    lead_id: UUID
    assigned_agent_id: UUID | None


class ConversationUpdated(Event, frozen=True):
    """Something of the conversation's state changed, its `version` grew."""

    conversation_id: UUID
    version: int


class ConversationAssigned(Event, frozen=True):
    """The assignment changed; whoever lost sight of the conversation must stop hearing of it."""

    conversation: Conversation
    previous_agent_id: UUID | None
    assigned_agent_id: UUID | None
    version: int


class ConversationsDeleted(Event, frozen=True):
    """The conversations of an erased lead are gone; `agent_ids` are who they were assigned to."""

    conversation_ids: tuple[UUID, ...]
    agent_ids: frozenset[UUID] = frozenset()


class ConversationRead(Event, frozen=True):
    """A user moved a read mark; only that user's own view changed."""

    conversation_id: UUID
    user_id: UUID
    seq: int


class MessageStatusChanged(Event, frozen=True):
    """An agent's message got further on its way to the lead; `error` says why one failed."""

    conversation_id: UUID
    message_id: UUID
    seq: int
    status: DeliveryStatus
    error: str | None = None


class AnalysisCompleted(Event, frozen=True):
    """An analysis was saved; the fields are the AI's own view."""

    conversation_id: UUID
    summary: str
    priority: Priority
    tags: tuple[str, ...]
    updated_at: Timestamp
    version: int


class LeadUpdated(Event, frozen=True):
    """A lead's data changed, and with it how its conversations look."""

    lead_id: UUID
    conversation_ids: tuple[UUID, ...]


class VisitorLost(Event, frozen=True):
    """These leads were merged, identified or erased, or their inbox deleted: sessions end."""

    lead_ids: frozenset[UUID]


class AccessRevoked(Event, frozen=True):
    """All tokens issued to this user so far are void."""

    user_id: UUID


class UserRenamed(Event, frozen=True):
    user_id: UUID
    name: str | None


E = TypeVar("E", bound=Event)


class Bus:
    """Calls every subscriber of an event's type, in the order of subscription.

    A failing subscriber is logged and harms neither the publisher nor the others.
    """

    def __init__(self) -> None:
        self._subscribers: dict[type[Event], list[Callable[[Event], None]]] = {}

    def subscribe(self, event_type: type[E], subscriber: Callable[[E], None]) -> None:
        self._subscribers.setdefault(event_type, []).append(subscriber)  # type: ignore[arg-type]  # dispatch is by exact type

    def publish(self, event: Event) -> None:
        for subscriber in self._subscribers.get(type(event), ()):
            try:
                subscriber(event)
            except Exception:  # noqa: BLE001  # one subscriber's defect must not undo a committed write
                logger.exception("A subscriber of {} failed", type(event).__name__)
