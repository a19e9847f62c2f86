"""The connection pool and the unit of work.

Every statement passes through `Database`, which turns what Postgres reports into the domain's
errors: a database that is away or full is `Unavailable`, text it can't store is
`ValidationFailed`. Facts are published after the outermost commit, never inside a transaction.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from loguru import logger
from piccolo.engine.postgres import PostgresEngine

from messaging_server.errors import StartupError, Unavailable, ValidationFailed
from messaging_server.events import Bus, Event
from messaging_server.leases import Leases
from messaging_server.security import Links
from messaging_server.tables import TABLES

T = TypeVar("T")

MINIMUM_POSTGRES = 14
STATEMENT_TIMEOUT_SECONDS = 30
ACQUIRE_TIMEOUT_SECONDS = 5
RETRY_AFTER_SECONDS = 2
ENGINE_CONNECTIONS = 3
DEADLOCK_ATTEMPTS = 3
NOT_RUNNING = "The server is starting or shutting down"

POSTGRES_PARAMETERS = frozenset(
    {
        "host",
        "port",
        "user",
        "password",
        "dbname",
        "database",
        "passfile",
        "options",
        "application_name",
        "krbsrvname",
        "gsslib",
        "target_session_attrs",
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    }
)
"""What asyncpg understands in a URL; Prisma's `schema`, `connection_limit`… are not among it."""

AWAY = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InternalClientError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,
    asyncpg.PostgresIOError,
    asyncpg.TransactionRollbackError,
)
"""The client may try again: the database is away, or chose this statement to end a deadlock."""

UNREACHABLE = (
    OSError,
    ValueError,
    OverflowError,  # a port above 65,535
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)
"""What connecting for the first time may raise, a bad URL included."""

UNSTORABLE = (
    asyncpg.CharacterNotInRepertoireError,
    asyncpg.UntranslatableCharacterError,
    asyncpg.NumericValueOutOfRangeError,
    asyncpg.DatetimeFieldOverflowError,
)


class Engine(PostgresEngine):
    """Piccolo's engine without the connections that its constructor opens."""

    def __init__(self) -> None:
        super().__init__(config={})

    async def check_version(self) -> None:
        """Done by `Database.start`, which knows how to say what is wrong."""

    async def prep_database(self) -> None:
        """No extensions are needed."""


ENGINE = Engine()
for _table in TABLES:
    _table._meta.db = ENGINE


async def _read_committed(connection: asyncpg.Connection) -> None:
    """Whatever the database's own default: each statement sees what was committed before it."""
    await connection.execute("set default_transaction_isolation to 'read committed'")


async def _keep_session(_connection: asyncpg.Connection) -> None:
    """Replaces asyncpg's reset, which doubles the cost of a query.

    Nothing here changes a session afterwards: `set local` only.
    """


class Transaction:
    """One open transaction; what is published on it is stated once it has committed."""

    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        self.connection = connection
        self.events: list[Event] = []

    def publish(self, event: Event) -> None:
        self.events.append(event)


_current: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


