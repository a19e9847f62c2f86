"""Conversations as they were read last, so that a list reads only what has changed since.

Most of a page's cost is turning rows into conversations, and most of a page is the same the next
time. A row version has its own `xmin` (the id of the transaction that wrote it), so a view is as
good as new while the rows that it was made of still have theirs, whoever writes them. All users
together have one version: there are few, and they seldom change. What depends on the moment or on
the viewer (urgency, unread count) is filled in anew.
"""

from datetime import datetime
from uuid import UUID

from msgspec import Struct

from messaging_server.models import Conversation

MAX_VIEWS = 10_000


Versions = tuple[int, int, int]
"""`xmin` of the conversation and of its lead, and the version of the users."""


class View(Struct, frozen=True):
    """A conversation, with what its urgency is reckoned from."""

    versions: Versions
    conversation: Conversation
    waiting_since: datetime | None
    urgent_since: datetime | None


class ViewCache:
    """At most `MAX_VIEWS`, about 2 KB each; the one that came first goes first."""

    def __init__(self) -> None:
        self._views: dict[UUID, View] = {}

    def find(self, conversation_id: UUID, versions: Versions) -> View | None:
        view = self._views.get(conversation_id)
        return view if view is not None and view.versions == versions else None

    def keep(self, view: View) -> None:
        """Not for what a transaction has read that may still change it."""
        conversation_id = view.conversation.id
        if len(self._views) >= MAX_VIEWS and conversation_id not in self._views:
            del self._views[next(iter(self._views))]
        self._views[conversation_id] = view
