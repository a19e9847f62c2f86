"""The loop that makes deliveries of facts and sends them, as long as the server runs.

Everything that must survive is in the database: a process that dies leaves leases that run out.
Several processes share the work. No transaction is open while a receiver is waited for.
"""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from loguru import logger
from msgspec import Struct

from messaging_server import metrics
from messaging_server.config import WebhooksConfig
from messaging_server.database import Database
from messaging_server.errors import Unavailable
from messaging_server.events import (
    AnalysisCompleted,
    Bus,
    ConversationAssigned,
    ConversationCreated,
    ConversationUpdated,
    Event,
    LeadUpdated,
    MessageCreated,
    MessageStatusChanged,
)
from messaging_server.models import WebhookDeliveryStatus
from messaging_server.webhooks import queue_queries as queries
from messaging_server.webhooks.outbox import OUTBOX_AT_ONCE, empty_outbox
from messaging_server.webhooks.queue_queries import Claim, Health, Result
from messaging_server.webhooks.sender import TIMEOUT_SECONDS, Attempt, Sender

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

RETRY_SECONDS = (5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Before the second attempt, the third…; after the tenth a delivery has failed for good."""

GIVE_UP_SECONDS = 5 * 86_400
JITTER = 0.1
GONE = 410

POLL_SECONDS = 1.0
GATHER_SECONDS = 0.02
ENOUGH_RESULTS = 16
"""A turn waits so long for more to do, or until so many attempts have ended."""

OUTBOX_SECONDS = 0.025
"""Facts are gathered so long: what a round of statements costs is shared by all of them."""

BUSY_SECONDS = 0.02
MEASURE_SECONDS = 15.0
PRUNE_SECONDS = 60.0
PRUNE_PAUSE_SECONDS = 0.1
STOP_SECONDS = 3.0
LEASE_MARGIN_SECONDS = 5.0

TOTAL_PLACES = 64
PLACES_OF_ONE = 16
PLACES_FOR_SURE = 2
"""Calls under way: of one webhook, and of one when all together are at the total already, so
that nobody waits for receivers that hang."""

OUTCOMES = {
    WebhookDeliveryStatus.SUCCEEDED: "succeeded",
    WebhookDeliveryStatus.PENDING: "failed",
    WebhookDeliveryStatus.FAILED: "gave_up",
}
"""What metrics call an attempt, by what its delivery is after it."""

WAKING_EVENTS: tuple[type[Event], ...] = (
    MessageCreated,
    MessageStatusChanged,
    ConversationCreated,
    ConversationUpdated,
    ConversationAssigned,
    AnalysisCompleted,
    LeadUpdated,
)


class Ended(Struct, frozen=True):
    claim: Claim
    attempt: Attempt


class Webhooks:
    """Tells the webhooks what happens; `start` and `stop` it with the server.

    What may be given besides is for tests: nobody configures it.
    """

    def __init__(
        self,
        settings: WebhooksConfig,
        database: Database,
        bus: Bus,
        *,
        retry_seconds: Sequence[float] = RETRY_SECONDS,
        give_up_seconds: float = GIVE_UP_SECONDS,
        timeout_seconds: float = TIMEOUT_SECONDS,
        poll_seconds: float = POLL_SECONDS,
        resolver: "AbstractResolver | None" = None,
    ) -> None:
        self._database = database
        self._retry_seconds = retry_seconds
        self._give_up_seconds = give_up_seconds
        self._poll_seconds = poll_seconds
        self._lease_seconds = timeout_seconds + LEASE_MARGIN_SECONDS
        self.sender = Sender(
            settings.allowed_networks, timeout_seconds=timeout_seconds, resolver=resolver
        )
        self._woken = asyncio.Event()
        self._enough = asyncio.Event()
        self._listening = False
        self._emptied_at = 0.0
        self._stopping = False
        self._attempts: dict[asyncio.Task[None], Claim] = {}
        self._under_way: Counter[UUID] = Counter()
        self._ended: list[Ended] = []
        self._tasks: list[asyncio.Task[None]] = []
        for event_type in WAKING_EVENTS:
            bus.subscribe(event_type, self._note)

    async def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._work()),
            asyncio.create_task(self._measure()),
            asyncio.create_task(self._prune()),
        ]

    async def stop(self) -> None:
        """Begin nothing more; calls under way get a few seconds, then their leases go back."""
        self._stopping = True
        self.wake()
        for task in self._tasks[1:]:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
            self._tasks[0].cancel()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=STOP_SECONDS)
        unfinished = dict(self._attempts)
        for task in unfinished:
            task.cancel()
        if unfinished:
            await asyncio.wait(unfinished)
        with suppress(Unavailable):  # leases run out by themselves
            await self._settle(claim=False)
            await queries.release_leases(self._database, list(unfinished.values()))
        await self.sender.aclose()

    def wake(self) -> None:
        """Look for something to do now."""
        self._listening = True
        self._woken.set()

    def _note(self, _event: Event) -> None:
        if self._listening:
            self._woken.set()

    # --- The loop -----------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping:
            try:
                pause = await self._turn()
            except Unavailable:
                pause = POLL_SECONDS  # it was logged where it was noticed
            except Exception:  # noqa: BLE001  # the loop must outlive any defect of one turn
                logger.exception("Delivering webhooks failed")
                pause = POLL_SECONDS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), pause)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._enough.wait(), GATHER_SECONDS)

    async def _turn(self) -> float:
        """Do what there is to do; how long to wait at most until the next turn, in seconds."""
        self._woken.clear()
        self._enough.clear()
        work = await queries.look_for_work(self._database)
        self._listening = work.any_enabled
        rest = self._emptied_at + OUTBOX_SECONDS - self._loop_time()
        filled = work.outbox and rest <= 0 and await self._empty_outbox()
        pause = self._poll_seconds
        if filled or work.due or self._ended:
            pause = await self._settle(claim=True)
        return min(pause, rest) if work.outbox and rest > 0 else pause

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    async def _empty_outbox(self) -> bool:
        """Make deliveries of the facts; False when somebody else is at it."""
        taken = await empty_outbox(self._database)
        if taken is None:
            return False
        if taken == OUTBOX_AT_ONCE:
            self._woken.set()
        else:
            self._emptied_at = self._loop_time()
        return True

    async def _settle(self, *, claim: bool) -> float:
        """Save what has ended and begin what is due, as places allow."""
        ended, self._ended = self._ended, []
        claims: list[Claim] = []
        more = False
        try:
            async with self._database.transaction():
                concerned = {each.claim.webhook_id for each in ended}
                targets = await queries.lock_targets(self._database, list(concerned))
                locked = {target.id for target in targets}
                busy = concerned - locked
                if busy:
                    busy -= await queries.fetch_deleted(self._database, list(busy))
                saved = [each for each in ended if each.claim.webhook_id in locked]
                disabled = await self._save(saved)
                places = self._places([t.id for t in targets if t.open and t.id not in disabled])
                if claim and places:
                    claims, more = await queries.claim_due(
                        self._database, places, lease_seconds=self._lease_seconds
                    )
        except BaseException:
            self._ended += ended
            raise
        self._ended += [each for each in ended if each.claim.webhook_id in busy]
        self._count(saved)
        addresses = {target.id: target for target in targets}
        for each in claims:
            target = addresses[each.webhook_id]
            self._begin(each, url=target.url, secrets=target.secrets)
        if more:
            self._woken.set()
        return BUSY_SECONDS if busy else self._poll_seconds

    def _places(self, webhook_ids: Sequence[UUID]) -> dict[UUID, int]:
        """How many more calls each may have under way."""
        most = PLACES_OF_ONE if len(self._attempts) < TOTAL_PLACES else PLACES_FOR_SURE
        places = {each: most - self._under_way[each] for each in webhook_ids}
        return {webhook_id: free for webhook_id, free in places.items() if free > 0}

    # --- Attempts -----------------------------------------------------------------------------

    def _begin(self, claim: Claim, *, url: str, secrets: Sequence[str]) -> None:
        task = asyncio.create_task(self._attempt(claim, url, secrets))
        self._attempts[task] = claim
        self._under_way[claim.webhook_id] += 1
        task.add_done_callback(self._left)

    async def _attempt(self, claim: Claim, url: str, secrets: Sequence[str]) -> None:
        attempt = await self.sender.send(
            url, message_id=str(claim.id), secrets=secrets, body=claim.body
        )
        self._ended.append(Ended(claim, attempt))

    def _left(self, task: asyncio.Task[None]) -> None:
        claim = self._attempts.pop(task)
        self._under_way[claim.webhook_id] -= 1
        if not self._under_way[claim.webhook_id]:
            del self._under_way[claim.webhook_id]
        if not task.cancelled() and (error := task.exception()):
            logger.opt(exception=error).error("An attempt to deliver failed")
        self._woken.set()
        if len(self._ended) >= ENOUGH_RESULTS or not self._attempts:
            self._enough.set()

    async def _save(self, ended: Sequence[Ended]) -> set[UUID]:
        """In the open transaction; the webhooks that are disabled by it."""
        if not ended:
            return set()
        await queries.save_results(self._database, [self._result(each) for each in ended])
        disabled = await queries.update_health(
            self._database, health_of(ended), give_up_seconds=self._give_up_seconds
        )
        for webhook_id in disabled:
            logger.bind(webhook_id=str(webhook_id)).warning("A webhook was disabled")
        return set(disabled)

    def _result(self, ended: Ended) -> Result:
        claim, attempt = ended.claim, ended.attempt
        status, delay = self._status_after(ended), 0.0
        if status is WebhookDeliveryStatus.PENDING:
            delay = self._retry_seconds[claim.attempt - 1]
            delay *= random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311  # no secret
            delay = max(delay, attempt.retry_after_seconds or 0.0)
        return Result(
            claim=claim,
            status=status,
            delay_seconds=delay,
            response_status=attempt.status,
            error=attempt.error,
        )

    def _status_after(self, ended: Ended) -> WebhookDeliveryStatus:
        """Of the delivery, after this attempt."""
        if ended.attempt.error is None:
            return WebhookDeliveryStatus.SUCCEEDED
        if ended.claim.attempt <= len(self._retry_seconds):
            return WebhookDeliveryStatus.PENDING
        return WebhookDeliveryStatus.FAILED

    def _count(self, ended: Sequence[Ended]) -> None:
        for each in ended:
            metrics.WEBHOOK_ATTEMPTS.labels(OUTCOMES[self._status_after(each)]).inc()
            metrics.WEBHOOK_SECONDS.observe(each.attempt.seconds)

    # --- Keeping house ------------------------------------------------------------------------

    async def _measure(self) -> None:
        while True:
            try:
                metrics.WEBHOOK_PENDING.set(await queries.count_pending(self._database))
            except Unavailable:
                pass  # the next round tries again
            except Exception:  # noqa: BLE001  # one bad round must not end the clock
                logger.exception("Counting webhook deliveries failed")
            await asyncio.sleep(MEASURE_SECONDS)

    async def _prune(self) -> None:
        """Once a minute, and again as long as there is something."""
        while True:
            await asyncio.sleep(PRUNE_SECONDS)
            try:
                while await self._prune_some():  # noqa: ASYNC110  # the pause is for others
                    await asyncio.sleep(PRUNE_PAUSE_SECONDS)
            except Unavailable:
                continue
            except Exception:  # noqa: BLE001  # one bad round must not end the clock
                logger.exception("Pruning webhook deliveries failed")

    async def _prune_some(self) -> bool:
        async with self._database.transaction():
            return await queries.prune(self._database) > 0


def health_of(ended: Sequence[Ended]) -> list[Health]:
    """What the attempts of one turn say of each webhook; one success outweighs all failures."""
    attempts: Mapping[UUID, list[Attempt]] = defaultdict(list)
    for each in ended:
        attempts[each.claim.webhook_id].append(each.attempt)
    return [
        Health(
            webhook_id=webhook_id,
            succeeded=any(attempt.error is None for attempt in made),
            gone=any(attempt.status == GONE for attempt in made),
            hold_seconds=max(attempt.retry_after_seconds or 0.0 for attempt in made),
            error=next((attempt.error for attempt in reversed(made) if attempt.error), ""),
        )
        for webhook_id, made in attempts.items()
    ]
