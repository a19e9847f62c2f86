"""Answers leave in one piece, and everything else is as with uvicorn's own protocol.

The server is a real uvicorn with a small ASGI application, the client a bare socket, which
waits for a piece before it lets the application go on.
"""

import asyncio
import contextlib
import http.client
import json
import logging
import socket
import struct
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import pytest
import uvicorn

from messaging_server import http_protocol
from messaging_server.http_protocol import HttpProtocol
from messaging_server.realtime.wire import WireProtocol
from tests.client import LiveServer, wait_until

LARGE = array("I", range(5 * 2**20)).tobytes()  # more than buffers hold
READ_BYTES = 65_536
SECONDS = 20.0
UPGRADE = {
    "connection": "upgrade",
    "upgrade": "websocket",
    "sec_websocket_version": "13",
    "sec_websocket_key": "dGhlIHNhbXBsZSBub25jZQ==",
}

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Exchange:
    """One request, seen by the application."""

    def __init__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.type: str = scope["type"]
        self.receive = receive
        self.send = send

    async def start(self, status: int = 200, length: int | None = None) -> None:
        headers = [] if length is None else [(b"content-length", b"%d" % length)]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def body(self, body: bytes, *, more: bool = False) -> None:
        await self.send({"type": "http.response.body", "body": body, "more_body": more})


class Application:
    """The first word of the path says how to answer."""

    hang_up: Callable[[], None]

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.pieces_sent = 0
        self.started, self.ended, self.accept = (threading.Event() for _ in range(3))

    def is_stuck(self) -> bool:
        """Whether it has sent something, and nothing for a tenth of a second."""
        before = self.pieces_sent
        time.sleep(0.1)
        return 0 < before == self.pieces_sent

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        ended = self.ended  # not the next test's
        self.started.set()
        await getattr(self, scope["path"].split("/")[1])(Exchange(scope, receive, send))
        ended.set()

    async def json(self, exchange: Exchange) -> None:
        body = json.dumps({"path": exchange.path}).encode()
        await exchange.start(length=len(body))
        await exchange.body(body)

    async def empty(self, exchange: Exchange) -> None:
        await exchange.start(204)
        await exchange.body(b"")

    async def upload(self, exchange: Exchange) -> None:
        size, more = 0, True
        while more and (message := await exchange.receive())["type"] == "http.request":
            size, more = size + len(message["body"]), message["more_body"]
        await exchange.start()
        await exchange.body(b"%d" % size)

    async def echo(self, exchange: Exchange) -> None:
        await exchange.start()
        more = True
        while more:
            message = await exchange.receive()
            more = message["more_body"]
            await exchange.body(message["body"], more=more)

    async def large(self, exchange: Exchange) -> None:
        """In as many pieces as the path says."""
        await exchange.start()
        size = len(LARGE) // int(exchange.path.split("/")[2])
        for start in range(0, len(LARGE), size):
            await exchange.body(LARGE[start : start + size], more=start + size < len(LARGE))
            self.pieces_sent += 1

    async def gone(self, exchange: Exchange) -> None:
        """The client goes while the head is held back."""
        await exchange.start()
        self.hang_up()
        while (await exchange.receive())["type"] != "http.disconnect":
            pass
        await exchange.body(b"late")

    async def ws(self, exchange: Exchange) -> None:
        if exchange.type == "http":
            await self.json(exchange)
            return
        await asyncio.to_thread(self.accept.wait, SECONDS)
        await exchange.receive()
        await exchange.send({"type": "websocket.accept"})
        while (message := await exchange.receive())["type"] == "websocket.receive":
            await exchange.send({"type": "websocket.send", "text": message["text"]})


def request(line: str, **headers: str) -> bytes:
    headers = {"host": "test", **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"{line} HTTP/1.1", *lines, "", ""]).encode()


