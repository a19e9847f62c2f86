"""Visitors' sockets: each hears its lead's one conversation, and nothing else.

Which conversation that is, the domain says (`open_visitor_conversation`). It may not exist yet
when the visitor joins, and another one may take its place: a joined socket looks again whenever
its lead gets a conversation, and from time to time, since that fact may be lost.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from msgspec import structs

from messaging_server import metrics
from messaging_server.config import RealtimeConfig
from messaging_server.conversations.visitors import VisitorOpened
from messaging_server.errors import NotFound
from messaging_server.http import Headers, network_of
from messaging_server.models import PublicMessage, Visitor
from messaging_server.realtime.connections import Connection, Connections
from messaging_server.realtime.protocol import (
    MAX_REPLY_BYTES,
    MAX_RESUMED_MESSAGES,
    Auth,
    Close,
    Command,
    DoneReply,
    Frame,
    Typist,
    push_frame,
    reply_frame,
)
from messaging_server.realtime.public_protocol import (
    Delivered,
    LeadIdentity,
    Position,
    PublicAuthReply,
    PublicAuthResult,
    PublicConversationLost,
    PublicJoin,
    PublicJoinReply,
    PublicJoinResult,
    PublicLeave,
    PublicRemovalData,
    PublicRemovalReason,
    PublicStartTyping,
    PublicStopTyping,
    Seen,
    decode_public_command,
)
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.typists import Typists
from messaging_server.realtime.wire import Wire

NO_SUCH_CONVERSATION = "No such conversation"
ORIGIN_HEADERS = frozenset({b"origin", b"host"})


class AuthenticatedVisitor(Protocol):
    """A visitor with a valid token, and when that token ends."""

    @property
    def visitor(self) -> Visitor: ...

    @property
    def expires_at(self) -> datetime: ...


class VisitorDirectory(Protocol):
    """What visitors' sockets ask the domain; all raise its errors."""

    def count_command(self, visitor: Visitor | None, network: str) -> None:
        """Raises `RateLimited` when the visitor, if known, or its network has sent too many."""

    async def authenticate_visitor(self, token: str, headers: Headers) -> AuthenticatedVisitor:
        """Raises `Forbidden` when the `Origin` among `headers` is not one of the inbox."""

    async def open_visitor_conversation(
        self, visitor: Visitor, *, after_seq: int | None, limit: int
    ) -> VisitorOpened: ...

    async def fetch_visitor_conversations(
        self, visitors: Sequence[Visitor]
    ) -> Sequence[UUID | None]:
        """The conversation of each."""

    async def mark_delivered(
        self, visitor: Visitor, seq: int, *, conversation_id: UUID | None
    ) -> None:
        """In this conversation of the visitor; None: in the newest."""

    async def mark_read(self, visitor: Visitor, seq: int, *, conversation_id: UUID | None) -> None:
        """As `mark_delivered`."""


class LookAgain(Command, frozen=True):
    """The server's own: another conversation may be the visitor's now."""


