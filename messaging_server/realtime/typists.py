"""Who is typing where: best effort, ended by the server, and forgotten on restart.

Agents hear of colleagues and of the lead; the lead hears that an agent types, by name only.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from messaging_server.models import Message, PublicMessage
from messaging_server.realtime.protocol import TypingStarted, TypingStopped, Typist, push_frame
from messaging_server.realtime.public_protocol import (
    PublicTypingStarted,
    PublicTypingStopped,
    TypistName,
)
from messaging_server.realtime.rooms import Rooms

if TYPE_CHECKING:
    from messaging_server.realtime.sockets import Socket
    from messaging_server.realtime.visitors import VisitorSocket


class TypingSocket(Protocol):
    """An authenticated socket of either kind."""

    @property
    def typist(self) -> Typist:
        """As agents see who is typing."""

    @property
    def public_name(self) -> str | None:
        """As the lead sees who is typing; None when it is the lead."""


class Typists:
    """Says when somebody starts and stops; `tick` ends what was not repeated."""

    def __init__(
        self,
        rooms: "Rooms[Socket, Message]",
        public_rooms: "Rooms[VisitorSocket, PublicMessage]",
        *,
        typing_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rooms = rooms
        self._public_rooms = public_rooms
        self._typing_seconds = typing_seconds
        self._now = now
        self._until: dict[tuple[UUID, TypingSocket], float] = {}

    def start(self, conversation_id: UUID, socket: TypingSocket) -> None:
        """Said once; a repetition only prolongs it."""
        started = (conversation_id, socket) not in self._until
        self._until[conversation_id, socket] = self._now() + self._typing_seconds
        if started:
            self._say(conversation_id, socket, started=True)

    def stop(self, conversation_id: UUID, socket: TypingSocket) -> None:
        """Said only if it was started."""
        if self._until.pop((conversation_id, socket), None) is not None:
            self._say(conversation_id, socket, started=False)

    def tick(self) -> None:
        now = self._now()
        for (conversation_id, socket), until in list(self._until.items()):
            if until <= now:
                self.stop(conversation_id, socket)

    def _say(self, conversation_id: UUID, socket: TypingSocket, *, started: bool) -> None:
        if conversation_id in self._rooms:
            push = (TypingStarted if started else TypingStopped)(
                conversation_id=conversation_id, data=socket.typist
            )
            self._rooms.hint(conversation_id, push_frame(push), sender=socket)
        name = socket.public_name
        if name is not None and conversation_id in self._public_rooms:
            public = (PublicTypingStarted if started else PublicTypingStopped)(
                conversation_id=conversation_id, data=TypistName(name=name)
            )
            self._public_rooms.hint(conversation_id, push_frame(public))