class Client:
    """An HTTP/1.1 connection that does only what it is told."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
        self.socket.settimeout(SECONDS)
        self.socket.connect(("127.0.0.1", port))
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def wait_in_recv(self) -> None:
        """Not in `poll`, after which more can have come until `recv` is called."""
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))

    def hang_up(self) -> None:
        """Without a goodbye: the server gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.__exit__()

    def send(self, line: str, **headers: str) -> None:
        self.socket.sendall(request(line, **headers))

    def head(self) -> tuple[int, http.client.HTTPMessage]:
        status = int(self.stream.readline().split()[1])
        return status, http.client.parse_headers(self.stream)

    def chunk(self) -> bytes:
        size = int(self.stream.readline(), 16)
        return self.stream.read(size + 2)[:size]

    def answer(self) -> tuple[int, bytes]:
        status, headers = self.head()
        if headers["transfer-encoding"] == "chunked":
            return status, b"".join(iter(self.chunk, b""))
        return status, self.stream.read(int(headers["content-length"] or 0))

    def is_answered(self) -> bool:
        self.send("GET /json/still")
        return self.answer() == (200, b'{"path": "/json/still"}')


@dataclass(frozen=True)
class Site:
    port: int
    app: Application

    def client(self) -> Client:
        return Client(self.port)


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest) -> Iterator[Site]:
    app = Application()
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WireProtocol,
        loop=request.param,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        yield Site(listener.getsockname()[1], app)
        server.should_exit = True
        thread.join()


@pytest.fixture
def site(served: Site, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    """Neither the application nor a callback of the loop may fail, which would be logged."""
    served.app.reset()
    yield served
    with served.client() as client:
        assert client.is_answered()
    assert [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR] == []


def test_answer_comes_in_one_piece(site: Site) -> None:
    with site.client() as client:
        client.wait_in_recv()
        for number in range(500):
            client.send(f"GET /json/{number}")
            assert client.socket.recv(READ_BYTES).endswith(b'{"path": "/json/%d"}' % number)


def test_the_product_answers_in_one_piece(server: LiveServer) -> None:
    with Client(server.port) as client:
        client.wait_in_recv()
        for _ in range(200):
            client.send("GET /api/v1/conversations", host="test")
            head, _, body = client.socket.recv(READ_BYTES).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401")
            assert json.loads(body)["error"]["code"] == "unauthenticated"


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    lines = [[f"GET /json/{number}", "HEAD /json/0", "GET /empty"] for number in range(50)]
    with site.client() as client:
        client.socket.sendall(b"".join(map(request, chain.from_iterable(lines))))
        for number in range(50):
            assert client.answer() == (200, b'{"path": "/json/%d"}' % number)
            assert client.head()[0] == 200
            assert client.answer() == (204, b"")


def test_pieces_of_a_stream_do_not_wait_for_the_next(site: Site) -> None:
    with site.client() as client:
        client.send("POST /echo", transfer_encoding="chunked")
        assert client.head()[0] == 200
        for piece in (b"one", b"two", b"three"):
            client.socket.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            assert client.chunk() == piece
        client.socket.sendall(b"0\r\n\r\n")
        assert client.chunk() == b""
        assert client.is_answered()


def test_every_kind_of_answer_on_one_connection(site: Site) -> None:
    with site.client() as client:
        for _ in range(3):
            client.send("HEAD /json/head")
            status, headers = client.head()
            assert (status, headers["content-length"]) == (200, "22")
            client.send("GET /empty")
            assert client.answer() == (204, b"")
            client.send("POST /upload", expect="100-continue", content_length="5")
            assert client.answer() == (100, b"")
            client.socket.sendall(b"hello")
            assert client.answer() == (200, b"5")
            client.send("POST /echo", content_length="5")
            client.socket.sendall(b"hello")
            assert client.answer() == (200, b"hello")
            assert client.is_answered()


@pytest.mark.parametrize(
    ("line", "end"),
    [
        ("GET /json/last", b'\r\n\r\n{"path": "/json/last"}'),
        ("HEAD /json/last", b"\r\n\r\n"),
        ("GET /empty", b"\r\n\r\n"),
        ("no request", b'"}}'),
    ],
)
def test_answer_is_whole_before_the_connection_closes(site: Site, line: str, end: bytes) -> None:
    with site.client() as client:
        client.send(line, connection="close")
        received = client.stream.read()
    assert received.startswith(b"HTTP/1.1 ")
    assert received.endswith(end)


@pytest.mark.parametrize(("pieces", "at_most"), [(1, 1), (320, 160)])
def test_slow_client_holds_back_and_gets_all(site: Site, pieces: int, at_most: int) -> None:
    with site.client() as client:
        client.send(f"GET /large/{pieces}")
        wait_until(site.app.is_stuck)
        assert site.app.pieces_sent <= at_most
        status, body = client.answer()
        assert status == 200
        assert body == LARGE
        assert site.app.ended.wait(SECONDS)


@pytest.mark.parametrize("line", ["GET /large/320", "GET /gone", "POST /upload"])
def test_client_that_goes_does_no_harm(site: Site, line: str) -> None:
    """While it is sent to, while a piece for it is held back, and before it has sent all."""
    with site.client() as client:
        site.app.hang_up = client.hang_up
        client.send(line, content_length="5" if "upload" in line else "0")
        if "gone" not in line:
            assert site.app.started.wait(SECONDS)
            client.hang_up()
        assert site.app.ended.wait(SECONDS)


def test_websocket(site: Site) -> None:
    """After an answer on the same connection; with a frame sent before it is accepted.

    uvicorn itself loses a frame that comes in one piece with the handshake.
    """
    with site.client() as client:
        assert client.is_answered()
        site.app.started.clear()
        client.send("GET /ws", **UPGRADE)
        assert site.app.started.wait(SECONDS)
        client.socket.sendall(b"\x81\x83\0\0\0\0one")
        site.app.accept.set()
        assert client.head()[0] == 101
        assert client.stream.read(5) == b"\x81\x03one"
        client.socket.sendall(b"\x81\x83\0\0\0\0two" * 2)
        assert client.stream.read(10) == b"\x81\x03two" * 2


LONG = {"cookie": "a" * 9_000}


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("GET /json/other", {}),
        ("POST /ws", {}),
        ("GET /ws", {"sec_websocket_key": ""}),
        ("GET /ws", {"sec_websocket_key": "c2hvcnQ="}),
        ("GET /ws", {"sec_websocket_version": "12"}),
        ("GET /ws", {"upgrade": "h2c"}),
        ("GET /ws", LONG),
        ("GET /ws", {"content_length": "5"}),
    ],
)
def test_what_is_no_good_handshake_is_answered_as_http(
    site: Site, line: str, changes: dict[str, str]
) -> None:
    with site.client() as client:
        client.send(line, **{**UPGRADE, **changes})
        if "content_length" in changes:
            client.socket.sendall(b"hello")
        path = line.split()[1].partition("?")[0]
        assert client.answer() == (200, b'{"path": "%b"}' % path.encode())
        assert client.is_answered()