class Database:
    """The pool of one process. Inside `transaction()`, statements run on its connection."""

    def __init__(self, dsn: str, *, pool_size: int, bus: Bus, links: Links | None = None) -> None:
        self.dsn = clean_dsn(dsn)
        self._links = links
        self._pool_size = pool_size
        self._bus = bus
        self.pool: asyncpg.Pool | None = None
        self.leases: Leases | None = None
        self._engine_pool: asyncpg.Pool | None = None

    @property
    def links(self) -> Links:
        """Signs the addresses of the attachments that are read."""
        assert self._links is not None, "opened without Links: not for reading messages"
        return self._links

    async def start(self) -> None:
        """Open the pool; raises `StartupError` when the database can't be used."""
        try:
            self.pool = await self._open_pool(min_size=2, max_size=self._pool_size)
            self._engine_pool = await self._open_pool(min_size=0, max_size=ENGINE_CONNECTIONS)
        except UNREACHABLE as error:
            raise unreachable(error) from None
        self.leases = Leases(self.pool, timeout_seconds=ACQUIRE_TIMEOUT_SECONDS)
        ENGINE.pool = self._engine_pool  # for what Piccolo asks by itself: the data browser
        version = int(await self.fetch_value("select current_setting('server_version_num')::int"))
        if version < MINIMUM_POSTGRES * 10_000:
            raise StartupError(
                f"Postgres {version // 10_000} is too old: {MINIMUM_POSTGRES} or later is needed"
            )

    def _open_pool(self, *, min_size: int, max_size: int) -> Any:
        return asyncpg.create_pool(
            self.dsn,
            min_size=min_size,
            max_size=max_size,
            max_inactive_connection_lifetime=60,
            init=_read_committed,
            reset=_keep_session,
            timeout=ACQUIRE_TIMEOUT_SECONDS,
            command_timeout=STATEMENT_TIMEOUT_SECONDS,
            server_settings={"application_name": "messaging_server", "timezone": "UTC"},
        )

    async def stop(self) -> None:
        ENGINE.pool = None
        leases, self.leases = self.leases, None
        if leases is not None:
            await leases.end()
        for pool in self._pools():
            try:
                await asyncio.wait_for(pool.close(), timeout=3)
            except TimeoutError:
                pool.terminate()

    def terminate(self) -> None:
        """Break off what is still open; whoever waits for an answer gets an error."""
        for pool in self._pools():
            pool.terminate()

    def _pools(self) -> list[asyncpg.Pool]:
        return [pool for pool in (self.pool, self._engine_pool) if pool is not None]

    async def fetch(self, sql: str, *arguments: Any) -> list[asyncpg.Record]:
        return await self._call("fetch", sql, arguments)  # type: ignore[no-any-return]  # asyncpg is untyped

    async def fetch_row(self, sql: str, *arguments: Any) -> asyncpg.Record | None:
        return await self._call("fetchrow", sql, arguments)

    async def fetch_value(self, sql: str, *arguments: Any) -> Any:
        return await self._call("fetchval", sql, arguments)

    async def execute(self, sql: str, *arguments: Any) -> str:
        """Returns the command tag, e.g. `UPDATE 3`."""
        return await self._call("execute", sql, arguments)  # type: ignore[no-any-return]  # asyncpg is untyped

    async def _call(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        """In the open transaction, if there is one, else on a connection of the pool."""
        transaction = _current.get()
        if transaction is not None:
            return await translated(getattr(transaction.connection, method)(sql, *arguments))
        return await translated(self._call_alone(method, sql, arguments))

    async def _call_alone(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        """What Postgres ended for the sake of somebody else it waited for is tried again."""
        leases = self._running_leases()
        attempts = DEADLOCK_ATTEMPTS
        while True:
            connection = await leases.take()
            try:
                result = await getattr(connection, method)(sql, *arguments)
            except asyncpg.DeadlockDetectedError:
                await leases.drop(connection)
                attempts -= 1
                if attempts == 0:
                    raise
            except BaseException:
                await leases.drop(connection)
                raise
            else:
                await leases.give_back(connection)
                return result

    def _running_leases(self) -> Leases:
        if self.leases is None:
            raise Unavailable(NOT_RUNNING, retry_after_seconds=1)
        return self.leases

    async def run(self, query: Any) -> Any:
        """Run a Piccolo query, in the open transaction if there is one."""
        template, arguments = query.querystrings[0].compile_string(engine_type="postgres")
        return await self.fetch(template, *arguments)

    @property
    def in_transaction(self) -> bool:
        """Whether what is run here now is part of an open transaction."""
        return _current.get() is not None

    def publish(self, event: Event) -> None:
        """State a fact: after the commit inside a transaction, at once outside."""
        transaction = _current.get()
        if transaction is None:
            self._bus.publish(event)
        else:
            transaction.publish(event)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """Commit at the end, roll back on any error; a nested one joins the outer.

        The connection goes back to the pool whatever commit and rollback do.
        """
        outer = _current.get()
        if outer is not None:
            yield outer
            return
        try:
            async with self._running_leases().lent() as connection, connection.transaction():
                transaction = Transaction(connection)
                token = _current.set(transaction)
                try:
                    yield transaction
                finally:
                    _current.reset(token)
        except AWAY as error:
            raise unavailable(error) from error
        for event in transaction.events:
            self._bus.publish(event)


async def translated(statement: Awaitable[T]) -> T:
    """What `statement` returns; what Postgres or asyncpg raise, as the domain says it."""
    try:
        return await statement
    except asyncpg.DataError as error:
        if not isinstance(error, UNSTORABLE) and not isinstance(error.__cause__, OverflowError):
            raise
        raise ValidationFailed("A value can't be stored or is out of range") from error
    except AWAY as error:
        raise unavailable(error) from error


def unavailable(error: Exception) -> Unavailable:
    """What the loss of the database is for the domain; the reason is for the log only."""
    logger.warning("The database is unavailable: {}", repr(error))
    return Unavailable("The database is unavailable", retry_after_seconds=RETRY_AFTER_SECONDS)


def unreachable(error: Exception) -> StartupError:
    """What one of `UNREACHABLE` is for whoever starts the program; a timeout has no words."""
    return StartupError(f"The database can't be reached: {str(error) or 'it does not answer'}")


def clean_dsn(dsn: str) -> str:
    """`dsn` without the parameters that only Prisma knows, which Postgres would refuse."""
    parts = urlsplit(dsn)
    known = [(key, value) for key, value in parse_qsl(parts.query) if key in POSTGRES_PARAMETERS]
    return urlunsplit(parts._replace(query=urlencode(known)))


def shown_time(expression: str) -> str:
    """SQL for a time as the API writes it, as `models.timestamp` does.

    For what is read often: asyncpg takes as long for one timestamp as for ten texts.
    """
    return f"""to_char({expression} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""


def row_count(tag: str) -> int:
    """The number of rows in a command tag such as `UPDATE 3`."""
    return int(re.split(r"\s", tag)[-1])
