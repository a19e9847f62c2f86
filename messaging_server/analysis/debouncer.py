"""The heartbeat of the analysis: finds what is due and gives it to the pool.

Nothing is remembered here that matters: the schedule is in the database, and a process that
dies leaves leases that run out. Several processes share the work.
"""

import asyncio
from datetime import UTC

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from loguru import logger

from messaging_server import metrics
from messaging_server.analysis import queries, queue_queries
from messaging_server.analysis.analysers import Analysers
from messaging_server.analysis.pool import Pool
from messaging_server.analysis.queries import Claim
from messaging_server.analysis.runs import Runs, lease_seconds
from messaging_server.config import AnalysisConfig
from messaging_server.database import Database
from messaging_server.errors import Unavailable

TICK_SECONDS = 1
MEASURE_SECONDS = 10
CLAIM_END_SECONDS = 2.0

# The default grace of a second drops jobs after a stall (measured: 300 of 300).
JOB_DEFAULTS = {"misfire_grace_time": None, "coalesce": True, "max_instances": 1}


class Debouncer:
    """Claims as many due conversations as the pool has free places, at every tick and wake-up.

    While there is a backlog, every place that frees is a wake-up too.
    """

    def __init__(self, database: Database, analysers: Analysers, settings: AnalysisConfig) -> None:
        self._database = database
        self._runs = Runs(database, analysers, settings)
        self._lease_seconds = lease_seconds(analysers)
        self._pool = Pool(size=settings.concurrency, work=self._run, on_free=self._place_freed)
        self._scheduler = AsyncIOScheduler(timezone=UTC, job_defaults=JOB_DEFAULTS)
        self._woken = asyncio.Event()
        self._backlog = False
        self._stopping = False
        self._unsaved: list[Claim] = []
        self._claiming: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._claiming = asyncio.create_task(self._claim_forever())
        self._scheduler.add_job(self._tick, "interval", seconds=TICK_SECONDS)
        self._scheduler.add_job(self._measure, "interval", seconds=MEASURE_SECONDS)
        self._scheduler.start()
        self.wake()

    async def stop(self, *, timeout_seconds: float) -> None:
        """Claim nothing more, let runs finish, give back the leases of those that don't."""
        if self._claiming is None or self._stopping:
            return
        self._stopping = True
        self._scheduler.shutdown(wait=False)
        self.wake()
        _, late = await asyncio.wait([self._claiming], timeout=CLAIM_END_SECONDS)
        if late:
            self._claiming.cancel()
            await asyncio.wait(late, timeout=CLAIM_END_SECONDS)
        self._unsaved += await self._pool.drain(timeout_seconds=timeout_seconds)
        try:
            await self._release_unsaved()
        except Unavailable:
            logger.warning("Leases of analyses were not given back: they run out by themselves")

    def wake(self) -> None:
        """Look for due conversations now."""
        self._woken.set()

    async def _tick(self) -> None:
        self.wake()

    async def _claim_forever(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            if self._stopping:
                return
            try:
                await self._claim()
            except Unavailable:
                logger.debug("No analyses are claimed: the database is unavailable")
            except Exception:  # noqa: BLE001  # the loop must outlive any defect of one round
                logger.exception("Claiming analyses failed")

    async def _claim(self) -> None:
        await self._release_unsaved()
        free = self._pool.free
        if not free:
            return
        claims = await queries.claim_due(
            self._database, limit=free, lease_seconds=self._lease_seconds
        )
        self._backlog = len(claims) == free
        for claim in claims:
            self._pool.submit(claim)

    async def _run(self, claim: Claim) -> None:
        try:
            await self._runs.run(claim)
        except Unavailable:
            self._unsaved.append(claim)

    def _place_freed(self) -> None:
        if self._backlog:
            self.wake()

    async def _release_unsaved(self) -> None:
        """Give back what could not be saved while the database was away."""
        unsaved = self._unsaved[:]
        if unsaved:
            await queries.release_leases(self._database, unsaved)
            del self._unsaved[: len(unsaved)]

    async def _measure(self) -> None:
        try:
            counts = await queue_queries.count_queue(self._database)
        except Unavailable:
            return
        for state in counts.__struct_fields__:
            metrics.ANALYSIS_QUEUE.labels(state).set(getattr(counts, state))
