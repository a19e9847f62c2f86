"""Brings the schema up to date, once, however many servers start at the same time.

Piccolo's migration runner costs as much to import as half the server, so it is imported only
when a migration is missing. `DB` is what Piccolo looks for in the module that `PICCOLO_CONF` names.
"""

import io
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from messaging_server.database import (
    ENGINE,
    MINIMUM_POSTGRES,
    UNREACHABLE,
    clean_dsn,
    unreachable,
)
from messaging_server.errors import StartupError
from messaging_server.tables import TABLES

if TYPE_CHECKING:
    from piccolo.conf.apps import AppConfig

DB = ENGINE
APP_NAME = "messaging"
FOLDER = Path(__file__).parent / "piccolo_migrations"
MIGRATION_LOCK = 7_000
MIGRATION_ID = re.compile(r'^ID = "(.+)"$', re.MULTILINE)


def app_config() -> "AppConfig":
    """What Piccolo knows of this application."""
    from piccolo.conf.apps import AppConfig

    return AppConfig(
        app_name=APP_NAME, migrations_folder_path=str(FOLDER), table_classes=list(TABLES)
    )


async def migrate(dsn: str) -> int:
    """Run what is missing under an advisory lock; how many migrations that were.

    Raises `StartupError` when the database can't be used, is too old, or is newer than this
    program.
    """
    try:
        lock = await asyncpg.connect(clean_dsn(dsn), timeout=10)
    except UNREACHABLE as error:
        raise unreachable(error) from None
    try:
        _check_version(lock)
        await lock.execute("select pg_advisory_lock($1)", MIGRATION_LOCK)
        missing = await _missing(lock)
        if missing:
            await _run(dsn)
        return len(missing)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StartupError(
            f"The database role may not make tables ({error}): let it own the database"
        ) from None
    finally:
        await lock.close()


def _check_version(connection: asyncpg.Connection) -> None:
    major = connection.get_server_version().major
    if major < MINIMUM_POSTGRES:
        raise StartupError(f"Postgres {major} is too old: {MINIMUM_POSTGRES} or later is needed")


async def _missing(connection: asyncpg.Connection) -> set[str]:
    known = {MIGRATION_ID.findall(path.read_text("utf-8"))[0] for path in FOLDER.glob("*_0*.py")}
    if await connection.fetchval("select to_regclass('migration')") is None:
        return known
    rows = await connection.fetch("select name from migration where app_name = $1", APP_NAME)
    applied = {row["name"] for row in rows}
    if applied - known:
        raise StartupError(
            "The database was migrated by a newer messaging_server; install that version"
        )
    return known - applied


async def _run(dsn: str) -> None:
    os.environ.setdefault("PICCOLO_CONF", __name__)
    from piccolo.apps.migrations.commands.forwards import ForwardsMigrationManager
    from piccolo.apps.migrations.tables import Migration

    Migration._meta.db = ENGINE
    previous, ENGINE.pool = (
        ENGINE.pool,
        await asyncpg.create_pool(clean_dsn(dsn), min_size=1, max_size=2),
    )
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            manager = ForwardsMigrationManager(APP_NAME)
            await manager.create_migration_table()
            result = await manager.run_migrations(app_config())
    finally:
        await ENGINE.pool.close()
        ENGINE.pool = previous
    if not result.success:
        raise StartupError(f"The database can't be migrated: {result.message}")
