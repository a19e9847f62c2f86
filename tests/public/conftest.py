"""One server for all of `tests/public`: each test makes the websites and visitors it looks at."""

from collections.abc import Iterator

import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer
from tests.conftest import fresh_database, live_server
from tests.public.site import Site


@pytest.fixture(scope="package")
def public_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="package")
def server(public_dsn: str) -> Iterator[LiveServer]:
    """At its end no request of any test may have met an unexpected error."""
    with live_server(public_dsn) as running:
        yield running
        running.assert_no_defects()


@pytest.fixture(scope="package")
def api(server: LiveServer) -> Iterator[Api]:
    """The first user, an ADMIN without a name."""
    with Api.first_admin(server.url) as admin:
        yield admin


@pytest.fixture
def site(api: Api) -> Iterator[Site]:
    website = Site(api)
    yield website
    website.close()
