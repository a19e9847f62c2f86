"""Who is online, who is viewing what: among agents, best effort, forgotten on restart.

Presence is sent as a whole, not as a difference, at most once a second, and the more rarely the
more sockets are open.
"""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from uuid import UUID

from messaging_server.models import Caller, Message
from messaging_server.realtime.protocol import (
    MAX_PRESENT_USERS,
    OnlineData,
    OnlineUpdate,
    Person,
    ViewingData,
    ViewingUpdate,
    push_frame,
)
from messaging_server.realtime.rooms import Rooms

if TYPE_CHECKING:
    from messaging_server.realtime.sockets import Socket, Sockets

PRESENCE_SECONDS = 1.0
SOCKETS_PER_SECOND = 500


class Presence:
    """Collects what changes; `tick` says it."""

    def __init__(
        self,
        rooms: "Rooms[Socket, Message]",
        *,
        presence_seconds: float = PRESENCE_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rooms = rooms
        self._presence_seconds = presence_seconds
        self._now = now
        self._moved: set[UUID] = set()
        self._online_changed = False
        self._newcomers: set[Socket] = set()
        self._quiet_until = 0.0

    def arrived(self, socket: "Socket", *, first: bool) -> None:
        """A socket is authenticated; `first`: its user was not online before."""
        self._newcomers.add(socket)
        self._online_changed |= first

    def departed(self, socket: "Socket", *, last: bool) -> None:
        """An authenticated socket is gone; `last`: its user is not online any more."""
        self._newcomers.discard(socket)
        self._online_changed |= last

    def moved(self, conversation_id: UUID) -> None:
        """Somebody has joined or left the conversation."""
        self._moved.add(conversation_id)

    def tick(self, sockets: "Sockets") -> None:
        now = self._now()
        if now >= self._quiet_until:
            self._say_viewing()
            self._say_online(sockets)
            pause = max(1.0, sockets.count / SOCKETS_PER_SECOND) * self._presence_seconds
            self._quiet_until = now + pause

    def _say_viewing(self) -> None:
        moved, self._moved = self._moved, set()
        for conversation_id in moved:
            members = self._rooms.members(conversation_id)
            if members:
                viewing = people(member.caller for member in members)
                data = ViewingData(viewing=viewing[:MAX_PRESENT_USERS], viewing_count=len(viewing))
                frame = push_frame(ViewingUpdate(conversation_id=conversation_id, data=data))
                self._rooms.hint(conversation_id, frame)

    def _say_online(self, sockets: "Sockets") -> None:
        """To everybody when the list has changed, else to those who have not seen it."""
        audience = sockets.authenticated() if self._online_changed else list(self._newcomers)
        self._online_changed = False
        self._newcomers.clear()
        if audience:
            online = people(sockets.callers())
            data = OnlineData(online=online[:MAX_PRESENT_USERS], online_count=len(online))
            frame = push_frame(OnlineUpdate(data=data))
            for socket in audience:
                socket.send_best_effort(frame)


def person(caller: Caller) -> Person:
    return Person(user_id=caller.id, email=caller.email, name=caller.name)


def people(callers: Iterable[Caller | None]) -> list[Person]:
    """Each user once, in order of appearance."""
    unique = {caller.id: caller for caller in callers if caller is not None}
    return [person(caller) for caller in unique.values()]
