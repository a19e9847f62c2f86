"""uvicorn's HTTP/1.1, but the head of a response leaves in one piece with its body.

uvicorn writes them one after the other, and uvloop makes a system call of each: the second one
costs as much as all that Litestar does for a request, and wakes the client twice.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoinedWrites:
    """A transport that holds one piece back for the next one, at most until the loop turns."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held + data)
        elif data:
            self._held = data
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class HttpProtocol(HttpToolsProtocol):
    """The protocol of a connection until it becomes a WebSocket, which writes for itself."""

    def connection_made(  # type: ignore[override]  # as uvicorn's own, which narrows asyncio's
        self, transport: asyncio.Transport
    ) -> None:
        self._bare_transport = transport
        self._writes = JoinedWrites(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._writes))

    def eof_received(self) -> None:
        self._writes.flush()
        super().eof_received()

    def handle_websocket_upgrade(self) -> None:
        self._writes.flush()
        self.transport = self._bare_transport
        super().handle_websocket_upgrade()
