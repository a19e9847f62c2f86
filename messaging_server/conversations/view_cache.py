"""Conversations as they were read last, so that a list reads only what has changed since.

Most of a page's cost is turning rows into JSON, and most of a page is the same the next time. A
row version has its own `xmin` (the id of the transaction that wrote it), so a view is as good as
new while its row still has that, whoever writes it. A change of the lead writes the rows of its
conversations too. All users together have one version: there are few, and they seldom change.
"""

from collections import OrderedDict
from math import inf
from uuid import UUID

import msgspec
from msgspec import Struct

from messaging_server.conversations.urgency import Wait
from messaging_server.models import Conversation

MAX_VIEWS = 10_000


Versions = tuple[int, int]
"""`xmin` of the conversation, which changes with its lead too, and the version of the users."""


class View(Struct):
    """A conversation as JSON, as it was shown last: most often it is shown the same again."""

    versions: Versions
    wait: Wait | None
    json: msgspec.Raw
    beginning_bytes: int
    """The rest depends on the viewer or the moment."""
    unread_count: int
    shown_from: float
    shown_until: float
    """Between them its urgency holds; in seconds of Unix time."""

    @classmethod
    def of(cls, versions: Versions, conversation: Conversation, wait: Wait | None) -> "View":
        """Of a conversation with nothing unread and without an urgency."""
        json = msgspec.json.encode(conversation)
        assert json.endswith(_OPEN_END)
        return cls(
            versions,
            wait,
            msgspec.Raw(json),
            beginning_bytes=len(json) - len(_OPEN_END),
            unread_count=0,
            shown_from=-inf if wait is None else inf,
            shown_until=inf,
        )

    def shown(self, *, unread_count: int, now: float) -> msgspec.Raw:
        """As one sees it who has so many unread messages, `now` by the database."""
        if unread_count != self.unread_count or not self.shown_from <= now < self.shown_until:
            urgency = b"null"
            if self.wait is not None:
                urgency = msgspec.json.encode(self.wait.urgency(now))
                self.shown_from, self.shown_until = now, self.wait.changes_after(now)
            beginning = bytes(self.json)[: self.beginning_bytes]
            self.unread_count = unread_count
            self.json = msgspec.Raw(_END % (beginning, unread_count, urgency))
        return self.json


_END = b'%b"unreadCount":%d,"urgency":%b}'
_OPEN_END = _END % (b"", 0, b"null")


class ViewCache:
    """At most `MAX_VIEWS`, about 1.5 KB each; the one that came first goes first.

    By the bytes of their ids, which have their hash in half the time of a `UUID`.
    """

    def __init__(self) -> None:
        self._views: OrderedDict[bytes, View] = OrderedDict()

    def find(self, conversation_id: UUID, versions: Versions) -> View | None:
        view = self._views.get(conversation_id.bytes)
        return view if view is not None and view.versions == versions else None

    def keep(self, conversation_id: UUID, view: View) -> None:
        """Not for what a transaction has read that may still change it."""
        key = conversation_id.bytes
        if len(self._views) >= MAX_VIEWS and key not in self._views:
            self._views.popitem(last=False)
        self._views[key] = view
