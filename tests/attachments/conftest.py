"""One server for the package, with a data directory that the tests look into."""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from messaging_server.attachments.service import Uploads
from messaging_server.config import StorageConfig
from messaging_server.database import Database
from messaging_server.events import Bus
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


@pytest.fixture
def remove_unused(package_dsn: str, data_dir: Path) -> Callable[[], None]:
    """Do now what the server does every few seconds."""

    async def remove() -> None:
        database = Database(package_dsn, pool_size=2, bus=Bus())
        await database.start()
        uploads = Uploads(StorageConfig(), database, data_dir=data_dir)
        try:
            await uploads.remove_unused()
        finally:
            uploads.close()
            await database.stop()

    return lambda: asyncio.run(remove())
