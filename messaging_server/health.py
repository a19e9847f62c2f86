"""Is the server alive, is it ready, how is it doing; and the small jobs that keep it so."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from litestar import Response, get
from loguru import logger
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from messaging_server import metrics
from messaging_server.attachments.service import Uploads
from messaging_server.conversations import queries as conversation_queries
from messaging_server.conversations import service as conversations
from messaging_server.conversations import visitors
from messaging_server.database import Database
from messaging_server.errors import Unavailable
from messaging_server.http import PUBLIC, Request, Success

LAG_PROBE_SECONDS = 0.25
READY_SECONDS = 3.0
"""The pool then takes up to five more to give up a connection that hangs."""


@get("/health/live", opt=PUBLIC, tags=["Health"])
async def live() -> Success[dict[str, str]]:
    """The process answers."""
    return Success(data={"state": "live"})


@get("/health/ready", opt=PUBLIC, tags=["Health"])
async def ready(request: Request) -> Success[dict[str, str]]:
    """The database answers too; 503 otherwise, or when it takes too long."""
    try:
        async with asyncio.timeout(READY_SECONDS):
            await request.database.fetch_value("select 1")
    except TimeoutError as error:
        raise Unavailable("The database does not answer", retry_after_seconds=1) from error
    return Success(data={"state": "ready"})


@get("/metrics", opt=PUBLIC, include_in_schema=False)
async def prometheus(request: Request) -> Response[bytes]:
    """The metrics in Prometheus's text format."""
    request.app.state.maintenance.sample()
    return Response(
        generate_latest(metrics.REGISTRY), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


route_handlers: list[Any] = [live, ready, prometheus]


class Maintenance:
    """Jobs on a clock: wake what is snoozed, compact counters, forget visitors and attachments
    that are not used, watch the loop."""

    def __init__(self, database: Database, uploads: Uploads) -> None:
        self._database = database
        self._uploads = uploads
        self._tasks: list[asyncio.Task[None]] = []
        self._worst_lag_seconds = 0.0

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._every(5, self._wake_snoozed)),
            asyncio.create_task(self._every(10, self._compact_counts)),
            asyncio.create_task(self._every(5, self._uploads.remove_unused)),
            asyncio.create_task(self._every(60, self._forget_expired_visitors)),
            asyncio.create_task(self._watch_lag()),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def sample(self) -> None:
        """Bring the gauges up to date for a scrape."""
        metrics.LOOP_LAG.set(self._worst_lag_seconds)
        self._worst_lag_seconds = 0.0
        pool, leases = self._database.pool, self._database.leases
        if pool is not None and leases is not None:
            idle = leases.idle
            metrics.POOL_CONNECTIONS.labels("idle").set(idle)
            metrics.POOL_CONNECTIONS.labels("used").set(pool.get_size() - idle)

    async def _every(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await job()
            except Unavailable:
                continue  # logged where it was noticed; the next round tries again
            except Exception:  # noqa: BLE001  # one bad round must not end the clock
                logger.exception("A maintenance job failed")

    async def _wake_snoozed(self) -> None:
        await conversations.wake_snoozed(self._database)

    async def _compact_counts(self) -> None:
        await conversation_queries.compact_counts(self._database)

    async def _forget_expired_visitors(self) -> None:
        await visitors.forget_expired_visitors(self._database)

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            expected = loop.time() + LAG_PROBE_SECONDS
            await asyncio.sleep(LAG_PROBE_SECONDS)
            self._worst_lag_seconds = max(self._worst_lag_seconds, loop.time() - expected)
