"""Conversations as they were read last, so that a list reads only what has changed since.

Most of a page's cost is turning rows into conversations, and most of a page is the same the next
time. A row version has its own `xmin` (the id of the transaction that wrote it), so a view is as
good as new while the row that it was made of still has it, whoever writes it. A change of its lead
or agent makes a new version, too, by triggers. What depends on the moment or on the viewer
(urgency, unread count) is filled in anew.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from messaging_server.models import Conversation

MAX_VIEWS = 10_000


class View(Struct, frozen=True):
    """A conversation, with what its urgency is reckoned from."""

    version: int
    conversation: Conversation
    waiting_since: datetime | None
    urgent_since: datetime | None


class ViewCache:
    """At most `MAX_VIEWS`, about 2 KB each; the one that came first goes first."""

    def __init__(self) -> None:
        self._views: dict[UUID, View] = {}

    def find(self, conversation_id: UUID, version: int) -> View | None:
        view = self._views.get(conversation_id)
        return view if view is not None and view.version == version else None

    def keep(self, view: View) -> None:
        """Not for what a transaction has read that may still change it."""
        conversation_id = view.conversation.id
        if len(self._views) >= MAX_VIEWS and conversation_id not in self._views:
            del self._views[next(iter(self._views))]
        self._views[conversation_id] = view
