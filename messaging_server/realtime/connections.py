"""What all open sockets have in common: how they are let in, limited, kept alive and ended.

A `Connection` is one client's socket as a state machine. It never blocks its reader: a command
that needs the database is put into a queue of the socket's own, worked off in order by a task
that lives only while there is work. `Connections` knows all of one kind and is their clock.
What the commands do is for the two kinds: agents in `sockets`, visitors in `visitors`.
"""

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

from loguru import logger
from prometheus_client import Gauge

from messaging_server import metrics
from messaging_server.config import RealtimeConfig
from messaging_server.errors import (
    Conflict,
    DomainError,
    Forbidden,
    InternalError,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from messaging_server.realtime.protocol import (
    MAX_FRAME_BYTES,
    MAX_FRAME_BYTES_BEFORE_AUTH,
    PING,
    Auth,
    BadCommand,
    Close,
    Command,
    Credentials,
    Frame,
    NotOurProtocol,
    Pong,
    Reply,
    error_frame,
    reply_frame,
)
from messaging_server.realtime.wire import ABNORMAL, NO_STATUS, Wire

NOT_CHECKED = "The token could not be checked: the database is unavailable"

MAX_WAITING_COMMANDS = 256
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
    Close.TOO_MANY_SOCKETS: "too many sockets",
}

A = TypeVar("A")


class Connection(ABC):
    """One client. `owner_id` says whose it is once that is known; nothing happens once `closed`."""

    __slots__ = (
        "_commands",
        "_connections",
        "_expires_at",
        "_ping_at",
        "_pong_at",
        "_timeout_code",
        "_tokens",
        "_tokens_at",
        "_wire",
        "closed",
        "due_at",
        "owner_id",
        "send",
        "send_best_effort",
    )

    at_once: ClassVar[tuple[type[Command], ...]]
    """The commands that need no waiting."""

    def __init__(self, wire: Wire, connections: "Connections[Any]", *, now: float) -> None:
        self._wire = wire
        self._connections = connections
        self.send: Callable[[Frame], None] = wire.send
        self.send_best_effort: Callable[[Frame], None] = wire.send_best_effort
        self.owner_id: UUID | None = None
        self.closed = False
        self.due_at = now + connections.config.auth_seconds
        self._commands: deque[Command] | None = None
        self._timeout_code = Close.BAD_TOKEN
        self._expires_at = self._ping_at = self.due_at
        self._pong_at: float | None = None
        self._tokens = float(connections.config.command_burst)
        self._tokens_at = now

    # What the kinds differ in

    @staticmethod
    @abstractmethod
    def _decode(text: str) -> Command:
        """Raises `NotOurProtocol` or `BadCommand`, and nothing else."""

    @abstractmethod
    async def _authenticate(self, command: Auth) -> None:
        """Call `_let_in`, and answer."""

    @abstractmethod
    async def _do(self, command: Command) -> None:
        """A command of the queue that is not among `at_once`."""

    @abstractmethod
    def _do_at_once(self, command: Command) -> None: ...

    @abstractmethod
    def _leave_all(self) -> None:
        """The socket has ended: nobody may find it any more."""

    # What the wire tells

    def receive_text(self, text: str) -> None:
        if self.closed or not self._spend():
            return
        limit = MAX_FRAME_BYTES if self.owner_id else MAX_FRAME_BYTES_BEFORE_AUTH
        if len(text) > limit or len(text.encode(errors="surrogatepass")) > limit:
            self.close(Close.TOO_BIG)
            return
        try:
            self._take(self._decode(text))
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
        self._leave_all()
        self._connections.remove(self, code)

    def close(self, code: Close) -> None:
        if not self.closed:
            self._wire.close(code, CLOSE_REASONS.get(code, ""))
            self.disconnected(code)

    @property
    def full(self) -> bool:
        return self._wire.full

    # Time

    def tick(self, now: float) -> None:
        """Something is due: the first token, a ping, a pong, or the end of the token."""
        if self.owner_id is None:
            self.close(self._timeout_code)
        elif now >= self._expires_at:
            self.close(Close.TOKEN_EXPIRED)
        elif self._pong_at is not None and now >= self._pong_at:
            self.close(Close.NO_PONG)
        elif now >= self._ping_at:
            self.send(PING)
            self._ping_at = now + self._connections.config.ping_seconds
            if self._pong_at is None:
                self._pong_at = now + self._connections.config.pong_seconds
        self._plan()

    def _plan(self) -> None:
        pong_at = self._ping_at if self._pong_at is None else self._pong_at
        self.due_at = min(self._expires_at, self._ping_at, pong_at)

    def _spend(self) -> bool:
        """Take one of the tokens that every frame costs; without one the socket ends."""
        config, now = self._connections.config, self._connections.now()
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
            if self.owner_id is not None:
                self._plan()
        elif self._commands is None and isinstance(command, self.at_once):
            try:
                self._do_at_once(command)
            except DomainError as error:
                self._refuse(command, error)
        elif self._commands is None:
            self._commands = deque((command,))
            self._connections.run(self._work())
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
                elif isinstance(command, self.at_once):
                    self._do_at_once(command)
                else:
                    await self._do(command)
            except DomainError as error:
                self._refuse(command, error)
            except Exception:  # noqa: BLE001  # the next command may work
                logger.exception("A command failed")
                self._refuse(command, InternalError("Internal server error"))
            self._commands.popleft()
        self._commands = None

    def stranger(self) -> DomainError:
        """What a command gets that needs a known sender, and may follow `auth` at once."""
        if self._timeout_code is Close.UNAVAILABLE:
            return Unavailable(NOT_CHECKED, retry_after_seconds=1)
        return Unauthenticated("The first frame must be auth")

    def _refuse(self, command: Command, error: DomainError) -> None:
        """Answer with an error; a stranger who is not let in is sent away."""
        if command.id is not None:
            self.send(error_frame(command.id, error))
        if self.owner_id is not None:
            return
        if isinstance(error, Unauthenticated):
            self.close(Close.BAD_TOKEN)
        elif isinstance(error, Forbidden):
            self.close(Close.ORIGIN_REFUSED)
        elif isinstance(error, Conflict):
            self.close(Close.TOO_MANY_SOCKETS)
        elif isinstance(error, RateLimited):
            self.close(Close.TOO_MANY_FRAMES)
        elif isinstance(error, Unavailable):
            self._timeout_code = Close.UNAVAILABLE

    def _answer(self, command: Command, reply: Reply) -> None:
        if command.id is not None:
            self.send(reply_frame(reply))

    def _let_in(self, owner_id: UUID, expires_at: datetime) -> int:
        """The token is this owner's; returns the seconds until it ends."""
        if self.owner_id is not None and self.owner_id != owner_id:
            raise Forbidden("This socket belongs to somebody else: open a new one")
        if self.owner_id is None:
            self._connections.admit(self, owner_id)
        self.owner_id = owner_id
        expires_in = (expires_at - datetime.now(UTC)).total_seconds()
        now = self._connections.now()
        self._expires_at = now + expires_in
        self._ping_at = now + self._connections.config.ping_seconds * random.uniform(0.5, 1)  # noqa: S311  # spreads pings
        self._plan()
        return max(0, int(expires_in))


