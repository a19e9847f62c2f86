"""The pool and the unit of work: facts after the commit, nothing leaked, faults by their names."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging_server.database import Database, clean_dsn, row_count, shown_time
from messaging_server.errors import StartupError, Unavailable, ValidationFailed
from messaging_server.events import Bus, Event
from messaging_server.leases import is_open
from messaging_server.models import timestamp
from tests.analysis.waiting import until
from tests.conversations.conftest import DEADLINE_SECONDS, outsider
from tests.test_lock_order import held_up

T = TypeVar("T")

SLEEPING = """
select exists (
    select 1 from pg_stat_activity
    where state = 'active' and pid <> pg_backend_pid() and query like '%pg_sleep(1)%'
        and datname = current_database()
)
"""

POOL_SIZE = 3


class Happened(Event, frozen=True, kw_only=True):
    number: int


class Bench:
    """A started database, a table, and the facts that were stated."""

    def __init__(self, dsn: str) -> None:
        bus = Bus()
        self.database = Database(dsn, pool_size=POOL_SIZE, bus=bus)
        self.stated: list[int] = []
        bus.subscribe(Happened, lambda event: self.stated.append(event.number))

    async def insert(self, number: int) -> None:
        await self.database.execute("insert into numbers values ($1)", number)
        self.database.publish(Happened(number=number))

    async def stored(self) -> list[int]:
        rows = await self.database.fetch("select number from numbers order by number")
        return [row["number"] for row in rows]


@pytest.fixture
def run(dsn: str) -> Callable[[Callable[[Bench], Awaitable[None]]], None]:
    """Runs a coroutine function with a bench of its own."""

    def run_with_bench(work: Callable[[Bench], Awaitable[None]]) -> None:
        async def whole() -> None:
            bench = Bench(dsn)
            await bench.database.start()
            try:
                await bench.database.execute("create table numbers (number integer primary key)")
                await work(bench)
                await assert_nothing_leaked(bench.database)
            finally:
                await bench.database.stop()

        asyncio.run(whole())

    return run_with_bench


async def assert_nothing_leaked(database: Database) -> None:
    """Every connection of the pool can be had at once, and none is in a transaction."""
    assert database.leases is not None
    connections = [await database.leases.take() for _ in range(POOL_SIZE)]
    lent = [connection for connection in connections if is_open(connection)]  # not just killed
    assert not any(connection.is_in_transaction() for connection in lent)
    for connection in connections:
        await database.leases.give_back(connection)


Run = Callable[[Callable[[Bench], Awaitable[None]]], None]


def test_facts_are_stated_after_the_commit(run: Run) -> None:
    async def work(bench: Bench) -> None:
        async with bench.database.transaction():
            await bench.insert(1)
            async with bench.database.transaction():  # joins
                await bench.insert(2)
            assert bench.stated == []
        assert bench.stated == [1, 2] == await bench.stored()
        await bench.insert(3)
        assert bench.stated == [1, 2, 3]

    run(work)


def test_what_is_rolled_back_was_never_stated(run: Run) -> None:
    async def work(bench: Bench) -> None:
        async def insert(*numbers: int) -> None:
            async with bench.database.transaction():
                for number in numbers:
                    if number < 0:
                        raise KeyError
                    await bench.insert(number)

        with pytest.raises(KeyError):
            await insert(1, -1)
        with pytest.raises(asyncpg.UniqueViolationError):
            await insert(2, 2)
        assert bench.stated == [] == await bench.stored()

    run(work)


def test_a_failed_commit_states_nothing_and_gives_the_connection_back(run: Run) -> None:
    async def work(bench: Bench) -> None:
        await bench.database.execute(
            """
            alter table numbers add column parent integer references numbers
                deferrable initially deferred
            """
        )

        async def insert_orphan() -> None:
            async with bench.database.transaction():
                await bench.database.execute("insert into numbers values (1, 99)")
                bench.database.publish(Happened(number=1))

        for _ in range(POOL_SIZE + 1):
            with pytest.raises(asyncpg.ForeignKeyViolationError):
                await insert_orphan()
        assert bench.stated == [] == await bench.stored()

    run(work)


def test_a_cancelled_transaction_leaves_nothing(run: Run) -> None:
    async def work(bench: Bench) -> None:
        inserted = asyncio.Event()

        async def insert_and_wait() -> None:
            async with bench.database.transaction():
                await bench.insert(1)
                inserted.set()
                await bench.database.fetch_value("select pg_sleep(30)")

        for _ in range(POOL_SIZE + 1):
            inserted.clear()
            task = asyncio.create_task(insert_and_wait())
            await inserted.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert bench.stated == [] == await bench.stored()

    run(work)


def test_two_transactions_side_by_side_do_not_mix(run: Run) -> None:
    async def work(bench: Bench) -> None:
        async def insert(number: int, *, fail: bool) -> None:
            async with bench.database.transaction():
                await bench.insert(number)
                await asyncio.sleep(0)
                if fail:
                    raise KeyError

        results = await asyncio.gather(
            *(insert(number, fail=number % 2 == 1) for number in range(10)), return_exceptions=True
        )
        assert sum(isinstance(result, KeyError) for result in results) == 5
        assert sorted(bench.stated) == await bench.stored() == [0, 2, 4, 6, 8]

    run(work)


def test_a_failing_subscriber_harms_nobody(dsn: str) -> None:
    async def work() -> None:
        bus = Bus()
        heard: list[Event] = []
        bus.subscribe(Happened, lambda _event: 1 / 0)  # type: ignore[arg-type, return-value]
        bus.subscribe(Happened, heard.append)
        database = Database(dsn, pool_size=2, bus=bus)
        await database.start()
        async with database.transaction():
            database.publish(Happened(number=1))
        await database.stop()
        assert len(heard) == 1

    asyncio.run(work())


def test_a_statement_under_way_does_not_delay_the_stop(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection comes back, so that nothing need be cut off."""
    cut_off: list[object] = []
    monkeypatch.setattr(asyncpg.pool.Pool, "terminate", cut_off.append)

    async def work(bench: Bench) -> None:
        other = Database(bench.database.dsn, pool_size=2, bus=Bus())
        await other.start()
        slow = asyncio.create_task(other.fetch_value("select 1 from pg_sleep(1)"))
        await until(lambda: bench.database.fetch_value(SLEEPING))
        await other.stop()
        assert await slow == 1
        assert cut_off == []

    run(work)


