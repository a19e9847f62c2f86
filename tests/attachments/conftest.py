"""One server for the package, with a data directory that the tests look into."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer
from tests.conftest import fresh_database, live_server

Execute = Callable[..., list[asyncpg.Record]]


@pytest.fixture(scope="package")
def data_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="attachments-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="package")
def package_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="package")
def server(package_dsn: str, data_dir: Path) -> Iterator[LiveServer]:
    """At its end no request of any test may have met an unexpected error."""
    with live_server(package_dsn, MESSAGING_SERVER__DATA_DIR=str(data_dir)) as running:
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


@pytest.fixture
def execute(package_dsn: str) -> Execute:
    """Run a statement on the server's database; its rows."""

    def run(sql: str, *arguments: Any) -> list[asyncpg.Record]:
        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(package_dsn)
            try:
                return await connection.fetch(sql, *arguments)
            finally:
                await connection.close()

        return asyncio.run(fetch())

    return run
