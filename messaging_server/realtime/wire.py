"""Two ways to one client: straight to the transport under uvicorn, or plain ASGI elsewhere.

Both have the same rules for a slow client: what has not been taken waits in a buffer; over
64 KiB best-effort frames are dropped, over 1 MiB the listener is told. A close frame is queued
behind what waits, and the connection is cut when the client has not taken it in time.

Under uvicorn the handshake is uvicorn's. Then `UvicornWire` takes the connection over: it has
no task, no queue and no ASGI messages, it keeps `websockets`' parser and calls the listener.
"""

import asyncio
from collections import deque
from typing import Any, Protocol

from loguru import logger
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from messaging_server import metrics
from messaging_server.realtime.protocol import MAX_FRAME_BYTES, Close, Frame

BEST_EFFORT_BYTES = 65_536
SLOW_BYTES = 1_048_576
CLOSE_SECONDS = 5.0
SHUTDOWN_SECONDS = 1.0
PARSE_BYTES = 1_024
EXTENSION = "messaging_server.wire"
NO_STATUS = 1005
ABNORMAL = 1006


class Listener(Protocol):
    """Who is told what comes over a wire; every call returns at once."""

    def receive_text(self, text: str) -> None: ...

    def receive_binary(self) -> None: ...

    def receive_control(self) -> None:
        """A ping, a pong or a fragment: nothing to act on, but it counts as a frame."""

    def too_slow(self) -> None:
        """More waits for the client than may."""

    def disconnected(self, code: int) -> None:
        """The connection has ended or will; may come more than once."""


class Wire(Protocol):
    """A connection with one client, already accepted."""

    @property
    def full(self) -> bool:
        """Whether so much waits for the client that best-effort frames are dropped."""

    def send(self, frame: Frame) -> None: ...

    def send_best_effort(self, frame: Frame) -> None: ...

    def close(self, code: int, reason: str) -> None:
        """After what has been sent before; nothing can be sent afterwards."""

    async def serve(self, listener: Listener) -> None:
        """Call the listener from now on; may return long before the end."""


