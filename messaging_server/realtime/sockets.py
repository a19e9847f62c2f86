"""Agents' sockets: what a user's client may ask for, and which conversations it has joined."""

from typing import Protocol
from uuid import UUID

from msgspec import structs

from messaging_server import metrics
from messaging_server.config import RealtimeConfig
from messaging_server.conversations.service import Opened
from messaging_server.errors import Conflict, NotFound
from messaging_server.models import Caller, Message, UserIdentity
from messaging_server.realtime.connections import Connection, Connections
from messaging_server.realtime.presence import Presence
from messaging_server.realtime.protocol import (
    MAX_REPLY_BYTES,
    MAX_RESUMED_MESSAGES,
    Auth,
    AuthReply,
    AuthResult,
    Command,
    ConversationLost,
    DoneReply,
    Frame,
    Join,
    JoinReply,
    JoinResult,
    Leave,
    RemovalData,
    RemovalReason,
    StartTyping,
    StopTyping,
    Typist,
    decode_command,
    push_frame,
    reply_frame,
)
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.typists import Typists
from messaging_server.realtime.wire import Wire
from messaging_server.users.service import Authenticated

NO_ROOMS: frozenset[UUID] = frozenset()
NAMELESS_AGENT = "Agent"


class Directory(Protocol):
    """What sockets ask the domain; both raise its errors."""

    async def authenticate(self, token: str) -> Authenticated: ...

    async def open_conversation(
        self, caller: Caller, conversation_id: UUID, *, after_seq: int | None, limit: int
    ) -> Opened: ...


class Socket(Connection):
    """One client of a user. Nothing is known of it until `caller` is set."""

    __slots__ = ("_sockets", "caller", "rooms")

    at_once = (Leave, StartTyping, StopTyping)
    _decode = staticmethod(decode_command)

    def __init__(self, wire: Wire, sockets: "Sockets", *, now: float) -> None:
        super().__init__(wire, sockets, now=now)
        self._sockets = sockets
        self.caller: Caller | None = None
        self.rooms: set[UUID] | frozenset[UUID] = NO_ROOMS

    # What rooms and events tell

    def may_see(self, assigned_agent_id: UUID | None) -> bool:
        caller = self.caller
        return caller is not None and (caller.is_admin or caller.id == assigned_agent_id)

    def lose(self, conversation_id: UUID, reason: RemovalReason = RemovalReason.REASSIGNED) -> None:
        """Leave the room, if in it, and say that the conversation is out of sight."""
        self._leave(conversation_id)
        lost = ConversationLost(conversation_id=conversation_id, data=RemovalData(reason=reason))
        self.send(push_frame(lost))

    # Who is typing

    @property
    def typist(self) -> Typist:
        caller = self._known_caller()
        return Typist(user_id=caller.id, email=caller.email, name=caller.name)

    @property
    def public_name(self) -> str | None:
        return self._known_caller().name or NAMELESS_AGENT

    # Commands

    async def _authenticate(self, command: Auth) -> None:
        authenticated = await self._sockets.authenticate(command.data.token)
        if self.closed:
            return
        caller = authenticated.caller
        expires_in = self._let_in(caller.id, authenticated.expires_at)
        self.caller = caller
        user = UserIdentity(id=caller.id, email=caller.email, name=caller.name, role=caller.role)
        result = AuthResult(user=user, expires_in=expires_in)
        self._answer(command, AuthReply(id=command.id, data=result))

    async def _do(self, command: Command) -> None:
        """Subscribe, read, reply, and let through what comes after: in this order."""
        assert isinstance(command, Join)
        conversation_id, rooms = command.conversation_id, self._sockets.rooms
        limit = self._sockets.config.rooms_per_socket
        if conversation_id not in self.rooms and len(self.rooms) >= limit:
            raise Conflict(f"{limit} conversations are joined: leave one first")
        rooms.subscribe(conversation_id, self)
        try:
            opened = await self._read_for_join(command)
        except NotFound:
            self._leave(conversation_id)
            raise
        except BaseException:
            rooms.abandon(conversation_id, self)
            raise
        finally:
            if self.closed:
                rooms.leave(conversation_id, self)
        if not self.closed:
            self.rooms = {*self.rooms, conversation_id}
            if command.id is not None:
                self.send(join_frame(command, opened))
            rooms.admit(conversation_id, self, opened.conversation.last_seq)
            self._sockets.presence.moved(conversation_id)

    async def _read_for_join(self, command: Join) -> Opened:
        opened = await self._sockets.directory.open_conversation(
            self._known_caller(),
            command.conversation_id,
            after_seq=command.after_seq,
            limit=MAX_RESUMED_MESSAGES,
        )
        self._check_sight(opened)
        return opened

    def _check_sight(self, opened: Opened) -> None:
        """What was read may be older than an assignment that is known by now."""
        conversation, rooms = opened.conversation, self._sockets.rooms
        agent = conversation.assigned_agent
        rooms.learn(
            conversation.id,
            version=conversation.version,
            assigned_agent_id=agent.id if agent else None,
        )
        if not self.may_see(rooms.assigned_agent(conversation.id)):
            raise NotFound("No such conversation")

    def _do_at_once(self, command: Command) -> None:
        assert isinstance(command, Leave | StartTyping | StopTyping)
        conversation_id, typists = command.conversation_id, self._sockets.typists
        self._known_caller()
        if isinstance(command, Leave):
            self._leave(conversation_id)
        elif conversation_id not in self.rooms:
            raise NotFound("This conversation has not been joined")
        elif isinstance(command, StartTyping):
            typists.start(conversation_id, self)
        else:
            typists.stop(conversation_id, self)
        self._answer(command, DoneReply(id=command.id))

    def _known_caller(self) -> Caller:
        if self.caller is None:
            raise self.stranger()
        return self.caller

    def _leave_all(self) -> None:
        for conversation_id in tuple(self.rooms):
            self._leave(conversation_id)

    def _leave(self, conversation_id: UUID) -> None:
        self._sockets.typists.stop(conversation_id, self)
        self._sockets.rooms.leave(conversation_id, self)
        if conversation_id in self.rooms:
            self.rooms = self.rooms - {conversation_id}
            self._sockets.presence.moved(conversation_id)