def test_an_upgrade_to_something_else_keeps_its_body(site: Site) -> None:
    """As Java's client asks for HTTP/2 with its first request; many at once are one piece."""
    upgrade = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "x"}
    asked = request("POST /upload", **upgrade, content_length="5") + b"hello"
    with site.client() as client:
        client.socket.sendall(asked * 400)
        for _ in range(400):
            assert client.answer() == (200, b"5")
        for byte in asked:
            client.socket.sendall(bytes([byte]))
        assert client.answer() == (200, b"5")
        client.send("POST /upload", **upgrade, transfer_encoding="chunked")
        client.socket.sendall(b"3\r\nabc\r\n0\r\n\r\n")
        assert client.answer() == (200, b"3")
        assert client.is_answered()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"no request\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        request("GET /ws", **UPGRADE).replace(b"/ws", b"/ws?\xff"),
    ],
)
def test_what_is_no_request_is_refused_as_everything_is(site: Site, garbage: bytes) -> None:
    with site.client() as client:
        client.socket.sendall(garbage)
        status, headers = client.head()
        failure = json.loads(client.stream.read())
    assert (status, headers["content-type"]) == (400, "application/json")
    assert failure["status"] == "error"
    assert failure["error"]["code"] == "validation_error"
    assert failure["error"]["requestId"] == headers["x-request-id"]


@pytest.mark.parametrize("path", [b"/json/x", b"/ws"])
@pytest.mark.parametrize(
    "hosts", [b"", b"host: a\r\nhost: b\r\n", b"host: \xff\r\n", b"host: a b\r\n"]
)
def test_a_request_needs_one_host(site: Site, path: bytes, hosts: bytes) -> None:
    headers = request("", **UPGRADE).partition(b"test\r\n")[2]
    with site.client() as client:
        client.socket.sendall(b"GET %b HTTP/1.1\r\n%b%b" % (path, hosts, headers))
        assert client.head()[0] == 400
        assert b"one Host" in client.stream.read()
    with site.client() as client:  # what old clients may leave out
        client.socket.sendall(b"GET /json/x HTTP/1.0\r\n\r\n")
        assert client.answer()[0] == 200


