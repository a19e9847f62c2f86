"""Servers for the socket tests: by the fast path and over plain ASGI."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer
from tests.conftest import fresh_database, live_server

PATHS = {"fast path": "true", "plain ASGI": "false"}


@pytest.fixture(scope="module", params=PATHS)
def server(request: pytest.FixtureRequest, postgres: EmbeddedPostgres) -> Iterator[LiveServer]:
    """Settings are taken from the module's `ENVIRONMENT`."""
    environment = {
        **getattr(request.module, "ENVIRONMENT", {}),
        "MESSAGING_REALTIME__FAST_PATH": PATHS[request.param],
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
        frame: dict[str, Any] = json.loads(self.connection.recv(10))
        return frame

    def close_code(self) -> int:
        return close_code(self.connection)


def close_code(connection: ClientConnection) -> int:
    """Reads until the server closes."""
    try:
        while True:
            connection.recv(15)
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 1006


@contextmanager
def stranger(api: Api, **options: Any) -> Iterator[Stranger]:
    with connect(f"{api.url.replace('http', 'ws', 1)}/ws", **options) as connection:
        yield Stranger(connection)
