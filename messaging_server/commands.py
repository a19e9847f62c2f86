"""What the command line does besides serving; works beside a running server or without one."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import msgspec

from messaging_server.config import Config
from messaging_server.database import Database
from messaging_server.errors import DataDirectoryInUse
from messaging_server.events import Bus
from messaging_server.migrations import migrate
from messaging_server.models import Role, User
from messaging_server.postgres import EmbeddedPostgres
from messaging_server.security import Passwords
from messaging_server.serving import data_dir, running_database
from messaging_server.users import service as users

R = TypeVar("R")


def create_user_now(
    config: Config, *, email: str, password: str, name: str | None, role: str | None
) -> User:
    """Migrates first, so that it may be the very first command."""

    async def create(database: Database) -> User:
        passwords = Passwords(rounds=config.auth.bcrypt_rounds)
        try:
            registration = users.Registration(
                email=email, password=password, name=name, role=Role(role) if role else None
            )
            return await users.create_user(database, passwords, registration)
        finally:
            passwords.close()

    return with_database(config, create)


def migrate_now(config: Config) -> int:
    """How many migrations were run."""
    with database_of(config) as complete:
        return asyncio.run(migrate(complete.database.url))


def with_database(config: Config, work: Callable[[Database], Awaitable[R]]) -> R:
    """Run `work` on the up-to-date database of this configuration."""

    async def run(url: str) -> R:
        await migrate(url)
        database = Database(url, pool_size=2, bus=Bus())
        await database.start()
        try:
            return await work(database)
        finally:
            await database.stop()

    with database_of(config) as complete:
        return asyncio.run(run(complete.database.url))


@contextlib.contextmanager
def database_of(config: Config) -> Iterator[Config]:
    """The configuration with its database: a running server's, else started for this moment."""
    with contextlib.ExitStack() as stack:
        try:
            complete = stack.enter_context(running_database(config))
        except DataDirectoryInUse:
            url = EmbeddedPostgres(data_dir(config)).dsn
            complete = msgspec.structs.replace(
                config, database=msgspec.structs.replace(config.database, url=url)
            )
        yield complete
