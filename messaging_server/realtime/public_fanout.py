"""The only way from facts to visitors: public messages, in the room of their conversation."""

from messaging_server import events
from messaging_server.conversations.visitors import to_public
from messaging_server.events import Bus
from messaging_server.models import PublicMessage, SenderType
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.visitors import Visitors, VisitorSocket


class PublicFanout:
    """One method for each fact; all return at once."""

    def __init__(self, *, rooms: Rooms[VisitorSocket, PublicMessage], visitors: Visitors) -> None:
        self._rooms = rooms
        self._visitors = visitors

    def subscribe(self, bus: Bus) -> None:
        bus.subscribe(events.MessageCreated, self.message_created)
        bus.subscribe(events.ConversationCreated, self.conversation_created)
        bus.subscribe(events.ConversationsDeleted, self.conversations_deleted)
        bus.subscribe(events.LeadUpdated, self.lead_updated)
        bus.subscribe(events.VisitorLost, self.visitor_lost)

    def message_created(self, event: events.MessageCreated) -> None:
        """Where the lead writes is its conversation."""
        message, public_seq = event.message, event.public_seq
        if message.sender_type is SenderType.LEAD and message.sender is not None:
            self._visitors.look_again(message.sender.id, unless_in=message.conversation_id)
        if public_seq is not None and message.conversation_id in self._rooms:
            self._rooms.publish(to_public(message, public_seq, agent_name=event.agent_name))

    def conversation_created(self, event: events.ConversationCreated) -> None:
        self._visitors.look_again(event.lead_id)

    def conversations_deleted(self, event: events.ConversationsDeleted) -> None:
        for conversation_id in event.conversation_ids:
            self._visitors.forget(conversation_id)

    def lead_updated(self, event: events.LeadUpdated) -> None:
        """It may have been given the conversation of a visitor who turned out to be this lead."""
        self._visitors.look_again(event.lead_id)

    def visitor_lost(self, event: events.VisitorLost) -> None:
        for lead_id in event.lead_ids:
            self._visitors.revoke(lead_id)
