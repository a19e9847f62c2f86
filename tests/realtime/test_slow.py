"""Slow clients: they harm only themselves, and a long reply is no slowness."""

import json
import socket as sockets
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
from websockets.sync.client import connect

from tests.client import Api, wait_until
from tests.realtime.conftest import closed

ENVIRONMENT = {"MESSAGING_ANALYSIS__ENABLED": "false"}


def slow_client(url: str) -> sockets.socket:
    """A connection with a tiny receive buffer."""
    raw = sockets.socket()
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
    raw.connect(("127.0.0.1", urlsplit(url).port))
    return raw


def test_slow_socket_harms_only_itself(api: Api) -> None:
    """It is closed with 4008 and freed, though it never reads; the others hear everything."""
    conversation_id = api.new_conversation()["id"]
    address = f"{api.url.replace('http', 'ws', 1)}/ws"
    before = closed(api.url, 4008)
    with api.socket() as healthy, connect(address, sock=slow_client(api.url), max_queue=1) as slow:
        slow.send(json.dumps({"id": 1, "event": "auth", "data": {"token": api.token}}))
        slow.recv(5)
        slow.send(json.dumps({"id": 2, "event": "conversation:join", "data": conversation_id}))
        healthy.call("conversation:join", conversation_id)
        sent = 0
        with ThreadPoolExecutor(1) as pool:
            while closed(api.url, 4008) == before:
                for _ in range(10):
                    api.send(conversation_id, "\N{GRINNING FACE}" * 10_000)
                sent += 10
                assert sent < 1_000, "the slow socket was never closed"
                heard = pool.submit(
                    lambda: [healthy.wait_event("message:new")["seq"] for _ in range(10)]
                )
                assert heard.result() == list(range(sent - 9, sent + 1))
        wait_until(lambda: "messaging_sockets 1.0" in httpx.get(f"{api.url}/metrics").text)


def test_a_long_reply_is_not_slowness(api: Api) -> None:
    """Nearly a megabyte takes a moment to read; what comes meanwhile must not end the socket."""
    conversation_id = api.new_conversation()["id"]
    for _ in range(22):
        api.send(conversation_id, "\N{GRINNING FACE}" * 10_000)
    before = closed(api.url, 4008)
    with api.socket() as socket:
        target = {"conversationId": conversation_id, "afterSeq": 0}
        socket.connection.send(json.dumps({"id": 5, "event": "conversation:join", "data": target}))
        for _ in range(5):
            api.send(conversation_id, "\N{GRINNING FACE}" * 10_000)
        reply = socket.wait(lambda frame: frame.get("id") == 5)
        got = len(reply["data"]["messages"])
        after = [socket.wait_event("message:new")["seq"] for _ in range(27 - got)]
        assert after == list(range(got + 1, 28))
    assert closed(api.url, 4008) == before


def test_too_long_a_reply_is_a_reset(api: Api) -> None:
    """Many WebSocket libraries refuse frames over 1 MiB."""
    conversation_id = api.new_conversation()["id"]
    for _ in range(27):
        api.send(conversation_id, "\N{GRINNING FACE}" * 10_000)
    with api.socket() as socket:
        target = {"conversationId": conversation_id, "afterSeq": 0}
        data = socket.call("conversation:join", target)["data"]
        assert (data["messages"], data["lastSeq"], data["reset"]) == ([], 27, True)