def join_frame(command: Join, opened: Opened) -> Frame:
    """The reply to a join; too long for one frame, it is a reset as well."""
    result = JoinResult(
        conversation=opened.conversation,
        last_seq=opened.conversation.last_seq,
        messages=opened.messages,
        reset=opened.reset,
    )
    frame = reply_frame(JoinReply(id=command.id, data=result))
    if len(frame.data) <= MAX_REPLY_BYTES:
        return frame
    result = structs.replace(result, messages=(), reset=True)
    return reply_frame(JoinReply(id=command.id, data=result))


class Sockets(Connections[Socket]):
    """All sockets of agents in this process, by user once they are authenticated."""

    def __init__(
        self,
        config: RealtimeConfig,
        directory: Directory,
        *,
        rooms: Rooms[Socket, Message],
        presence: Presence,
        typists: Typists,
    ) -> None:
        super().__init__(
            config,
            owner="user",
            most_of_one_owner=config.sockets_per_user,
            gauge=metrics.SOCKETS,
        )
        self.directory = directory
        self.rooms = rooms
        self.presence = presence
        self.typists = typists

    def open(self, wire: Wire) -> Socket:
        return self.add(Socket(wire, self, now=self.now()))

    def admit(self, socket: Socket, owner_id: UUID) -> None:
        super().admit(socket, owner_id)
        self.presence.arrived(socket, first=len(self.of_owner(owner_id)) == 1)

    def remove(self, socket: Socket, code: int) -> None:
        super().remove(socket, code)
        if socket.owner_id is not None:
            self.presence.departed(socket, last=not self.of_owner(socket.owner_id))

    async def authenticate(self, token: str) -> Authenticated:
        return await self.up_to_date(
            lambda: self.directory.authenticate(token), lambda found: found.caller.id
        )

    def rename(self, user_id: UUID, name: str | None) -> None:
        """What is said of the user from now on has the new name."""
        self.changed(user_id)
        for socket in self.of_owner(user_id):
            if socket.caller is not None:
                socket.caller = structs.replace(socket.caller, name=name)

    def callers(self) -> list[Caller]:
        """Who is online, each user once."""
        newest = (sockets[-1].caller for sockets in self._by_owner.values())
        return [caller for caller in newest if caller is not None]
