"""`/ws`: lets sockets in, and puts the parts of realtime together.

The handler only greets: it checks the origin, accepts and hands the connection to a `Socket`.
Refusals come after accepting, as a close code, because browsers can't see anything else.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from litestar import asgi
from litestar.enums import ScopeType
from litestar.types import Receive, Scope, Send
from loguru import logger

from messaging_server.config import Config, RealtimeConfig
from messaging_server.conversations import service as conversations
from messaging_server.conversations.service import Opened
from messaging_server.database import Database
from messaging_server.errors import Unavailable, ValidationFailed
from messaging_server.events import Bus
from messaging_server.http import PUBLIC
from messaging_server.models import Caller, Conversation, Message
from messaging_server.realtime import wire
from messaging_server.realtime.fanout import Fanout
from messaging_server.realtime.inbox import Inbox
from messaging_server.realtime.presence import Presence
from messaging_server.realtime.protocol import Close, message_frame
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.sockets import Socket, Sockets
from messaging_server.users.service import Authenticated, UserTokens

PATH = "/ws"
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
SWEEP_SECONDS = 10.0
MAX_TICK_SECONDS = 0.5
TICKS_PER_DEADLINE = 4


class Domain:
    """The domain's functions as rooms, sockets and inbox ask for them."""

    def __init__(self, database: Database, tokens: UserTokens) -> None:
        self._database = database
        self._tokens = tokens

    async def authenticate(self, token: str) -> Authenticated:
        return await self._tokens.authenticate(token)

    async def open_conversation(
        self, caller: Caller, conversation_id: UUID, *, after_seq: int | None, limit: int
    ) -> Opened:
        return await conversations.open_conversation(
            self._database, caller, conversation_id, after_seq=after_seq, limit=limit
        )

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[Message]:
        return await conversations.fetch_messages_between(
            self._database, conversation_id, after_seq=after_seq, through_seq=through_seq
        )

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        return await conversations.fetch_heads(self._database, conversation_ids)

    async def fetch_views(
        self, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
    ) -> list[tuple[UUID, Conversation]]:
        return await conversations.fetch_views(self._database, conversation_ids, callers)


class Realtime:
    """Everything about sockets, from the composition root's side."""

    def __init__(self, config: Config, database: Database, bus: Bus, tokens: UserTokens) -> None:
        self._config = config
        domain = Domain(database, tokens)
        self.rooms: Rooms[Socket] = Rooms(domain, message_frame)
        self.presence = Presence(self.rooms, typing_seconds=config.realtime.typing_seconds)
        self.sockets = Sockets(config.realtime, domain, rooms=self.rooms, presence=self.presence)
        self.inbox = Inbox(domain, self.sockets)
        self.fanout = Fanout(rooms=self.rooms, inbox=self.inbox, sockets=self.sockets)
        self.fanout.subscribe(bus)
        self.route_handlers: list[Any] = [
            asgi(PATH, opt=PUBLIC, copy_scope=False, name="socket")(self.serve)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(work) for work in (self._tick(), self._sweep(), self.inbox.run())
        ]

    async def stop(self) -> None:
        """Close every socket with 1012 and end all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.sockets.stop()
        await self.rooms.stop()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection; under uvicorn's fast path this returns when it has begun."""
        if scope["type"] == ScopeType.HTTP:
            raise ValidationFailed("This address speaks WebSocket only")
        await receive()
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        headers = scope["headers"]
        fast_path = self._config.realtime.fast_path
        connection = wire.take_over(scope, receive, send, fast_path=fast_path)
        socket = self.sockets.open(connection)
        if not origin_allowed(headers, self._config.server.allowed_origins):
            socket.close(Close.ORIGIN_REFUSED)
        elif token := bearer_token(headers):
            socket.start_with(token)
        await connection.serve(socket)

    async def _tick(self) -> None:
        """The one clock of all sockets."""
        interval = tick_seconds(self._config.realtime)
        while True:
            await asyncio.sleep(interval)
            try:
                self.sockets.tick()
                self.presence.tick(self.sockets)
            except Exception:  # noqa: BLE001  # the clock must not stop
                logger.exception("A tick failed")

    async def _sweep(self) -> None:
        """Find what was committed but never published."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                for conversation_id in await self.rooms.sweep():
                    self.fanout.forget(conversation_id)
            except Unavailable:
                continue
            except Exception:  # noqa: BLE001  # the next sweep may work
                logger.exception("A sweep failed")


def tick_seconds(config: RealtimeConfig) -> float:
    """Short enough for the shortest of the configured times."""
    shortest = min(
        config.ping_seconds, config.pong_seconds, config.auth_seconds, config.typing_seconds
    )
    return min(MAX_TICK_SECONDS, shortest / TICKS_PER_DEADLINE)


Headers = Iterable[tuple[bytes, bytes]]


def bearer_token(headers: Headers) -> str | None:
    """The token of `Authorization`, for clients that can send it."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
    return None


def origin_allowed(headers: Headers, allowed_origins: Sequence[str]) -> bool:
    """No origin, the server's own, or a configured one: browsers send it, others needn't."""
    origins = [value for name, value in headers if name == b"origin"]
    hosts = [value for name, value in headers if name == b"host"]
    if not origins:
        return True
    if "*" in allowed_origins:
        return True
    if len(origins) > 1 or len(hosts) != 1:
        return False
    origin = origins[0].decode("latin-1").lower()
    if origin in {allowed.lower() for allowed in allowed_origins}:
        return True
    scheme, separator, host = origin.partition("://")
    if not separator or scheme not in DEFAULT_PORTS:
        return False
    port = DEFAULT_PORTS[scheme]
    own = hosts[0].decode("latin-1").lower()
    return host.removesuffix(port) == own.removesuffix(port)
