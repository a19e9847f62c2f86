"""Connections that stay out of the pool between two statements.

asyncpg's pool makes a task and two timers for each statement, which costs three times as much
as a small statement itself (measured: 56 µs with it, 18 without). The pool still opens, counts,
cleans and closes connections; here they wait, or are handed on to whoever waits for them.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg


class Leases:
    """Lends the connections of one pool; whoever waits too long gets a `TimeoutError`."""

    def __init__(self, pool: asyncpg.Pool, *, timeout_seconds: float) -> None:
        self._pool = pool
        self._timeout_seconds = timeout_seconds
        self._taken = 0  # of the pool's places; never more than it has
        self._idle: list[Any] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._ended = False

    @property
    def idle(self) -> int:
        """How many connections could be lent at once, here and in the pool."""
        return len(self._idle) + int(self._pool.get_idle_size())

    async def take(self) -> Any:
        """A connection, to be given back or dropped."""
        while self._idle:
            connection = self._idle.pop()
            if is_open(connection):
                return connection
            self._taken -= 1
        if self._taken < self._pool.get_max_size():
            self._taken += 1
            return await self._acquire()
        return await self._wait() or await self._acquire()

    async def give_back(self, connection: Any) -> None:
        """After success: the connection is as it was."""
        if self._ended or not is_open(connection):
            await self.drop(connection)
        else:
            self._offer(connection)

    async def drop(self, connection: Any) -> None:
        """After a failure or a cancellation: the pool cleans it up, or replaces it."""
        try:
            await self._pool.release(connection)
        finally:
            self._offer(None)

    async def _acquire(self) -> Any:
        """For a place that is taken already."""
        try:
            return await self._pool.acquire(timeout=self._timeout_seconds)
        except BaseException:
            self._offer(None)
            raise

    async def _wait(self) -> Any:
        """A connection, or None: a place whose connection has gone back to the pool."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await turn
        except BaseException:
            if turn.done() and not turn.cancelled():  # it came at the moment of giving up
                self._offer(turn.result())
            raise

    def _offer(self, connection: Any) -> None:
        """To the first who still waits; else it stays here, or its place is free."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        if connection is None:
            self._taken -= 1
        else:
            self._idle.append(connection)

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[Any]:
        connection = await self.take()
        try:
            yield connection
        except BaseException:
            await self.drop(connection)
            raise
        await self.give_back(connection)

    async def end(self) -> None:
        """Give everything back to the pool, now and later, so that it can be closed."""
        self._ended = True
        while self._idle:
            await self._pool.release(self._idle.pop())


def is_open(connection: Any) -> bool:
    """False also for a connection that was lost, which its pool has let go of."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        return False
