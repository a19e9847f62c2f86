"""One server for all of `tests/api`: each test makes the users and conversations it looks at."""

from collections.abc import Iterator

import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.api.calls import Sender
from tests.client import Api, LiveServer
from tests.conftest import fresh_database, live_server


@pytest.fixture(scope="package")
def api_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="package")
def server(api_dsn: str) -> Iterator[LiveServer]:
    """At its end no request of any test may have met an unexpected error."""
    with live_server(api_dsn) as running:
        yield running
        running.assert_no_defects()


@pytest.fixture(scope="package")
def api(server: LiveServer) -> Iterator[Api]:
    """The first user, an ADMIN."""
    with Api.first_admin(server.url) as admin:
        yield admin


@pytest.fixture
def agent(api: Api) -> Iterator[Api]:
    with api.new_user(name="Eva") as user:
        yield user


@pytest.fixture
def stranger(api: Api) -> Iterator[Api]:
    """An agent to whom nothing is assigned."""
    with api.new_user() as user:
        yield user


@pytest.fixture(scope="package")
def key(api: Api) -> Iterator[Api]:
    with api.new_key() as key:
        yield key


@pytest.fixture(scope="module")
def sender(api: Api, key: Api) -> Sender:
    return Sender(api, key)
