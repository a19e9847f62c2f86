"""Socket clients that cost their own process little: no parser, frames are counted as bytes."""

import asyncio
import json
import resource
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.inboxes.visitors import VisitorTokens
from messaging_server.models import Role, Visitor
from messaging_server.security import Tokens

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CONNECTS_AT_ONCE = 50


def allow_many_files() -> None:
    """Sockets are files; the server that is started afterwards inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def make_admins(dsn: str, secret: str, count: int) -> list[str]:
    """Tokens of `count` new ADMINs, who see everything."""
    users = [UUID(str(uuid7())) for _ in range(count)]
    connection = await asyncpg.connect(dsn)
    await connection.executemany(
        "insert into users (id, email, password_hash, role) values ($1, $2, '-', 'ADMIN')",
        [(user, f"{user}@example.com") for user in users],
    )
    await connection.close()
    tokens = Tokens(secret, lifetime=timedelta(hours=1))
    return [tokens.issue(user, role=Role.ADMIN, version=0)[0] for user in users]


async def make_visitors(dsn: str, secret: str, count: int) -> list[str]:
    """Sessions of `count` new visitors of the first website."""
    connection = await asyncpg.connect(dsn)
    inbox_id = await connection.fetchval("select id from inboxes where kind = 'WIDGET' limit 1")
    leads = [UUID(str(uuid7())) for _ in range(count)]
    await connection.executemany(
        "insert into leads (id, inbox_id, name) values ($1, $2, 'Visitor')",
        [(lead, inbox_id) for lead in leads],
    )
    await connection.close()
    tokens = VisitorTokens(Database(dsn, pool_size=2, bus=Bus()), secret, Bus())
    visitors = [Visitor(lead, inbox_id, "Visitor", verified=False) for lead in leads]
    return [tokens.issue(visitor)[0] for visitor in visitors]


def client_frame(command: dict[str, Any]) -> bytes:
    """A text frame masked with zeros, which RFC 6455 allows."""
    payload = json.dumps(command).encode()
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return b"\x81" + length + b"\0\0\0\0" + payload


PING = b'{"event":"ping"'
PONG = client_frame({"event": "pong"})


class RawSocket(asyncio.Protocol):
    """Answers pings; hands what arrives to `on_bytes`, except while `until` waits."""

    def __init__(self, on_bytes: Callable[[bytes], None] | None = None) -> None:
        self.on_bytes = on_bytes
        self.received = b""
        self.ended = False
        self._expected = b""
        self._arrived: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if PING in data:
            self.transport.write(PONG)
        if self._arrived is None:
            if self.on_bytes:
                self.on_bytes(data)
            return
        self.received += data
        if self._expected in self.received and not self._arrived.done():
            self._arrived.set_result(None)

    def connection_lost(self, _error: Exception | None) -> None:
        self.ended = True
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_exception(ConnectionError(f"closed after {self.received!r}"))

    async def until(self, request: bytes, expected: bytes) -> None:
        """Send, and wait for what must come."""
        self.received, self._expected = b"", expected
        self._arrived = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await asyncio.wait_for(self._arrived, 60)
        self._arrived = None


async def open_socket(
    port: int,
    token: str,
    on_bytes: Callable[[bytes], None] | None = None,
    *,
    path: str = "/ws",
) -> RawSocket:
    """Connected and authenticated."""
    loop = asyncio.get_running_loop()
    _, socket = await loop.create_connection(lambda: RawSocket(on_bytes), "127.0.0.1", port)
    await socket.until(HANDSHAKE.format(path=path, port=port).encode(), b"\r\n\r\n")
    auth = {"id": 1, "event": "auth", "data": {"token": token}}
    await socket.until(client_frame(auth), b'"ok":true')
    return socket


async def open_sockets(
    port: int,
    tokens: list[str],
    on_bytes: Callable[[bytes], None] | None = None,
    *,
    path: str = "/ws",
) -> list[RawSocket]:
    """One for each token, some at a time."""
    gate = asyncio.Semaphore(CONNECTS_AT_ONCE)

    async def connect(token: str) -> RawSocket:
        async with gate:
            return await open_socket(port, token, on_bytes, path=path)

    return list(await asyncio.gather(*(connect(token) for token in tokens)))
