"""uvicorn's HTTP/1.1 with two things more.

The head of a response leaves in one piece with its body. uvicorn writes them one after the other,
and uvloop makes a system call of each: the second one costs as much as all that Litestar does for
a request, and wakes the client twice.

The head of a request must come in time and not be too large; uvicorn waits for ever, and keeps
whatever comes.
"""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 20.0
"""From the connection, or the first piece of a request, to the end of its head."""

HEAD_BYTES = 65_536
"""Of one that is incomplete, after its first piece, which is as large as what had arrived."""


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
        self._head_under_way = False
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_under_way:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse()
                return
        self._piece_bytes = len(data)
        super().data_received(data)
        if self._head_under_way and self._head_timer is None:
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_under_way, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._head_under_way = False
        self._end_waiting()
        if self._piece_bytes + self._head_bytes > HEAD_BYTES and self._is_head_too_large():
            raise ValueError("too large")  # the parser stops, and uvicorn answers with a 400
        super().on_headers_complete()

    def _is_head_too_large(self) -> bool:
        """By what was read of it; the piece that it came in may hold a body as well."""
        headers = sum(len(name) + len(value) for name, value in self.headers)
        return len(self.url) + headers > HEAD_BYTES

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._lose_patience)

    def _end_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _lose_patience(self) -> None:
        self._head_timer = None
        if self._answering:
            self._await_head()  # the answer may take as long as it likes
        elif self._head_under_way:
            self._refuse()
        else:
            self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self) -> None:
        if self._answering:
            self.transport.close()
        else:
            self.send_400_response("The head of the request is too large or came too slowly")

    def eof_received(self) -> None:
        self._writes.flush()
        super().eof_received()

    def handle_websocket_upgrade(self) -> None:
        self._writes.flush()
        self.transport = self._bare_transport
        super().handle_websocket_upgrade()
