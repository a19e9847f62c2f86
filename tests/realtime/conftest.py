"""Servers for the socket tests: by the fast path and over plain ASGI."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer, Socket
from tests.conftest import fresh_database, live_server
from tests.public.site import PublicApi, Site


@pytest.fixture(scope="module", params=["fast path", "plain ASGI"])
def fast_path(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "fast path")


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, fast_path: bool, postgres: EmbeddedPostgres
) -> Iterator[LiveServer]:
    """Settings are taken from the module's `ENVIRONMENT`."""
    environment = {
        **getattr(request.module, "ENVIRONMENT", {}),
        "MESSAGING_REALTIME__FAST_PATH": str(fast_path),
    }
    with fresh_database(postgres) as dsn, live_server(dsn, **environment) as running:
        yield running


class Stranger:
    """A connection that has not said who it is."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    def send(self, frame: Any) -> None:
        self.connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    def read(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(self.connection.recv(20))
        return frame

    def close_code(self) -> int:
        return close_code(self.connection)


def close_code(connection: ClientConnection) -> int:
    """Reads until the server closes."""
    try:
        while True:
            connection.recv(20)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


@contextmanager
def stranger(api: Api, **options: Any) -> Iterator[Stranger]:
    with connect(f"{api.url.replace('http', 'ws', 1)}/ws", **options) as connection:
        yield Stranger(connection)


@pytest.fixture
def site(api: Api) -> Iterator[Site]:
    """A website with an inbox of its own."""
    website = Site(api)
    yield website
    website.close()


def public_address(api: Api) -> str:
    return f"{api.url.replace('http', 'ws', 1)}/ws/public"


@contextmanager
def unknown_visitor(api: Api, **options: Any) -> Iterator[Stranger]:
    """A connection of a website's visitor that has not said who it is."""
    with connect(public_address(api), **options) as connection:
        yield Stranger(connection)


@contextmanager
def visitor_socket(api: Api, page: PublicApi, **options: Any) -> Iterator[Socket]:
    """An authenticated socket of this page's visitor."""
    with connect(public_address(api), **options) as connection:
        socket = Socket(connection)
        reply = socket.call("auth", {"token": page.session["sessionToken"]})
        assert reply["ok"], reply
        yield socket


def closed(url: str, code: int) -> float:
    """How many sockets have been closed with this code."""
    text = httpx.get(f"{url}/metrics").text
    match = re.search(rf'messaging_socket_closes_total{{code="{code}"}} (\S+)', text)
    return float(match[1]) if match else 0.0
