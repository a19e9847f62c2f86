"""What is written to a connection leaves together, and to a WebSocket at once."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from messaging_server.http_protocol import HttpProtocol, JoinedWrites
from messaging_server.realtime.wire import WireProtocol
from tests.test_http_protocol import UPGRADE, Receive, Send, request


class RecordedTransport(asyncio.Transport):
    """Remembers the calls, with what they wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[bytes]]] = []
        self.closing = False

    def write(self, data: Any) -> None:
        self.calls.append(("write", [data]))

    def close(self) -> None:
        self.calls.append(("close", []))

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def written(self) -> bytes:
        return b"".join(piece for _, pieces in self.calls for piece in pieces)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        yield loop


def joined(loop: asyncio.AbstractEventLoop) -> tuple[JoinedWrites, RecordedTransport]:
    transport = RecordedTransport()
    return JoinedWrites(transport, loop), transport


def turn(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(asyncio.sleep(0))


def test_two_writes_are_one_call(loop: asyncio.AbstractEventLoop) -> None:
    writes, transport = joined(loop)
    writes.write(b"head")
    assert transport.calls == []
    writes.write(b"body")
    assert transport.calls == [("write", [b"headbody"])]
    turn(loop)
    assert len(transport.calls) == 1


def test_lone_write_leaves_when_the_loop_turns(loop: asyncio.AbstractEventLoop) -> None:
    writes, transport = joined(loop)
    for piece in (b"one", b"two"):
        writes.write(piece)
        turn(loop)
        assert transport.calls.pop() == ("write", [piece])


def test_close_flushes_first(loop: asyncio.AbstractEventLoop) -> None:
    writes, transport = joined(loop)
    writes.write(b"head")
    writes.close()
    assert transport.calls == [("write", [b"head"]), ("close", [])]


def test_the_rest_is_the_transports(loop: asyncio.AbstractEventLoop) -> None:
    writes, transport = joined(loop)
    assert writes.get_extra_info == transport.get_extra_info
    with pytest.raises(AttributeError):
        _ = writes.no_such_thing


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=3) | st.sampled_from(["flush", "close", "turn"])))
def test_order_is_kept(loop: asyncio.AbstractEventLoop, steps: list[bytes | str]) -> None:
    """Only the last piece may be missing, and nothing after a flush, a close or a turn."""
    writes, transport = joined(loop)
    written = b""
    for step in steps:
        if isinstance(step, bytes):
            writes.write(step)
            assert transport.written() in (written, written + step)
            written += step
            continue
        if step == "turn":
            turn(loop)
        else:
            getattr(writes, step)()
        assert transport.written() == written
    turn(loop)
    assert transport.written() == written


def test_empty_piece_is_not_passed_on(loop: asyncio.AbstractEventLoop) -> None:
    """uvicorn writes an empty body for a 204, which `sendmsg` would never be done with."""
    writes, transport = joined(loop)
    writes.write(b"head")
    writes.write(b"")
    turn(loop)
    assert [pieces for _, pieces in transport.calls] == [[b"head"]]


def test_nothing_is_written_for_a_client_that_has_gone(loop: asyncio.AbstractEventLoop) -> None:
    """The connection is lost between the write and the turn, or before the second write.

    Such as that of the answer to a pipelined request, whose client did not wait for it.
    """
    for more in ([], [b"body"], [b"body", b"head"]):
        writes, transport = joined(loop)
        writes.write(b"head")
        transport.closing = True
        for piece in more:
            writes.write(piece)
        turn(loop)
        assert transport.calls == []


def upgraded(loop: asyncio.AbstractEventLoop, *, held: bytes) -> RecordedTransport:
    """A connection that became a WebSocket, which the application refuses at once."""
    transport = RecordedTransport()

    async def refuse(_scope: Any, _receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close"})

    async def upgrade() -> None:
        config = uvicorn.Config(refuse, ws=WireProtocol, log_config=None)
        protocol = HttpProtocol(config, ServerState(), {})
        protocol.connection_made(transport)
        if held:
            protocol.transport.write(held)
        protocol.data_received(request("GET /ws", **UPGRADE))

    loop.run_until_complete(upgrade())
    turn(loop)
    return transport


def test_websocket_gets_the_bare_transport(loop: asyncio.AbstractEventLoop) -> None:
    transport = upgraded(loop, held=b"")
    assert isinstance(transport.protocol, WireProtocol)
    assert transport.protocol.transport is transport


def test_upgrade_flushes_first(loop: asyncio.AbstractEventLoop) -> None:
    transport = upgraded(loop, held=b"head")
    assert transport.calls[0] == ("write", [b"head"])
    assert transport.written().startswith(b"headHTTP/1.1 403")