class UvicornWire(asyncio.Protocol):
    """The protocol of an accepted connection's transport.

    It never pauses reading: the listener takes every frame at once and closes what sends too
    many. Parsing goes in slices, so that a flood is noticed, and then ignored, early.
    """

    __slots__ = (
        "_conn",
        "_connections",
        "_cut",
        "_fragments",
        "_listener",
        "_open",
        "_slow_bytes",
        "_transport",
        "full",
    )

    def __init__(
        self, transport: asyncio.Transport, conn: ServerProtocol, connections: set[Any]
    ) -> None:
        self._transport = transport
        self._conn = conn
        self._connections = connections
        self._listener: Listener | None = None
        self._open = True
        self.full = False
        self._slow_bytes = SLOW_BYTES
        self._fragments: list[bytes] | None = None
        self._cut: asyncio.TimerHandle | None = None
        transport.set_write_buffer_limits(high=BEST_EFFORT_BYTES)
        conn.max_message_size = MAX_FRAME_BYTES

    def replay(self, frames: list[WebSocketFrame], *, fragments: list[bytes]) -> None:
        """What came between the handshake and now; `fragments` of an unfinished message."""
        self._conn.events[:0] = frames
        self._fragments = list(fragments) or None

    async def serve(self, listener: Listener) -> None:
        self._listener = listener
        if self._transport.is_closing():
            self._ended(ABNORMAL)
        self._handle_frames()

    def send(self, frame: Frame) -> None:
        if not self._open:
            return
        if self.full and self._transport.get_write_buffer_size() > self._slow_bytes:
            self._tell_slow()
            return
        self._transport.write(frame.data)
        if len(frame.data) > BEST_EFFORT_BYTES and self._slow_bytes == SLOW_BYTES:
            self._slow_bytes += len(frame.data)  # one long reply is no sign of a slow client

    def send_best_effort(self, frame: Frame) -> None:
        if self.full:
            metrics.DROPPED.inc()
        elif self._open:
            self._transport.write(frame.data)

    def close(self, code: int, reason: str) -> None:
        if self._open and self._conn.state is OPEN:
            self._conn.send_close(code, reason)
            self._transport.write(b"".join(self._conn.data_to_send()))
        self._open = False
        self._cut_in(CLOSE_SECONDS)

    # Called by the transport

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._slow_bytes = SLOW_BYTES

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), PARSE_BYTES):
            if self._conn.eof_sent or (start and not self._open):
                return
            self._conn.receive_data(data[start : start + PARSE_BYTES])
            self._handle_frames()

    def connection_lost(self, _error: Exception | None) -> None:
        self._connections.discard(self)
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
        self._ended(ABNORMAL)
        self._listener = None

    # Called by uvicorn

    def shutdown(self) -> None:
        """The server stops: say so, and don't wait long for those who do not listen."""
        self.close(Close.RESTART, "")
        self._ended(Close.RESTART)
        self._cut_in(SHUTDOWN_SECONDS)
        self._transport.close()

    # Frames

    def _handle_frames(self) -> None:
        for event in self._conn.events_received():
            if self._open and isinstance(event, WebSocketFrame):
                self._handle_frame(event)
        output = b"".join(self._conn.data_to_send())
        if output:
            self._transport.write(output)
            if self.full and self._transport.get_write_buffer_size() > SLOW_BYTES:
                self._tell_slow()
        if self._conn.eof_sent:
            self._transport.close()
            self._cut_in(CLOSE_SECONDS)
            self._ended(self._close_code())

    def _handle_frame(self, frame: WebSocketFrame) -> None:
        assert self._listener is not None
        if frame.opcode is Opcode.TEXT and frame.fin:
            self._receive_text(bytes(frame.data))
        elif frame.opcode is Opcode.BINARY:
            self._listener.receive_binary()
        elif frame.opcode is Opcode.TEXT:
            self._fragments = [bytes(frame.data)]
        elif frame.opcode is Opcode.CONT:
            self._continue(bytes(frame.data), last=frame.fin)
        elif frame.opcode is not Opcode.CLOSE:
            self._listener.receive_control()

    def _continue(self, data: bytes, *, last: bool) -> None:
        assert self._listener is not None
        if self._fragments is None:
            return
        self._fragments.append(data)
        if not last:
            self._listener.receive_control()
            return
        text = b"".join(self._fragments)
        self._fragments = None
        self._receive_text(text)

    def _receive_text(self, data: bytes) -> None:
        assert self._listener is not None
        try:
            text = data.decode()
        except UnicodeDecodeError:
            self.close(Close.NOT_UTF8, "a text frame must be UTF-8")
            self._ended(Close.NOT_UTF8)
            return
        self._listener.receive_text(text)

    # The end

    def _tell_slow(self) -> None:
        if self._listener is not None:
            self._listener.too_slow()

    def _ended(self, code: int) -> None:
        self._open = False
        if self._listener is not None:
            self._listener.disconnected(code)

    def _close_code(self) -> int:
        close = self._conn.close_rcvd or self._conn.close_sent
        return close.code if close else ABNORMAL

    def _cut_in(self, seconds: float) -> None:
        """Cut the connection unless the client ends it properly until then."""
        if self._cut is not None:
            self._cut.cancel()
        loop = asyncio.get_running_loop()
        self._cut = loop.call_later(seconds, self._transport.abort)


class _HandedOver(asyncio.Transport):
    """What the handshake's protocol is left with: closing it does nothing."""

    def close(self) -> None:
        pass


class WireProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol, whose application may take the connection over: `ws=` of uvicorn.

    The application finds `hand_over` in the scope's extensions; if it does not call it, this is
    uvicorn's protocol and nothing else.
    """

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.scope["extensions"][EXTENSION] = {"hand_over": self.hand_over}
            self.scope["query_string"] = b""  # a token in it must not reach uvicorn's log

    def hand_over(self) -> UvicornWire:
        """Only after `websocket.accept`. This object and all of the handshake become garbage."""
        wire = UvicornWire(self.transport, self.conn, self.connections)
        wire.replay(self._early_frames(), fragments=self.frames)
        self.connections.discard(self)
        self.connections.add(wire)  # type: ignore[arg-type]  # uvicorn only calls shutdown()
        self.transport.set_protocol(wire)
        if self.read_paused:
            self.transport.resume_reading()
        del self.scope["extensions"][EXTENSION]
        self.transport = _HandedOver()
        return wire

    def _early_frames(self) -> list[WebSocketFrame]:
        """What an impatient client has sent before it was accepted."""
        frames = []
        while not self.queue.empty():
            event = self.queue.get_nowait()
            if event["type"] == "websocket.receive":
                text = event.get("text")
                opcode = Opcode.BINARY if text is None else Opcode.TEXT
                frames.append(WebSocketFrame(opcode, (text or "").encode()))
        return frames


class AsgiWire:
    """A connection over plain ASGI messages: one reader and one writer task."""

    def __init__(self, receive: Any, send: Any) -> None:
        self._receive = receive
        self._send = send
        self._frames: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._close: tuple[int, str] | None = None
        self._slow_bytes = SLOW_BYTES
        self._ended = asyncio.Event()
        self._listener: Listener | None = None

    async def serve(self, listener: Listener) -> None:
        self._listener = listener
        tasks = [asyncio.create_task(self._read(listener)), asyncio.create_task(self._write())]
        for task in tasks:
            task.add_done_callback(lambda _: self._ended.set())
        try:
            await self._ended.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            listener.disconnected(ABNORMAL)

    def send(self, frame: Frame) -> None:
        if self._close is not None:
            return
        if self._waiting_bytes > self._slow_bytes:
            if self._listener is not None:
                self._listener.too_slow()
            return
        self._frames.append(frame)
        self._waiting_bytes += len(frame.data)
        if len(frame.data) > BEST_EFFORT_BYTES and self._slow_bytes == SLOW_BYTES:
            self._slow_bytes += len(frame.data)  # one long reply is no sign of a slow client
        self._wake.set()

    @property
    def full(self) -> bool:
        return self._waiting_bytes > BEST_EFFORT_BYTES

    def send_best_effort(self, frame: Frame) -> None:
        if self.full:
            metrics.DROPPED.inc()
        else:
            self.send(frame)

    def close(self, code: int, reason: str) -> None:
        if self._close is None:
            self._close = code, reason
            self._wake.set()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._ended.set)

    async def _read(self, listener: Listener) -> None:
        while (message := await self._receive())["type"] != "websocket.disconnect":
            text = message.get("text")
            if self._close is not None:
                continue
            if text is None:
                listener.receive_binary()
            else:
                listener.receive_text(text)
        listener.disconnected(message.get("code") or NO_STATUS)

    async def _write(self) -> None:
        try:
            while self._close is None or self._frames:
                await self._wake.wait()
                self._wake.clear()
                await self._drain()
            code, reason = self._close
            await self._send({"type": "websocket.close", "code": int(code), "reason": reason})
        except OSError:
            return
        except Exception:  # noqa: BLE001  # a server's own error for a client that has gone
            logger.opt(exception=True).debug("A socket could not be written to")

    async def _drain(self) -> None:
        while self._frames:
            frame = self._frames[0]
            await self._send({"type": "websocket.send", "text": frame.text})
            self._frames.popleft()
            self._waiting_bytes -= len(frame.data)
        self._slow_bytes = SLOW_BYTES


def take_over(scope: Any, receive: Any, send: Any, *, fast_path: bool = True) -> Wire:
    """The connection that has just been accepted, by the fast path where there is one."""
    extension = scope.get("extensions", {}).get(EXTENSION)
    if extension is None or not fast_path:
        return AsgiWire(receive, send)
    wire: UvicornWire = extension["hand_over"]()
    return wire
