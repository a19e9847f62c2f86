"""Facts in, frames out: what the bus says goes to rooms, inboxes and sockets.

Subscribers return at once. Who lost sight of a conversation hears that first, then nothing.
"""

from collections.abc import Set
from uuid import UUID

from messaging_server import events
from messaging_server.events import Bus
from messaging_server.models import Message
from messaging_server.realtime.inbox import Inbox
from messaging_server.realtime.protocol import (
    AiData,
    AiUpdate,
    AiUpdateData,
    MessageStatus,
    RemovalReason,
    StatusData,
    push_frame,
)
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.sockets import Socket, Sockets


class Fanout:
    """One method for each fact."""

    def __init__(self, *, rooms: Rooms[Socket, Message], inbox: Inbox, sockets: Sockets) -> None:
        self._rooms = rooms
        self._inbox = inbox
        self._sockets = sockets

    def subscribe(self, bus: Bus) -> None:
        bus.subscribe(events.MessageCreated, self.message_created)
        bus.subscribe(events.MessageStatusChanged, self.message_status_changed)
        bus.subscribe(events.ConversationCreated, self.conversation_created)
        bus.subscribe(events.ConversationUpdated, self.conversation_updated)
        bus.subscribe(events.ConversationAssigned, self.conversation_assigned)
        bus.subscribe(events.ConversationsDeleted, self.conversations_deleted)
        bus.subscribe(events.ConversationRead, self.conversation_read)
        bus.subscribe(events.AnalysisCompleted, self.analysis_completed)
        bus.subscribe(events.LeadUpdated, self.lead_updated)
        bus.subscribe(events.AccessRevoked, self.access_revoked)
        bus.subscribe(events.UserRenamed, self.user_renamed)

    def message_created(self, event: events.MessageCreated) -> None:
        conversation_id = event.message.conversation_id
        self._rooms.learn(
            conversation_id, version=event.version, assigned_agent_id=event.assigned_agent_id
        )
        self._rooms.publish(event.message)
        self._inbox.changed(conversation_id)

    def message_status_changed(self, event: events.MessageStatusChanged) -> None:
        data = StatusData(
            message_id=event.message_id, seq=event.seq, status=event.status, error=event.error
        )
        push = MessageStatus(conversation_id=event.conversation_id, data=data)
        self._rooms.broadcast(event.conversation_id, push_frame(push))

    def conversation_created(self, event: events.ConversationCreated) -> None:
        if event.assigned_agent_id is not None:
            self._inbox.gained(event.conversation_id, event.assigned_agent_id)
        self._inbox.changed(event.conversation_id)

    def conversation_updated(self, event: events.ConversationUpdated) -> None:
        self._inbox.changed(event.conversation_id)

    def conversation_assigned(self, event: events.ConversationAssigned) -> None:
        """The newest known assignment decides, which may not be the one of this fact."""
        conversation_id = event.conversation.id
        told = self._rooms.learn(
            conversation_id, version=event.version, assigned_agent_id=event.assigned_agent_id
        )
        self._inbox.outdated(conversation_id)
        agent_id = self._rooms.assigned_agent(conversation_id)
        if event.previous_agent_id is not None:
            for socket in self._sockets.of_owner(event.previous_agent_id):
                if socket not in told and not socket.may_see(agent_id):
                    socket.lose(conversation_id)
        if agent_id is not None and agent_id == event.assigned_agent_id:
            self._inbox.gained(conversation_id, agent_id)
        self._inbox.changed(conversation_id)

    def conversations_deleted(self, event: events.ConversationsDeleted) -> None:
        for conversation_id in event.conversation_ids:
            self.forget(conversation_id, event.agent_ids)

    def forget(self, conversation_id: UUID, agent_ids: Set[UUID] = frozenset()) -> None:
        """The conversation is gone; everyone who may have seen it hears so."""
        agent_id = self._rooms.assigned_agent(conversation_id)
        self._inbox.outdated(conversation_id)
        members = set(self._rooms.close(conversation_id))
        for socket in self._sockets.authenticated():
            if socket in members or any(map(socket.may_see, {agent_id, *agent_ids})):
                socket.lose(conversation_id, RemovalReason.DELETED)

    def conversation_read(self, event: events.ConversationRead) -> None:
        self._inbox.changed(event.conversation_id, only_user_id=event.user_id)

    def analysis_completed(self, event: events.AnalysisCompleted) -> None:
        data = AiData(
            summary=event.summary,
            priority=event.priority,
            tags=event.tags,
            updated_at=event.updated_at,
        )
        update = AiUpdate(
            conversation_id=event.conversation_id,
            version=event.version,
            data=AiUpdateData(ai_data=data),
        )
        self._rooms.broadcast(event.conversation_id, push_frame(update))
        self._inbox.changed(event.conversation_id)

    def lead_updated(self, event: events.LeadUpdated) -> None:
        for conversation_id in event.conversation_ids:
            self._inbox.changed(conversation_id)

    def access_revoked(self, event: events.AccessRevoked) -> None:
        self._sockets.revoke(event.user_id)

    def user_renamed(self, event: events.UserRenamed) -> None:
        self._sockets.rename(event.user_id, event.name)
