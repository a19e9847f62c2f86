"""A real server for every test: embedded Postgres, uvicorn on a free port, HTTP and sockets.

One Postgres serves the whole session; each test module that asks for `server` gets a server
process of its own on a fresh database, so that tests don't see each other's data. Databases are
copies of one that was migrated.
"""

import asyncio
import contextlib
import functools
import os
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, settings

from messaging_server.config import Config
from messaging_server.config_sources import load_config
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.migrations import migrate
from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer

settings.register_profile(
    "any machine",
    parent=settings(),  # in CI another than elsewhere
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

# Loading the machine's certificates takes 30 ms, and each of thousands of HTTP clients does it.
ssl.create_default_context = functools.cache(ssl.create_default_context)

SECRET = "a-secret-for-tests-of-at-least-32-bytes"
MIGRATED = "migrated"
"""The database that others are copied from; nobody stays connected to it."""
TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First what takes longest, which is in no package; then package by package, webhooks first.

    So each worker starts a package's server once, and none has a long file left at the end.
    """
    items.sort(key=lambda item: (item.path.parent == TESTS, item.path.parent), reverse=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """One embedded Postgres for the session, in a short path because of its socket.

    It does not wait for the disk: what survives a crash is tested on others.
    """
    directory = Path(tempfile.mkdtemp(prefix="ms-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory)
    server.start()
    execute(
        server,
        "alter system set fsync = off",
        "select pg_reload_conf()",
        f"create database {MIGRATED}",
    )
    asyncio.run(migrate(dsn_of(server, MIGRATED)))
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


def execute(postgres: EmbeddedPostgres, *statements: str) -> None:
    """Each in a transaction of its own."""

    async def run() -> None:
        connection = await asyncpg.connect(postgres.dsn)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    asyncio.run(run())


def dsn_of(postgres: EmbeddedPostgres, name: str) -> str:
    dsn = postgres.dsn.replace("/messaging?", f"/{name}?")
    assert name in dsn
    return dsn


@contextlib.contextmanager
def fresh_database(postgres: EmbeddedPostgres, *, migrated: bool = True) -> Iterator[str]:
    """A new database; its DSN."""
    name = f"test_{uuid4().hex[:12]}"
    execute(postgres, f"create database {name}" + f" template {MIGRATED}" * migrated)
    yield dsn_of(postgres, name)
    execute(postgres, f"drop database {name} with (force)")


@pytest.fixture
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def module_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as fresh:
        yield fresh


def make_config(dsn: str, **sections: dict[str, Any]) -> Config:
    """A complete configuration for tests: quick passwords, no limits, quick analysis."""
    overrides: dict[str, dict[str, Any]] = {
        "server": {"host": "127.0.0.1", "port": 0},
        "database": {"url": dsn},
        "auth": {"secret": SECRET, "bcrypt_rounds": 4},
        "limits": {"enabled": False},
        "analysis": {"quiet_seconds": 0.5, "max_wait_seconds": 3},
    }
    for section, keys in sections.items():
        overrides.setdefault(section, {}).update(keys)
    return load_config(None, {}, overrides)


@pytest.fixture
def database(dsn: str) -> Database:
    """A `Database` that is not started: for coroutines that run their own loop."""
    return Database(dsn, pool_size=4, bus=Bus())


@contextlib.contextmanager
def live_server(dsn: str, **environment: str) -> Iterator[LiveServer]:
    """`python -m messaging_server` as users run it, in a process of its own."""
    data_dir = tempfile.mkdtemp(prefix="ms-data-")
    variables = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MESSAGING_")},
        "DATABASE_URL": dsn,
        "MESSAGING_SERVER__DATA_DIR": data_dir,
        "MESSAGING_AUTH__SECRET": SECRET,
        "MESSAGING_AUTH__BCRYPT_ROUNDS": "4",
        "MESSAGING_LIMITS__ENABLED": "false",
        "MESSAGING_ANALYSIS__QUIET_SECONDS": "0.5",
        "MESSAGING_ANALYSIS__MAX_WAIT_SECONDS": "3",
        **environment,
    }
    server = LiveServer(variables)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(data_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def server(module_dsn: str) -> Iterator[LiveServer]:
    with live_server(module_dsn) as running:
        yield running


@pytest.fixture(scope="module")
def api(server: LiveServer) -> Iterator[Api]:
    """The first user, an ADMIN, on the module's server."""
    with Api.first_admin(server.url) as admin:
        yield admin
