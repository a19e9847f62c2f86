"""`/ws` and `/ws/public`: let sockets in, and put the parts of realtime together.

The handlers only greet: they accept and hand the connection to a `Socket` or `VisitorSocket`.
Refusals come after accepting, as a close code, because browsers can't see anything else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import asgi
from litestar.enums import ScopeType
from litestar.exceptions import MethodNotAllowedException
from litestar.types import Receive, Scope, Send
from loguru import logger

from messaging_server.config import Config, RealtimeConfig
from messaging_server.errors import Unavailable, ValidationFailed
from messaging_server.events import Bus
from messaging_server.http import PUBLIC, Headers, origin_allowed
from messaging_server.models import Message, PublicMessage
from messaging_server.realtime import wire
from messaging_server.realtime.domain import Domain, VisitorDomain
from messaging_server.realtime.fanout import Fanout
from messaging_server.realtime.inbox import Inbox
from messaging_server.realtime.presence import Presence
from messaging_server.realtime.protocol import Close, message_frame
from messaging_server.realtime.public_fanout import PublicFanout
from messaging_server.realtime.public_protocol import public_message_frame
from messaging_server.realtime.rooms import Rooms
from messaging_server.realtime.sockets import Socket, Sockets
from messaging_server.realtime.typists import Typists
from messaging_server.realtime.visitors import Visitors, VisitorSocket

PATH = "/ws"
PUBLIC_PATH = "/ws/public"
NO_HANDSHAKE = "This address takes only a handshake of WebSocket, version 13"
SWEEP_SECONDS = 10.0
MAX_TICK_SECONDS = 0.5
TICKS_PER_DEADLINE = 4


class Realtime:
    """Everything about sockets, from the composition root's side."""

    def __init__(
        self, config: Config, bus: Bus, domain: Domain, visitor_domain: VisitorDomain
    ) -> None:
        self._config = config
        self.rooms: Rooms[Socket, Message] = Rooms(domain, message_frame)
        self.public_rooms: Rooms[VisitorSocket, PublicMessage] = Rooms(
            visitor_domain, public_message_frame
        )
        self.presence = Presence(self.rooms)
        self.typists = Typists(
            self.rooms, self.public_rooms, typing_seconds=config.realtime.typing_seconds
        )
        self.sockets = Sockets(
            config.realtime,
            domain,
            rooms=self.rooms,
            presence=self.presence,
            typists=self.typists,
        )
        self.visitors = Visitors(
            config.realtime, visitor_domain, rooms=self.public_rooms, typists=self.typists
        )
        self.inbox = Inbox(domain, self.sockets)
        self.fanout = Fanout(rooms=self.rooms, inbox=self.inbox, sockets=self.sockets)
        self.fanout.subscribe(bus)
        PublicFanout(rooms=self.public_rooms, visitors=self.visitors).subscribe(bus)
        self.route_handlers: list[Any] = [
            asgi(PATH, opt=PUBLIC, copy_scope=False, name="socket")(self.serve),
            asgi(PUBLIC_PATH, opt=PUBLIC, copy_scope=False, name="public socket")(
                self.serve_visitor
            ),
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(work)
            for work in (
                self._tick(),
                self._repeat_sweep(self._sweep),
                self._repeat_sweep(self.visitors.sweep),
                self.inbox.run(),
            )
        ]

    async def stop(self) -> None:
        """Close every socket with 1012 and end all tasks."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.sockets.stop()
        await self.visitors.stop()
        await self.rooms.stop()
        await self.public_rooms.stop()

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection; under uvicorn's fast path this returns when it has begun."""
        headers = scope["headers"]
        connection = await self._accept(scope, receive, send)
        socket = self.sockets.open(connection)
        if not origin_allowed(headers, self._config.server.allowed_origins):
            socket.close(Close.ORIGIN_REFUSED)
        elif token := bearer_token(headers):
            socket.start_with(token)
        await connection.serve(socket)

    async def serve_visitor(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As `serve`; which origins are allowed is known when the token is."""
        headers, client = scope["headers"], scope["client"]
        connection = await self._accept(scope, receive, send)
        socket = self.visitors.open(
            connection, address=client[0] if client else "unknown", headers=headers
        )
        if token := bearer_token(headers):
            socket.start_with(token)
        await connection.serve(socket)

    async def _accept(self, scope: Scope, receive: Receive, send: Send) -> wire.Wire:
        if scope["type"] == ScopeType.HTTP:
            if scope["method"] != "GET":
                raise MethodNotAllowedException(headers={"allow": "GET"})
            raise ValidationFailed(NO_HANDSHAKE)
        await receive()
        await send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        return wire.take_over(scope, receive, send, fast_path=self._config.realtime.fast_path)

    async def _tick(self) -> None:
        """The one clock of all sockets."""
        interval = tick_seconds(self._config.realtime)
        while True:
            await asyncio.sleep(interval)
            try:
                self.sockets.tick()
                self.visitors.tick()
                self.typists.tick()
                self.presence.tick(self.sockets)
            except Exception:  # noqa: BLE001  # the clock must not stop
                logger.exception("A tick failed")

    async def _sweep(self) -> None:
        for conversation_id in await self.rooms.sweep():
            self.fanout.forget(conversation_id)

    async def _repeat_sweep(self, sweep: Callable[[], Awaitable[None]]) -> None:
        """Find, again and again, what was committed but never published."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await sweep()
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


def bearer_token(headers: Headers) -> str | None:
    """The token of `Authorization`, for clients that can send it."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
    return None
