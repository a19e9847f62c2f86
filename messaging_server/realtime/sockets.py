"""The open sockets of this process: who they are, what they ask, when they must end.

A `Socket` is one client's connection as a state machine. It never blocks its reader: a command
that needs the database is put into a queue of the socket's own, worked off in order by a task
that lives only while there is work. `Sockets` knows all of them and is the one clock.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Protocol
from uuid import UUID

from loguru import logger
from msgspec import structs

from messaging_server import metrics
from messaging_server.config import RealtimeConfig
from messaging_server.conversations.service import Opened
from messaging_server.errors import (
    Conflict,
    DomainError,
    Forbidden,
    InternalError,
    NotFound,
    Unauthenticated,
    Unavailable,
)
from messaging_server.models import Caller, UserIdentity
from messaging_server.realtime.presence import Presence
from messaging_server.realtime.protocol import (
    MAX_FRAME_BYTES,
    MAX_FRAME_BYTES_BEFORE_AUTH,
    MAX_REPLY_BYTES,
    MAX_RESUMED_MESSAGES,
    PING,
    Auth,
    AuthReply,
    AuthResult,
    BadCommand,
    Close,
    Command,
    ConversationLost,
    Credentials,
    DoneReply,
    Frame,
    Join,
    JoinReply,
    JoinResult,
    Leave,
    NotOurProtocol,
    Pong,
    RemovalData,
    RemovalReason,
    StartTyping,
    StopTyping,
    decode_command,
    error_frame,
    push_frame,
    reply_frame,
)
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.wire import ABNORMAL, NO_STATUS, Wire
from messaging_server.users.service import Authenticated

MAX_WAITING_COMMANDS = 256
NO_ROOMS: frozenset[UUID] = frozenset()
CLOSE_LABELS = frozenset({*Close, 1000, 1001, NO_STATUS, ABNORMAL})

CLOSE_REASONS = {
    Close.TOO_BIG: "the frame is too big",
    Close.DEFECT: "internal error",
    Close.UNAVAILABLE: "the server can't check tokens now",
    Close.TOKEN_EXPIRED: "the token has expired",
    Close.TOO_SLOW: "too slow",
    Close.NO_PONG: "no pong",
    Close.TOO_MANY_FRAMES: "too many frames",
    Close.NOT_OUR_PROTOCOL: "one JSON object per text frame",
    Close.BAD_TOKEN: "a valid token is needed",
    Close.ORIGIN_REFUSED: "this origin is not allowed",
    Close.TOO_MANY_SOCKETS: "too many sockets of this user",
}


class Directory(Protocol):
    """What sockets ask the domain; both raise its errors."""

    async def authenticate(self, token: str) -> Authenticated: ...

    async def open_conversation(
        self, caller: Caller, conversation_id: UUID, *, after_seq: int | None, limit: int
    ) -> Opened: ...


class Socket:
    """One client. Nothing is known of it until `caller` is set; nothing happens once `closed`."""

    __slots__ = (
        "_commands",
        "_expires_at",
        "_ping_at",
        "_pong_at",
        "_sockets",
        "_timeout_code",
        "_tokens",
        "_tokens_at",
        "_wire",
        "caller",
        "closed",
        "due_at",
        "rooms",
        "send",
        "send_best_effort",
    )

    def __init__(self, wire: Wire, sockets: "Sockets", *, now: float) -> None:
        self._wire = wire
        self._sockets = sockets
        self.send: Callable[[Frame], None] = wire.send
        self.send_best_effort: Callable[[Frame], None] = wire.send_best_effort
        self.caller: Caller | None = None
        self.closed = False
        self.rooms: set[UUID] | frozenset[UUID] = NO_ROOMS
        self.due_at = now + sockets.config.auth_seconds
        self._commands: deque[Command] | None = None
        self._timeout_code = Close.BAD_TOKEN
        self._expires_at = self._ping_at = self.due_at
        self._pong_at: float | None = None
        self._tokens = float(sockets.config.command_burst)
        self._tokens_at = now

    # What the wire tells

    def receive_text(self, text: str) -> None:
        if self.closed or not self._spend():
            return
        limit = MAX_FRAME_BYTES if self.caller else MAX_FRAME_BYTES_BEFORE_AUTH
        if len(text) > limit or len(text.encode(errors="surrogatepass")) > limit:
            self.close(Close.TOO_BIG)
            return
        try:
            self._take(decode_command(text))
        except NotOurProtocol:
            self.close(Close.NOT_OUR_PROTOCOL)
        except BadCommand as bad:
            if bad.answerable:
                self.send(error_frame(bad.command_id, bad.error))
        except Exception:  # noqa: BLE001  # a defect ends this socket only
            logger.exception("A command failed")
            self.close(Close.DEFECT)

    def receive_binary(self) -> None:
        self.close(Close.NOT_OUR_PROTOCOL)

    def receive_control(self) -> None:
        self._spend()

    def too_slow(self) -> None:
        self.close(Close.TOO_SLOW)

    def disconnected(self, code: int) -> None:
        """Forget the socket; the wire is gone or going."""
        if self.closed:
            return
        self.closed = True
        for conversation_id in tuple(self.rooms):
            self._leave(conversation_id)
        self._sockets.remove(self, code)

    def close(self, code: Close) -> None:
        if not self.closed:
            self._wire.close(code, CLOSE_REASONS.get(code, ""))
            self.disconnected(code)

    # What rooms and events tell

    @property
    def full(self) -> bool:
        return self._wire.full

    def may_see(self, assigned_agent_id: UUID | None) -> bool:
        caller = self.caller
        return caller is not None and (caller.is_admin or caller.id == assigned_agent_id)

    def lose(self, conversation_id: UUID, reason: RemovalReason = RemovalReason.REASSIGNED) -> None:
        """Leave the room, if in it, and say that the conversation is out of sight."""
        self._leave(conversation_id)
        lost = ConversationLost(conversation_id=conversation_id, data=RemovalData(reason=reason))
        self.send(push_frame(lost))

    # Time

    def tick(self, now: float) -> None:
        """Something is due: the first token, a ping, a pong, or the end of the token."""
        if self.caller is None:
            self.close(self._timeout_code)
        elif now >= self._expires_at:
            self.close(Close.TOKEN_EXPIRED)
        elif self._pong_at is not None and now >= self._pong_at:
            self.close(Close.NO_PONG)
        elif now >= self._ping_at:
            self.send(PING)
            self._ping_at = now + self._sockets.config.ping_seconds
            if self._pong_at is None:
                self._pong_at = now + self._sockets.config.pong_seconds
        self._plan()

    def _plan(self) -> None:
        pong_at = self._ping_at if self._pong_at is None else self._pong_at
        self.due_at = min(self._expires_at, self._ping_at, pong_at)

    def _spend(self) -> bool:
        """Take one of the tokens that every frame costs; without one the socket ends."""
        config, now = self._sockets.config, self._sockets.now()
        refilled = self._tokens + (now - self._tokens_at) * config.commands_per_second
        self._tokens = min(refilled, config.command_burst) - 1
        self._tokens_at = now
        if self._tokens < 0:
            self.close(Close.TOO_MANY_FRAMES)
        return not self.closed

    # Commands

    def start_with(self, token: str) -> None:
        """The token came with the handshake, so that no `auth` frame is needed."""
        self._take(Auth(data=Credentials(token=token)))

    def _take(self, command: Command) -> None:
        """Do at once what can be done at once, unless something before it still waits."""
        if isinstance(command, Pong):
            self._pong_at = None
            if self.caller is not None:
                self._plan()
        elif self._commands is None and isinstance(command, Leave | StartTyping | StopTyping):
            try:
                self._do(command)
            except DomainError as error:
                self._refuse(command, error)
        elif self._commands is None:
            self._commands = deque((command,))
            self._sockets.run(self._work())
        elif len(self._commands) < MAX_WAITING_COMMANDS:
            self._commands.append(command)
        else:
            self.close(Close.TOO_MANY_FRAMES)

    async def _work(self) -> None:
        """Work off the queue; a command leaves it when it is done."""
        while self._commands and not self.closed:
            command = self._commands[0]
            try:
                if isinstance(command, Auth):
                    await self._authenticate(command)
                elif isinstance(command, Join):
                    await self._join(command)
                else:
                    self._do(command)
            except DomainError as error:
                self._refuse(command, error)
            except Exception:  # noqa: BLE001  # the next command may work
                logger.exception("A command failed")
                self._refuse(command, InternalError("Internal server error"))
            self._commands.popleft()
        self._commands = None

    def _refuse(self, command: Command, error: DomainError) -> None:
        """Answer with an error; a stranger who is not let in is sent away."""
        if command.id is not None:
            self.send(error_frame(command.id, error))
        if self.caller is not None:
            return
        if isinstance(error, Unauthenticated):
            self.close(Close.BAD_TOKEN)
        elif isinstance(error, Conflict):
            self.close(Close.TOO_MANY_SOCKETS)
        elif isinstance(error, Unavailable):
            self._timeout_code = Close.UNAVAILABLE

    def _answer(self, command: Command, reply: AuthReply | DoneReply) -> None:
        if command.id is not None:
            self.send(reply_frame(reply))

    async def _authenticate(self, command: Auth) -> None:
        authenticated = await self._sockets.authenticate(command.data.token)
        if self.closed:
            return
        caller = authenticated.caller
        if self.caller is not None and self.caller.id != caller.id:
            raise Forbidden("This socket belongs to another user: open a new one")
        if self.caller is None:
            self._sockets.admit(self, caller)
        self.caller = caller
        expires_in = (authenticated.expires_at - datetime.now(UTC)).total_seconds()
        now = self._sockets.now()
        self._expires_at = now + expires_in
        self._ping_at = now + self._sockets.config.ping_seconds * random.uniform(0.5, 1)  # noqa: S311  # spreads pings
        self._plan()
        user = UserIdentity(id=caller.id, email=caller.email, name=caller.name, role=caller.role)
        result = AuthResult(user=user, expires_in=max(0, int(expires_in)))
        self._answer(command, AuthReply(id=command.id, data=result))

    async def _join(self, command: Join) -> None:
        """Subscribe, read, reply, and let through what comes after: in this order."""
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

    def _do(self, command: Command) -> None:
        """The commands that need no reading."""
        assert isinstance(command, Leave | StartTyping | StopTyping)
        conversation_id, presence = command.conversation_id, self._sockets.presence
        self._known_caller()
        if isinstance(command, Leave):
            self._leave(conversation_id)
        elif conversation_id not in self.rooms:
            raise NotFound("This conversation has not been joined")
        elif isinstance(command, StartTyping):
            presence.start_typing(conversation_id, self)
        else:
            presence.stop_typing(conversation_id, self)
        self._answer(command, DoneReply(id=command.id))

    def _known_caller(self) -> Caller:
        if self.caller is None:
            raise Unauthenticated("The first frame must be auth")
        return self.caller

    def _leave(self, conversation_id: UUID) -> None:
        self._sockets.presence.stop_typing(conversation_id, self)
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


class Sockets:
    """All sockets of this process, by user once they are authenticated."""

    def __init__(
        self,
        config: RealtimeConfig,
        directory: Directory,
        *,
        rooms: Rooms[Socket],
        presence: Presence,
    ) -> None:
        self.config = config
        self.directory = directory
        self.rooms = rooms
        self.presence = presence
        self._all: set[Socket] = set()
        self._by_user: dict[UUID, list[Socket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._authenticating = 0
        self._revocations: dict[UUID, int] = {}
        self.now = time.monotonic

    async def stop(self) -> None:
        for socket in tuple(self._all):
            socket.close(Close.RESTART)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def count(self) -> int:
        """All that are open, authenticated or not."""
        return len(self._all)

    def open(self, wire: Wire) -> Socket:
        socket = Socket(wire, self, now=self.now())
        self._all.add(socket)
        return socket

    def admit(self, socket: Socket, caller: Caller) -> None:
        """The socket has shown whose it is; raises `Conflict` when the user has too many."""
        sockets = self._by_user.setdefault(caller.id, [])
        if len(sockets) >= self.config.sockets_per_user:
            raise Conflict(f"{len(sockets)} sockets of this user are open already")
        sockets.append(socket)
        metrics.SOCKETS.inc()
        self.presence.arrived(socket, first=len(sockets) == 1)

    def remove(self, socket: Socket, code: int) -> None:
        self._all.discard(socket)
        label = str(code) if code in CLOSE_LABELS else "other"
        metrics.SOCKET_CLOSES.labels(label).inc()
        if socket.caller is None:
            return
        metrics.SOCKETS.dec()
        sockets = self._by_user[socket.caller.id]
        sockets.remove(socket)
        if not sockets:
            del self._by_user[socket.caller.id]
        self.presence.departed(socket, last=not sockets)

    def run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def authenticate(self, token: str) -> Authenticated:
        """Asks again when the user's tokens were revoked while the first answer was on its way."""
        self._authenticating += 1
        try:
            seen = 0
            while True:
                authenticated = await self.directory.authenticate(token)
                revocations = self._revocations.get(authenticated.caller.id, 0)
                if revocations == seen:
                    return authenticated
                seen = revocations
        finally:
            self._authenticating -= 1
            if not self._authenticating:
                self._revocations.clear()

    def revoke(self, user_id: UUID) -> None:
        """Everything that the user was let in with is void."""
        if self._authenticating:
            self._revocations[user_id] = self._revocations.get(user_id, 0) + 1
        for socket in self.of_user(user_id):
            socket.close(Close.BAD_TOKEN)

    def of_user(self, user_id: UUID) -> list[Socket]:
        return list(self._by_user.get(user_id, ()))

    def authenticated(self) -> list[Socket]:
        return [socket for sockets in self._by_user.values() for socket in sockets]

    def callers(self) -> list[Caller]:
        """Who is online, each user once."""
        newest = (sockets[-1].caller for sockets in self._by_user.values())
        return [caller for caller in newest if caller is not None]

    def tick(self) -> None:
        now = self.now()
        for socket in [socket for socket in self._all if socket.due_at <= now]:
            socket.tick(now)