class VisitorSocket(Connection):
    """One client of a visitor.

    Once `joined`, it is in the room of `conversation_id`, or waits for one when that is None.
    """

    __slots__ = (
        "_expected_id",
        "_headers",
        "_visitors",
        "_will_look",
        "conversation_id",
        "joined",
        "network",
        "visitor",
    )

    at_once = (PublicLeave, PublicStartTyping, PublicStopTyping)
    _decode = staticmethod(decode_public_command)

    def __init__(
        self, wire: Wire, visitors: "Visitors", *, network: str, headers: Headers, now: float
    ) -> None:
        super().__init__(wire, visitors, now=now)
        self._visitors = visitors
        self.network = network
        self._headers = tuple(pair for pair in headers if pair[0] in ORIGIN_HEADERS)
        self.visitor: Visitor | None = None
        self.conversation_id: UUID | None = None
        self.joined = False
        self._expected_id: UUID | None = None  # what a join will probably find
        self._will_look = False

    # What rooms and events tell

    def may_see(self, assigned_agent_id: UUID | None) -> bool:  # noqa: ARG002  # whoever has it
        return True

    def lose(
        self,
        conversation_id: UUID,
        reason: PublicRemovalReason = PublicRemovalReason.DELETED,
    ) -> None:
        """Leave the room, say so, and wait for another conversation."""
        if conversation_id != self.conversation_id:
            return
        self._leave_room()
        lost = PublicConversationLost(
            conversation_id=conversation_id, data=PublicRemovalData(reason=reason)
        )
        self.send(push_frame(lost))

    def look_again(self) -> None:
        """Find out, after all that is being done, whether the conversation is still the one."""
        if self.joined and not self.closed and not self._will_look:
            self._will_look = True
            self._take(LookAgain())

    # Who is typing

    @property
    def typist(self) -> Typist:
        visitor = self._known_visitor()
        return Typist(user_id=visitor.lead_id, email=None, name=visitor.name)

    @property
    def public_name(self) -> str | None:
        return None

    # Commands

    async def _authenticate(self, command: Auth) -> None:
        self._count()
        authenticated = await self._visitors.authenticate(command.data.token, self._headers)
        if self.closed:
            return
        visitor = authenticated.visitor
        expires_in = self._let_in(visitor.lead_id, authenticated.expires_at)
        self.visitor = visitor
        opened = await self._read(after_seq=None)
        self._expected_id = opened.conversation_id
        result = PublicAuthResult(
            lead=LeadIdentity(id=visitor.lead_id, name=visitor.name, verified=visitor.verified),
            conversation_id=opened.conversation_id,
            expires_in=expires_in,
        )
        self._answer(command, PublicAuthReply(id=command.id, data=result))

    async def _do(self, command: Command) -> None:
        if isinstance(command, LookAgain):
            await self._follow()
            return
        self._known_visitor()
        self._count()
        if isinstance(command, PublicJoin):
            await self._join(command)
        else:
            await self._mark(command)

    def _count(self) -> None:
        """What costs statements is limited as calls over REST are."""
        self._visitors.directory.count_command(self.visitor, self.network)

    async def _join(self, command: PublicJoin) -> None:
        """Subscribe, read, reply, and let through what comes after: in this order."""
        joined_before, self.joined = self.joined, True
        try:
            opened = await self._subscribe_and_read(command)
        except BaseException:
            self.joined = joined_before
            raise
        if self.closed:
            return
        if command.id is not None:
            self.send(public_join_frame(command, opened))
        if opened.conversation_id is not None:
            self._visitors.rooms.admit(opened.conversation_id, self, opened.last_seq)
            delivered = min(command.after_seq or 0, opened.last_seq)
            if delivered:
                self._take(Delivered(data=Position(seq=delivered)))

    async def _subscribe_and_read(self, command: PublicJoin) -> VisitorOpened:
        """What was read after subscribing to its room, if there is a conversation.

        Which room that is, only reading tells: as long as it was another one, again.
        """
        rooms, expected = self._visitors.rooms, self.conversation_id or self._expected_id
        while True:
            if expected is not None:
                rooms.subscribe(expected, self)
            try:
                opened = await self._read(after_seq=command.after_seq)
                if command.conversation_id not in (None, opened.conversation_id):
                    raise NotFound(NO_SUCH_CONVERSATION)
            except BaseException:
                if expected is not None:
                    rooms.abandon(expected, self)
                raise
            finally:
                if self.closed and expected is not None:
                    rooms.leave(expected, self)
            if self.closed:
                return opened
            if opened.conversation_id == expected:
                self.conversation_id = expected
                return opened
            self._leave_room()
            if expected is not None:
                rooms.leave(expected, self)
            expected = opened.conversation_id

    async def _follow(self) -> None:
        """If another conversation is the visitor's now, hear it from its first message on."""
        self._will_look = False
        if not self.joined:
            return
        found = await self._read(after_seq=None)
        if self.closed or not self.joined or found.conversation_id == self.conversation_id:
            return
        if self.conversation_id is not None:
            gone = found.conversation_id is None
            reason = PublicRemovalReason.DELETED if gone else PublicRemovalReason.REPLACED
            self.lose(self.conversation_id, reason)
        if found.conversation_id is not None:
            await self._enter(found.conversation_id)

    async def _enter(self, conversation_id: UUID) -> None:
        rooms = self._visitors.rooms
        rooms.subscribe(conversation_id, self)
        try:
            opened = await self._read(after_seq=0)
        except BaseException:
            rooms.leave(conversation_id, self)
            raise
        if self.closed or opened.conversation_id != conversation_id:
            rooms.leave(conversation_id, self)
            self.look_again()
            return
        self.conversation_id = conversation_id
        for message in opened.messages:
            rooms.publish(message)
        rooms.admit(conversation_id, self, 0)
        rooms.extend(conversation_id, opened.last_seq)

    async def _read(self, *, after_seq: int | None) -> VisitorOpened:
        return await self._visitors.directory.open_visitor_conversation(
            self._known_visitor(), after_seq=after_seq, limit=MAX_RESUMED_MESSAGES
        )

    async def _mark(self, command: Command) -> None:
        assert isinstance(command, Delivered | Seen)
        directory = self._visitors.directory
        mark = directory.mark_delivered if isinstance(command, Delivered) else directory.mark_read
        visitor, known = self._known_visitor(), self.conversation_id
        await mark(visitor, command.data.seq, conversation_id=known or self._expected_id)
        self._answer(command, DoneReply(id=command.id))

    def _do_at_once(self, command: Command) -> None:
        assert isinstance(command, PublicLeave | PublicStartTyping | PublicStopTyping)
        self._known_visitor()
        ours = command.conversation_id in (None, self.conversation_id)
        if isinstance(command, PublicLeave):
            if ours:
                self._leave_room()
                self.joined = False
        elif not (self.joined and ours):
            raise NotFound("This conversation has not been joined")
        elif self.conversation_id is not None:
            typists = self._visitors.typists
            say = typists.start if isinstance(command, PublicStartTyping) else typists.stop
            say(self.conversation_id, self)
        self._answer(command, DoneReply(id=command.id))

    def _known_visitor(self) -> Visitor:
        if self.visitor is None:
            raise self.stranger()
        return self.visitor

    def _leave_all(self) -> None:
        self._leave_room()
        self.joined = False

    def _leave_room(self) -> None:
        conversation_id = self.conversation_id
        if conversation_id is not None:
            self._visitors.typists.stop(conversation_id, self)
            self._visitors.rooms.leave(conversation_id, self)
            self.conversation_id, self._expected_id = None, conversation_id