def test_garbage_behind_requests_waits_for_their_answers(site: Site) -> None:
    with site.client() as client:
        asked = request("GET /large/320") + request("GET /json/2") + b"garbage\r\n\r\n"
        client.socket.sendall(asked + b"and more" * 1_000)
        assert client.answer() == (200, LARGE)
        assert client.answer() == (200, b'{"path": "/json/2"}')
        assert is_closed(client)


def test_garbage_in_a_body_is_refused_before_its_answer(site: Site) -> None:
    with site.client() as client:
        client.send("POST /upload", transfer_encoding="chunked")
        client.socket.sendall(b"zz\r\n")
        assert client.head()[0] == 400


def is_closed(client: Client) -> bool:
    try:
        return client.socket.recv(READ_BYTES) == b""
    except ConnectionResetError:
        return True


def test_a_head_must_come_in_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether nothing comes, or a little now and then, or the second request stops halfway."""
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 4.0)
    with site.client() as silent, site.client() as slow, site.client() as second:
        second.send("GET /json/first")
        assert second.answer()[0] == 200
        second.socket.sendall(b"GET /json/second HTTP/1.1\r\n")
        for piece in (b"GET /json/slow", b" HTTP/1.1\r\n", b"host: test\r\n", b"x: y\r\n"):
            slow.socket.sendall(piece)
            time.sleep(0.05)
        assert is_closed(silent)
        for client in (slow, second):
            assert client.answer()[0] == 400
            assert is_closed(client)


def test_a_head_that_comes_slowly_but_in_time_is_answered(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 5.0)
    with site.client() as client:
        for _ in range(3):
            for byte in request("GET /json/still"):
                client.socket.sendall(bytes([byte]))
                time.sleep(0.01)
            assert client.answer() == (200, b'{"path": "/json/still"}')
        time.sleep(5.1)  # the limit is one of heads, not of connections
        assert client.is_answered()


def test_a_long_answer_is_not_cut_off_by_the_next_head(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    with site.client() as client:
        client.send("POST /echo", transfer_encoding="chunked")
        assert client.head()[0] == 200
        monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.2)
        for piece in (b"one", b"two"):
            client.socket.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            assert client.chunk() == piece
            time.sleep(0.3)
        client.socket.sendall(b"0\r\n\r\nGET /json/next HTTP/1.1\r\n")
        assert client.chunk() == b""


@pytest.mark.parametrize("headers", [1, 700])
def test_a_head_in_one_piece_must_not_be_too_large(site: Site, headers: int) -> None:
    with site.client() as client:
        client.send("GET /json/small", x="y" * 40_000)
        assert client.answer()[0] == 200
    with site.client() as client:
        lines = b"".join(b"x: %b\r\n" % (b"y" * (70_000 // headers)) for _ in range(headers))
        client.socket.sendall(b"GET /json/large HTTP/1.1\r\n" + lines + b"\r\n")
        assert client.head()[0] == 400


def test_a_large_body_in_the_same_piece_is_none_of_the_heads(site: Site) -> None:
    with site.client() as client:
        client.socket.sendall(request("POST /echo", content_length="150000") + b"x" * 150_000)
        assert client.answer() == (200, b"x" * 150_000)


def test_a_large_body_in_the_piece_that_ends_a_head_is_none_of_it(site: Site) -> None:
    head = request("POST /echo", content_length="150000")
    with site.client() as client:
        for _ in range(2):
            client.socket.sendall(head[:20])
            time.sleep(0.1)  # the first piece has gone
            client.socket.sendall(head[20:] + b"x" * 150_000)
            assert client.answer() == (200, b"x" * 150_000)


@pytest.mark.parametrize("filler", [b"x: y\r\n", b"y"], ids=["headers", "one header"])
def test_a_head_must_not_be_too_large(site: Site, filler: bytes) -> None:
    with site.client() as client:
        client.socket.sendall(b"GET /json/large HTTP/1.1\r\nx: ")
        time.sleep(0.1)  # the first piece has gone
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                client.socket.sendall(filler * (READ_BYTES // len(filler)))
            pytest.fail("it takes all there is")
        assert not site.app.started.is_set()
