"""Times and limits: heartbeats, expiry, floods, too many of anything."""

import time
from contextlib import ExitStack, suppress

import pytest
from websockets.exceptions import ConnectionClosed

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api
from tests.conftest import fresh_database, live_server
from tests.realtime.conftest import close_code, closed, stranger

ENVIRONMENT = {
    "MESSAGING_REALTIME__AUTH_SECONDS": "3",
    "MESSAGING_REALTIME__PING_SECONDS": "1",
    "MESSAGING_REALTIME__PONG_SECONDS": "6",
    "MESSAGING_REALTIME__ROOMS_PER_SOCKET": "3",
    "MESSAGING_REALTIME__SOCKETS_PER_USER": "4",
    "MESSAGING_AUTH__TOKEN_HOURS": "0.01",
    "MESSAGING_ANALYSIS__ENABLED": "false",
}
UNKNOWN = "01900000-0000-7000-8000-00000000dead"


def test_silent_stranger_is_sent_away(api: Api) -> None:
    started = time.monotonic()
    with stranger(api) as visitor:
        assert visitor.close_code() == 4401
    assert 2.9 < time.monotonic() - started < 9.5  # ten by default


def test_heartbeat(api: Api) -> None:
    """Who answers pings stays, who does not is closed."""
    with api.socket() as answering, stranger(api) as silent:
        silent.send({"event": "auth", "data": {"token": api.token}})
        for _ in range(4):
            answering.wait_event("ping")
        assert silent.close_code() == 4012
        assert answering.call("conversation:leave", UNKNOWN)["ok"]


def test_token_expires(postgres: EmbeddedPostgres) -> None:
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn, MESSAGING_AUTH__TOKEN_HOURS="0.0015") as server,
        Api.first_admin(server.url) as api,
        api.socket() as socket,
    ):
        assert close_code(socket.connection) == 4005


def test_refreshed_token_keeps_the_socket(postgres: EmbeddedPostgres) -> None:
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn, MESSAGING_AUTH__TOKEN_HOURS="0.0015") as server,
        Api.first_admin(server.url) as api,
        api.socket() as socket,
    ):
        until = time.monotonic() + 8  # a token lives 5.4 s
        while time.monotonic() < until:
            token = api.log_in(api.user["email"]).token
            assert socket.call("auth", {"token": token})["ok"]
            with suppress(AssertionError):
                socket.wait_event("nothing", timeout=0.2)


def test_too_many_frames(api: Api) -> None:
    with api.socket() as socket:
        with suppress(ConnectionClosed):  # it may be closed before all are sent
            for _ in range(60):
                socket.connection.send('{"event":"typing:stop","data":"' + UNKNOWN + '"}')
        assert close_code(socket.connection) == 4029


def test_a_burst_is_allowed(api: Api) -> None:
    with api.socket() as socket:
        for _ in range(30):
            assert socket.call("conversation:leave", UNKNOWN)["ok"]


def test_flood_of_pings_is_a_flood(api: Api, fast_path: bool) -> None:
    """Control frames count too, where they are seen."""
    if not fast_path:
        pytest.skip("plain ASGI does not show pings")
    with api.socket() as socket:
        raw = socket.connection.socket
        raw.sendall(b"\x89\x80\0\0\0\0" * 50_000)
        assert close_code(socket.connection) in (4029, 1006)
    assert closed(api.url, 4029) >= 1


def test_too_many_sockets(api: Api) -> None:
    user = api.new_user()
    with ExitStack() as stack:
        first = [stack.enter_context(user.socket()) for _ in range(4)]
        with stranger(api) as fifth:
            fifth.send({"id": 1, "event": "auth", "data": {"token": user.token}})
            assert fifth.read()["error"]["code"] == "conflict"
            assert fifth.close_code() == 4409
        first[0].connection.close()
        stack.enter_context(user.socket())


def test_too_many_rooms(api: Api) -> None:
    conversations = [api.new_conversation()["id"] for _ in range(4)]
    with api.socket() as socket:
        for conversation_id in conversations[:3]:
            assert socket.call("conversation:join", conversation_id)["ok"]
        assert socket.call("conversation:join", conversations[3])["error"]["code"] == "conflict"
        assert socket.call("conversation:join", conversations[0])["ok"]
        assert socket.call("conversation:leave", conversations[0])["ok"]
        assert socket.call("conversation:join", conversations[3])["ok"]


def test_stopping_says_restart(postgres: EmbeddedPostgres) -> None:
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn) as server,
        Api.first_admin(server.url) as api,
        api.socket() as socket,
    ):
        assert server.stop() == 0
        assert close_code(socket.connection) == 1012