def public_join_frame(command: PublicJoin, opened: VisitorOpened) -> Frame:
    """The reply to a join; too long for one frame, it is a reset as well."""
    result = PublicJoinResult(
        conversation_id=opened.conversation_id,
        last_seq=opened.last_seq,
        messages=opened.messages,
        reset=opened.reset,
    )
    frame = reply_frame(PublicJoinReply(id=command.id, data=result))
    if len(frame.data) <= MAX_REPLY_BYTES:
        return frame
    result = structs.replace(result, messages=(), reset=True)
    return reply_frame(PublicJoinReply(id=command.id, data=result))


class Visitors(Connections[VisitorSocket]):
    """All sockets of visitors in this process, by lead once they are authenticated."""

    def __init__(
        self,
        config: RealtimeConfig,
        directory: VisitorDirectory,
        *,
        rooms: Rooms[VisitorSocket, PublicMessage],
        typists: Typists,
    ) -> None:
        super().__init__(
            config,
            owner="visitor",
            most_of_one_owner=config.sockets_per_visitor,
            gauge=metrics.VISITOR_SOCKETS,
        )
        self.directory = directory
        self.rooms = rooms
        self.typists = typists
        self._by_network: dict[str, int] = {}

    def open(self, wire: Wire, *, address: str, headers: Headers) -> VisitorSocket:
        """May be closed at once: too many of this address's network are open already."""
        network = network_of(address)
        socket = self.add(
            VisitorSocket(wire, self, network=network, headers=headers, now=self.now())
        )
        self._by_network[network] = self._by_network.get(network, 0) + 1
        if self._by_network[network] > self.config.visitor_sockets_per_address:
            socket.close(Close.TOO_MANY_SOCKETS)
        return socket

    def remove(self, socket: VisitorSocket, code: int) -> None:
        super().remove(socket, code)
        self._by_network[socket.network] -= 1
        if not self._by_network[socket.network]:
            del self._by_network[socket.network]

    async def authenticate(self, token: str, headers: Headers) -> AuthenticatedVisitor:
        return await self.up_to_date(
            lambda: self.directory.authenticate_visitor(token, headers),
            lambda found: found.visitor.lead_id,
        )

    def look_again(self, lead_id: UUID, *, unless_in: UUID | None = None) -> None:
        """Another conversation may be the lead's now."""
        for socket in self.of_owner(lead_id):
            if unless_in is None or socket.conversation_id != unless_in:
                socket.look_again()

    def forget(self, conversation_id: UUID) -> None:
        """The conversation is gone."""
        for socket in self.rooms.close(conversation_id):
            socket.lose(conversation_id)

    async def sweep(self) -> None:
        """Find what was committed but never stated: messages, and conversations of visitors."""
        for conversation_id in await self.rooms.sweep():
            self.forget(conversation_id)
        sockets = [socket for socket in self.authenticated() if socket.joined]
        visitors = [socket.visitor for socket in sockets if socket.visitor is not None]
        if not visitors:
            return
        found = await self.directory.fetch_visitor_conversations(visitors)
        for socket, newest_id in zip(sockets, found, strict=True):
            if socket.conversation_id != newest_id:
                socket.look_again()
