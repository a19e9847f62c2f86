"""uvicorn's HTTP/1.1 with some things more.

The head of a response leaves in one piece with its body. uvicorn writes them one after the other,
and uvloop makes a system call of each: the second one costs as much as all that Litestar does for
a request, and wakes the client twice.

The head of a request must come in time and not be too large; uvicorn waits for ever, and keeps
whatever comes.

What is no request is refused in the shape of all errors, and what is no handshake for one of the
sockets is answered as any other request.
"""

import asyncio
import re
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from websockets.http11 import Request
from websockets.server import ServerProtocol

from messaging_server.edge import raw_failure
from messaging_server.errors import ValidationFailed
from messaging_server.realtime.routes import PATH, PUBLIC_PATH

SOCKET_PATHS = (PATH.encode(), PUBLIC_PATH.encode())
NO_REQUEST = "This is no HTTP request"
BAD_HEAD = "The head of the request is too large or came too slowly"

HEAD_SECONDS = 20.0
"""From the connection, or the first piece of a request, to the end of its head."""

HEAD_BYTES = 65_536
"""Of one that is incomplete, after its first piece, which is as large as what had arrived."""


_HOST = re.compile(rb"[0-9A-Za-z!$&'()*+,;=._~:\[\]@%-]*")
_SLASHES = re.compile(rb"/+")


class JoinedWrites:
    """A transport that holds one piece back for the next one, at most until the loop turns."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            self._held += data
            self.flush()
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


class BadHead(ValueError):
    """A head that can be read, but not be answered; its message is for the client.

    Raised in a callback, it stops the parser, whose error has it as the context.
    """


class HttpProtocol(HttpToolsProtocol):
    """The protocol of a connection until it becomes a WebSocket, which writes for itself."""

    def connection_made(  # type: ignore[override]  # as uvicorn's own, which narrows asyncio's
        self, transport: asyncio.Transport
    ) -> None:
        self._bare_transport = transport
        self._writes = JoinedWrites(transport, self.loop)
        super().connection_made(cast("asyncio.Transport", self._writes))
        self._is_handshake = self._is_other_upgrade = False
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
        self._piece_bytes = len(data)
        self._unset_keepalive_if_required()
        while data:
            data = self._parse(data)
        if self._head_under_way and self._head_bytes > HEAD_BYTES:  # else a body is in the piece
            self.send_400_response(BAD_HEAD)
        elif self._head_under_way and self._head_timer is None:
            self._await_head()

    def _parse(self, data: bytes) -> bytes:
        """Returns what is to be parsed after it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._is_handshake:
                self.handle_websocket_upgrade()
            elif self._is_other_upgrade:
                return self._head_without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            reason = error.__context__
            message = str(reason) if isinstance(reason, BadHead) else NO_REQUEST
            self.logger.warning(message)
            self.send_400_response(message)
        return b""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_under_way, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._head_under_way = False
        self._end_waiting()
        if self._piece_bytes + self._head_bytes > HEAD_BYTES and self._is_head_too_large():
            raise BadHead(BAD_HEAD)
        self._check_host()
        asks = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        self._is_handshake = asks and self._asks_for_a_socket()
        self._is_other_upgrade = asks and not self._is_handshake
        if not self._is_other_upgrade:
            super().on_headers_complete()

    def _check_host(self) -> None:
        """As RFC 9112, 3.2 demands, with the characters of RFC 3986, 3.2.2."""
        hosts = [value for name, value in self.headers if name == b"host"]
        may_lack = self.parser.get_http_version() == "1.0"
        if len(hosts) > 1 or not (hosts or may_lack) or not all(map(_HOST.fullmatch, hosts)):
            raise BadHead("A request needs one Host header, with a name or an address")

    def on_message_complete(self) -> None:
        if not self._is_other_upgrade:
            super().on_message_complete()

    def _head_without_upgrade(self) -> bytes:
        """For another parser: a server may go on with HTTP (RFC 9110, 7.8), as some clients expect.

        httptools takes what follows an `Upgrade` for another protocol, a body too.
        """
        self.headers = [pair for pair in self.headers if pair[0] != b"upgrade"]
        head = self._head(self.parser.get_http_version().encode())
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return head

    def _head(self, version: bytes = b"1.1") -> bytes:
        line = b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)
        return b"".join([line, *(b"%b: %b\r\n" % pair for pair in self.headers), b"\r\n"])

    def _asks_for_a_socket(self) -> bool:
        """Whether it is for one of ours, and `websockets`, which answers it, will not refuse it."""
        path = _SLASHES.sub(b"/", self.url.partition(b"?")[0]).rstrip(b"/")
        if path not in SOCKET_PATHS or not self.url.isascii() or self._answering:
            return False
        probe = ServerProtocol()
        probe.receive_data(self._head())
        requests = [event for event in probe.events_received() if isinstance(event, Request)]
        return any(probe.accept(request).status_code == 101 for request in requests)

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
            self.send_400_response(BAD_HEAD)
        else:
            self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """The last answer of the connection, which ends without it when others are still due."""
        if self._answering and (
            self.pipeline or self.cycle.response_started or not self.cycle.more_body
        ):
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        headers, body = raw_failure(ValidationFailed(msg))
        head = [b"%b: %b\r\n" % pair for pair in [*self.server_state.default_headers, *headers]]
        status = STATUS_LINE[ValidationFailed.status]
        self.transport.write(b"".join([status, *head, b"\r\n", body]))
        self.transport.close()

    def eof_received(self) -> None:
        self._writes.flush()
        super().eof_received()

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def handle_websocket_upgrade(self) -> None:
        self._writes.flush()
        self.transport = self._bare_transport
        super().handle_websocket_upgrade()
