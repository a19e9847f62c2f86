"""A receiver of webhooks that does what a test tells it to, over real sockets.

It verifies nothing by itself; `verified` does, with the library's own verifier.
"""

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct
from standardwebhooks import Webhook


class Reply(Struct, frozen=True, kw_only=True):
    """`hang`: nothing, ever. `cut`: closes without an answer. `endless`: a body without end."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b"ok"
    delay_seconds: float = 0.0
    hang: bool = False
    cut: bool = False
    endless: bool = False


class Received(Struct, frozen=True):
    """One request, with the time at which it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> dict[str, Any]:
        payload: dict[str, Any] = json.loads(self.body)
        return payload

    @property
    def type(self) -> str:
        return str(self.json["type"])

    @property
    def text(self) -> str:
        return str(self.json["data"]["message"]["contentText"])

    @property
    def conversation_id(self) -> str:
        return str(self.json["data"]["conversation"]["id"])


def verified(received: Received, secret: str) -> dict[str, Any]:
    """What it says, if its signature is good; else `WebhookVerificationError`."""
    payload: dict[str, Any] = Webhook(secret).verify(received.body, received.headers)
    return payload


class Receiver:
    """Serves in a thread of its own; `decide` says what each request gets."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.decide: Callable[[Received], Reply] = lambda _: Reply()
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @contextlib.contextmanager
    def serving(self) -> Iterator["Receiver"]:
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            self.come_back()
            yield self
        finally:
            self.go_away()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def come_back(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def go_away(self) -> None:
        """As if killed: connections are reset, new ones refused."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        handler = asyncio.create_task(self._serve(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = int(re.search(r"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]  # it is sent
                received = to_received(head, await reader.readexactly(length))
                self.requests.append(received)
                self.open += 1
                self.most_open = max(self.most_open, self.open)
                try:
                    await self._answer(self.decide(received), writer)
                finally:
                    self.open -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, reply: Reply, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600 if reply.hang else reply.delay_seconds)
        if reply.cut:
            raise ConnectionResetError
        size = f"content-length: {len(reply.body)}\r\n" if not reply.endless else ""
        lines = "".join(f"{name}: {value}\r\n" for name, value in reply.headers)
        writer.write(f"HTTP/1.1 {reply.status} X\r\n{lines}{size}\r\n".encode() + reply.body)
        await writer.drain()
        while reply.endless:
            writer.write(b"x" * 65_536)
            await writer.drain()


def to_received(head: str, body: bytes) -> Received:
    first, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Received(
        first.split()[1], {k.lower(): v for k, v in headers.items()}, body, time.monotonic()
    )