def test_a_connection_that_was_lost_is_replaced(run: Run) -> None:
    async def work(bench: Bench) -> None:
        lost = await bench.database.fetch_value("select pg_backend_pid()")
        async with bench.database.transaction() as transaction:
            held = transaction.connection
            assert await held.fetchval("select pg_backend_pid()") == lost
        killer = await asyncpg.connect(bench.database.dsn)
        await killer.execute("select pg_terminate_backend($1::int)", lost)
        await killer.close()
        await until(lambda: not is_open(held))
        assert await bench.database.fetch_value("select pg_backend_pid()") != lost

    run(work)


def test_a_full_pool_is_unavailable(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging_server.database.ACQUIRE_TIMEOUT_SECONDS", 0.2)

    async def work(bench: Bench) -> None:
        leases = bench.database.leases
        assert leases is not None
        held = [await leases.take() for _ in range(POOL_SIZE)]
        for statement in (bench.stored(), bench.insert(1)):
            with pytest.raises(Unavailable) as raised:
                await statement
            assert raised.value.retry_after_seconds
        with pytest.raises(Unavailable):
            async with bench.database.transaction():
                pass
        for connection in held:
            await leases.give_back(connection)
        await bench.insert(1)

    run(work)


LOCKS = """
select nextval('attempts'), pg_advisory_xact_lock(1), pg_advisory_xact_lock(2),
    pg_advisory_xact_lock(3)
"""


async def deadlocked(bench: Bench, call: Coroutine[Any, Any, T]) -> T:
    """What `call` gives, whose `LOCKS` Postgres ends, as it and somebody else wait for each other.

    A lock in between leads it there: Postgres looks for a deadlock only once in each wait.
    """
    take = "select pg_advisory_xact_lock($1)"
    await bench.database.execute("create sequence attempts")
    async with outsider(bench.database.dsn, "set local deadlock_timeout = '600s'") as other:
        await other.execute(take, 3)
        async with outsider(bench.database.dsn, take, 2) as between:
            task = await held_up(between, call)
            others = asyncio.create_task(other.execute(take, 1))
            blocked = "select pg_blocking_pids($1) <> '{}'"
            await until(lambda: between.fetchval(blocked, other.get_server_pid()))
        async with asyncio.timeout(DEADLINE_SECONDS):
            await others
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await task


def test_what_was_ended_for_a_deadlock_is_tried_again(run: Run) -> None:
    async def work(bench: Bench) -> None:
        assert await deadlocked(bench, bench.database.fetch_value(LOCKS)) == 2

    run(work)


def test_a_transaction_that_was_ended_for_a_deadlock_is_not(run: Run) -> None:
    async def work(bench: Bench) -> None:
        async def take_locks() -> None:
            async with bench.database.transaction():
                await bench.database.fetch_value(LOCKS)

        with pytest.raises(Unavailable):
            await deadlocked(bench, take_locks())
        assert await bench.database.fetch_value("select last_value from attempts") == 1

    run(work)


def test_killed_connections_are_replaced(run: Run) -> None:
    async def work(bench: Bench) -> None:
        sql = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
        others = sql + " and datname = current_database()"
        for number in range(5):
            await bench.database.fetch(others)
            for attempt in range(POOL_SIZE + 1):
                try:
                    await bench.insert(number)
                    break
                except Unavailable:
                    assert attempt < POOL_SIZE
        assert await bench.stored() == [0, 1, 2, 3, 4]

    run(work)


def test_what_cannot_be_stored_is_the_clients_fault(run: Run) -> None:
    async def work(bench: Bench) -> None:
        await bench.database.execute("create table texts (text text, at timestamptz)")
        with pytest.raises(ValidationFailed):
            await bench.database.execute("insert into texts (text) values ($1)", "a\0b")
        for number in (2**31, -(2**40), 2**80):
            with pytest.raises(ValidationFailed):
                await bench.database.execute("insert into numbers values ($1)", number)
        with pytest.raises(asyncpg.DataError):  # our own mistake stays visible
            await bench.database.execute("insert into numbers values ($1)", "one")

    run(work)


def test_times_look_alike_whoever_writes_them(run: Run) -> None:
    times = [
        datetime(1, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2026, 2, 3, 4, 5, 6, 7_009, tzinfo=UTC),
        datetime(2026, 7, 31, 12, 0, 0, 120_999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999_998, tzinfo=UTC),
    ]

    async def read(bench: Bench) -> None:
        for zone in ("UTC", "Asia/Kolkata", "America/New_York"):
            async with bench.database.transaction():
                await bench.database.execute(f"set local timezone to '{zone}'")
                shown = await bench.database.fetch(
                    f"select {shown_time('at')} as at from unnest($1::timestamptz[]) as at", times
                )
            assert [row["at"] for row in shown] == [timestamp(at) for at in times]

    run(read)


def test_nothing_listens(dsn: str) -> None:
    async def start(url: str) -> None:
        await Database(url, pool_size=2, bus=Bus()).start()

    for url in (
        "postgresql://nobody@127.0.0.1:1/nothing",
        dsn.replace("/test_", "/no_such_"),
        "mysql://localhost/x",
    ):
        with pytest.raises(StartupError, match="database"):
            asyncio.run(start(url))


def test_before_the_start_and_after_the_stop(dsn: str) -> None:
    async def work() -> None:
        database = Database(dsn, pool_size=2, bus=Bus())
        with pytest.raises(Unavailable):
            await database.fetch("select 1")
        await database.start()
        assert await database.fetch_value("select 1") == 1
        await database.stop()
        await database.stop()
        with pytest.raises(Unavailable):
            await database.fetch("select 1")

    asyncio.run(work())


# --- The address ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_url", "cleaned"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgresql://u:p@h/d?schema=public&connection_limit=5", "postgresql://u:p@h/d"),
        ("postgres://h/d?pgbouncer=true&sslmode=require", "postgres://h/d?sslmode=require"),
        ("postgresql://h/d?sslmode=disable&connect_timeout=3", "postgresql://h/d?sslmode=disable"),
        ("postgresql://u:p%40%3A@h/d?schema=a", "postgresql://u:p%40%3A@h/d"),
        (
            "postgresql://u@/d?host=%2Frun%2Fpg&port=5432",
            "postgresql://u@/d?host=%2Frun%2Fpg&port=5432",
        ),
    ],
)
def test_clean_dsn(given_url: str, cleaned: str) -> None:
    assert clean_dsn(given_url) == cleaned


def test_prismas_parameters_do_not_matter(dsn: str) -> None:
    async def work(url: str) -> Any:
        database = Database(url, pool_size=2, bus=Bus())
        await database.start()
        try:
            return await database.fetch_value("select current_database()")
        finally:
            await database.stop()

    extra = "&schema=public&connection_limit=5&pool_timeout=10&pgbouncer=true&sslaccept=strict"
    assert asyncio.run(work(dsn + extra)) == asyncio.run(work(dsn))


@given(st.integers(0, 10**9))
def test_row_count(number: int) -> None:
    assert row_count(f"UPDATE {number}") == number
    assert row_count(f"INSERT 0 {number}") == number