C = TypeVar("C", bound=Connection)


class Connections(Generic[C]):
    """All sockets of one kind in this process, by owner once they are authenticated."""

    def __init__(
        self, config: RealtimeConfig, *, owner: str, most_of_one_owner: int, gauge: Gauge
    ) -> None:
        """`owner`: what messages call one."""
        self.config = config
        self.now = time.monotonic
        self._owner = owner
        self._most_of_one_owner = most_of_one_owner
        self._gauge = gauge
        self._all: set[C] = set()
        self._by_owner: dict[UUID, list[C]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._authenticating = 0
        self._changes: dict[UUID, int] = {}

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

    def add(self, socket: C) -> C:
        self._all.add(socket)
        return socket

    def admit(self, socket: C, owner_id: UUID) -> None:
        """The socket has shown whose it is; raises `Conflict` when the owner has too many."""
        sockets = self._by_owner.setdefault(owner_id, [])
        if len(sockets) >= self._most_of_one_owner:
            raise Conflict(f"{len(sockets)} sockets of this {self._owner} are open already")
        sockets.append(socket)
        self._gauge.inc()

    def remove(self, socket: C, code: int) -> None:
        self._all.discard(socket)
        label = str(code) if code in CLOSE_LABELS else "other"
        metrics.SOCKET_CLOSES.labels(label).inc()
        if socket.owner_id is None:
            return
        self._gauge.dec()
        sockets = self._by_owner[socket.owner_id]
        sockets.remove(socket)
        if not sockets:
            del self._by_owner[socket.owner_id]

    def run(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def up_to_date(self, read: Callable[[], Awaitable[A]], owner: Callable[[A], UUID]) -> A:
        """What `read` says of a token.

        Asks again when something of the owner changed while the first answer was on its way.
        """
        self._authenticating += 1
        try:
            seen = 0
            while True:
                authenticated = await read()
                changes = self._changes.get(owner(authenticated), 0)
                if changes == seen:
                    return authenticated
                seen = changes
        finally:
            self._authenticating -= 1
            if not self._authenticating:
                self._changes.clear()

    def changed(self, owner_id: UUID) -> None:
        """What is being read of the owner may be out of date."""
        if self._authenticating:
            self._changes[owner_id] = self._changes.get(owner_id, 0) + 1

    def revoke(self, owner_id: UUID) -> None:
        """Everything that the owner was let in with is void."""
        self.changed(owner_id)
        for socket in self.of_owner(owner_id):
            socket.close(Close.BAD_TOKEN)

    def of_owner(self, owner_id: UUID) -> list[C]:
        return list(self._by_owner.get(owner_id, ()))

    def authenticated(self) -> list[C]:
        return [socket for sockets in self._by_owner.values() for socket in sockets]

    def tick(self) -> None:
        now = self.now()
        for socket in [socket for socket in self._all if socket.due_at <= now]:
            socket.tick(now)
