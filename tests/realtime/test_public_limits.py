"""Visitors' sockets: times, floods, too many of anything."""

import time
from contextlib import ExitStack, suppress

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, wait_until
from tests.conftest import fresh_database, live_server
from tests.public.site import Site
from tests.realtime.conftest import (
    close_code,
    unknown_visitor,
    visitor_socket,
)
from tests.realtime.test_public_socket import session_token, talking

ENVIRONMENT = {
    "MESSAGING_REALTIME__AUTH_SECONDS": "3",
    "MESSAGING_REALTIME__PING_SECONDS": "1",
    "MESSAGING_REALTIME__PONG_SECONDS": "6",
    "MESSAGING_REALTIME__SOCKETS_PER_VISITOR": "3",
    "MESSAGING_REALTIME__VISITOR_SOCKETS_PER_ADDRESS": "8",
    "MESSAGING_ANALYSIS__ENABLED": "false",
}


def test_silent_stranger_is_sent_away(api: Api) -> None:
    started = time.monotonic()
    with unknown_visitor(api) as visitor:
        assert visitor.close_code() == 4401
    assert 2.9 < time.monotonic() - started < 9.5  # ten by default


def test_heartbeat(api: Api, site: Site) -> None:
    page = site.visitor()
    with visitor_socket(api, page) as answering, unknown_visitor(api) as silent:
        silent.send({"event": "auth", "data": {"token": page.session["sessionToken"]}})
        for _ in range(4):
            answering.wait_event("ping")
        assert silent.close_code() == 4012
        assert answering.call("conversation:join")["ok"]


def test_token_expires(api: Api, site: Site) -> None:
    page = site.visitor()
    token = session_token(page, exp=int(time.time()) + 5)
    with unknown_visitor(api) as visitor:
        visitor.send({"id": 1, "event": "auth", "data": {"token": token}})
        assert visitor.read()["data"]["expiresIn"] <= 5
        with suppress(ConnectionClosed):
            while visitor.read()["event"] == "ping":
                visitor.send({"event": "pong"})
        assert visitor.close_code() == 4005


def test_refreshed_token_keeps_the_socket(api: Api, site: Site) -> None:
    page = site.visitor()
    with visitor_socket(api, page) as socket:
        short = session_token(page, exp=int(time.time()) + 5)
        assert socket.call("auth", {"token": short})["ok"]
        assert socket.call("auth", {"token": page.session["sessionToken"]})["ok"]
        for _ in range(7):
            socket.wait_event("ping")
        assert socket.call("conversation:join")["ok"]


def test_too_many_frames(api: Api, site: Site) -> None:
    with visitor_socket(api, site.visitor()) as socket:
        with suppress(ConnectionClosed):  # it may be closed before all are sent
            for _ in range(60):
                socket.connection.send('{"event":"message:delivered","data":{"seq":1}}')
        assert close_code(socket.connection) == 4029


def test_too_many_sockets_of_a_visitor(api: Api, site: Site) -> None:
    page, other = site.visitor(), site.visitor()
    with ExitStack() as stack:
        first = [stack.enter_context(visitor_socket(api, page)) for _ in range(3)]
        with unknown_visitor(api) as fourth:
            token = page.session["sessionToken"]
            fourth.send({"id": 1, "event": "auth", "data": {"token": token}})
            assert fourth.read()["error"] == {
                "code": "conflict",
                "message": "3 sockets of this visitor are open already",
                "retryable": False,
            }
            assert fourth.close_code() == 4409
        stack.enter_context(visitor_socket(api, other))
        first[0].connection.close()
        stack.enter_context(visitor_socket(api, page))


def test_too_many_sockets_of_an_address(api: Api, site: Site) -> None:
    """Anonymous ones too; agents' sockets don't count."""
    with ExitStack() as stack:
        pages = [site.visitor() for _ in range(8)]
        opened = [stack.enter_context(visitor_socket(api, page)) for page in pages]
        stack.enter_context(api.socket())
        with unknown_visitor(api) as ninth:
            assert ninth.close_code() == 4409
        opened[0].connection.close()
        with unknown_visitor(api) as again:
            again.send({"id": 1, "event": "conversation:join"})
            assert again.read()["error"]["code"] == "unauthenticated"


def test_stopping_says_restart(postgres: EmbeddedPostgres) -> None:
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn) as server,
        Api.first_admin(server.url) as api,
    ):
        site = Site(api)
        with visitor_socket(api, site.visitor()) as socket:
            socket.call("conversation:join")
            assert server.stop() == 0
            assert close_code(socket.connection) == 1012
        site.close()


@pytest.mark.parametrize("behind", ["127.0.0.1", ""])
def test_addresses_behind_a_proxy(postgres: EmbeddedPostgres, behind: str) -> None:
    """A trusted proxy's word on the address counts, anybody else's does not."""
    with (
        fresh_database(postgres) as dsn,
        live_server(
            dsn,
            MESSAGING_SERVER__BEHIND_PROXY=behind,
            MESSAGING_REALTIME__VISITOR_SOCKETS_PER_ADDRESS="1",
        ) as server,
        Api.first_admin(server.url) as api,
        ExitStack() as stack,
    ):
        for host, welcome in (("198.51.100.1", True), ("198.51.100.2", bool(behind))):
            visitor = stack.enter_context(
                unknown_visitor(api, additional_headers={"X-Forwarded-For": host})
            )
            if welcome:
                visitor.send({"id": 1, "event": "shout"})
                assert visitor.read()["error"]["code"] == "validation_error"
            else:
                assert visitor.close_code() == 4409


def test_metrics_go_back_to_none(api: Api, site: Site) -> None:
    page, _ = talking(site)
    with visitor_socket(api, page) as socket:
        socket.call("conversation:join")
        text = httpx.get(f"{api.url}/metrics").text
        assert "messaging_visitor_sockets 1.0" in text
        assert "messaging_rooms 1.0" in text
    wait_until(lambda: "messaging_visitor_sockets 0.0" in httpx.get(f"{api.url}/metrics").text)
    assert "messaging_rooms 0.0" in httpx.get(f"{api.url}/metrics").text
