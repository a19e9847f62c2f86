"""One run over one conversation: what it does, and what a failure costs.

It reads, opens a line of the ledger, asks the analyser with no transaction open, and saves in
one statement that the lease's token fences: whoever lost the lease saves nothing. Where the
analyser can't answer, the stand-in's view is saved meanwhile.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from uuid import UUID

from loguru import logger
from msgspec import Struct

from messaging_server import metrics
from messaging_server.analysis import ledger_queries, queries
from messaging_server.analysis.analysers import (
    Analyser,
    AnalyserFailed,
    Analysers,
    bounded,
    fingerprint,
)
from messaging_server.analysis.ledger_queries import NewEntry
from messaging_server.analysis.queries import Claim, Run, Transcript
from messaging_server.analysis.spending import Budget, Meter, cost_micro_dollars, run_micro_dollars
from messaging_server.config import AnalysisConfig, PriceConfig
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted
from messaging_server.models import AnalysisResult, AnalysisStatus, TranscriptMessage

BACKOFF_SECONDS = 5.0
BACKOFF_MAX_SECONDS = 300.0
BACKOFF_JITTER = 0.2
RETRY_AFTER_MAX_SECONDS = 3_600.0
BUDGET_WAIT_SECONDS = 600.0
LEASE_MARGIN_SECONDS = 10.0

PROVIDER_DOWN = "the provider is not asked: its calls failed several times in a row"
BUDGET_SPENT = "the budget is spent"


class Asked(Struct, frozen=True, kw_only=True):
    """What came of asking an analyser, and the run to save it with."""

    run: Run
    outcome: AnalysisResult | AnalyserFailed


def lease_seconds(analysers: Analysers) -> float:
    """How long a claim holds: as long as the analysers may take, and reading and saving."""
    return analysers.timeout_seconds + LEASE_MARGIN_SECONDS


def backoff_seconds(attempt: int, *, retry_after_seconds: float | None) -> float:
    """The wait after failed attempt 1, 2, 3…: 5 s doubled each time, at most 5 minutes.

    Up to a fifth is left off at random, so that what failed together doesn't return together.
    A provider's `Retry-After` is kept, up to an hour.
    """
    doubled = min(BACKOFF_SECONDS * 2.0 ** min(attempt - 1, 16), BACKOFF_MAX_SECONDS)
    wait = doubled * random.uniform(1 - BACKOFF_JITTER, 1)  # noqa: S311  # spreads load
    return max(wait, min(retry_after_seconds or 0.0, RETRY_AFTER_MAX_SECONDS))


async def ask(
    analyser: Analyser, transcript: Sequence[TranscriptMessage], meter: Meter | None = None
) -> AnalysisResult | AnalyserFailed:
    """The analyser's result within bounds, or why there is none; never raises."""
    try:
        async with asyncio.timeout(analyser.timeout_seconds):
            return bounded(await analyser.analyse(transcript, meter))
    except AnalyserFailed as failure:
        return failure
    except TimeoutError:
        message = f"no answer within {analyser.timeout_seconds:g} s"
        return AnalyserFailed(message, provider_down=True)
    except Exception as error:  # noqa: BLE001  # a defect is a failure that people must see
        logger.exception("The analyser {} has a defect", analyser.name)
        return AnalyserFailed(f"a defect of the analyser ({type(error).__name__})")


class Runs:
    """Analyses one claimed conversation at a time, as often at once as it is called."""

    def __init__(self, database: Database, analysers: Analysers, settings: AnalysisConfig) -> None:
        self._database = database
        self._analysers = analysers
        self._settings = settings

    async def run(self, claim: Claim) -> None:
        """Analyse what was claimed and save the result or the failure.

        Raises `Unavailable` when the database is away; the lease is then still held.
        """
        transcript = await queries.fetch_transcript(
            self._database, claim.conversation_id, private_notes=self._settings.private_notes
        )
        if not transcript.messages:
            await queries.clear_schedule(self._database, claim, settings=self._settings)
        elif transcript.fingerprint == fingerprint(self._analysers.primary, transcript.messages):
            await self._save_unchanged(claim, transcript)
        elif wait_seconds := self._analysers.breaker.admit():
            await self._stand_in(claim, transcript)
            await self._postpone(claim, PROVIDER_DOWN, wait_seconds=wait_seconds)
        else:
            await self._ask_primary(claim, transcript)

    async def _ask_primary(self, claim: Claim, transcript: Transcript) -> None:
        asked = await self._ask(
            claim,
            transcript,
            self._analysers.primary,
            price=self._analysers.price,
            budget=self._analysers.budget,
        )
        if asked is None:
            await self._over_budget(claim, transcript)
            return
        self._report(asked.outcome)
        if isinstance(asked.outcome, AnalyserFailed):
            await self._stand_in(claim, transcript)
            await self._save_failure(asked.run, asked.outcome)
        else:
            await self._save_result(asked.run, asked.outcome)

    async def _over_budget(self, claim: Claim, transcript: Transcript) -> None:
        """The stand-in's view stays; without one the conversation waits for the next period."""
        await ledger_queries.update_refused(self._database, claim.conversation_id)
        if self._analysers.stand_in is None:
            await self._postpone(claim, BUDGET_SPENT, wait_seconds=BUDGET_WAIT_SECONDS)
            return
        asked = await self._ask(claim, transcript, self._analysers.stand_in)
        if asked is None:
            return
        if isinstance(asked.outcome, AnalyserFailed):
            await self._save_failure(asked.run, asked.outcome)
        else:
            await self._save_result(asked.run, asked.outcome)

    async def _stand_in(self, claim: Claim, transcript: Transcript) -> None:
        """Save the stand-in's view of what no analysis has seen yet; the schedule stays."""
        stand_in = self._analysers.stand_in
        if stand_in is None or transcript.analyzed_seq >= transcript.through_seq:
            return
        asked = await self._ask(claim, transcript, stand_in)
        if asked is not None and isinstance(asked.outcome, AnalysisResult):
            await self._save_result(asked.run, asked.outcome, stands_in=True)

    async def _ask(
        self,
        claim: Claim,
        transcript: Transcript,
        analyser: Analyser,
        *,
        price: PriceConfig | None = None,
        budget: Budget = Budget(),  # noqa: B008  # frozen
    ) -> Asked | None:
        """None where the budget doesn't allow it, or the conversation is gone."""
        entry = new_entry(claim, transcript, analyser, price=price)
        entry_id = await ledger_queries.insert_entry(self._database, entry, budget)
        if entry_id is None:
            return None
        meter = Meter()
        started = time.perf_counter()
        outcome = await ask(analyser, transcript.messages, meter)
        seconds = time.perf_counter() - started
        metrics.ANALYSIS_SECONDS.labels(analyser.name).observe(seconds)
        await self._settle(entry, entry_id, meter, price=price)
        run = Run(
            claim=claim,
            entry_id=entry_id,
            provider=analyser.name,
            through_seq=transcript.through_seq,
            latency_milliseconds=round(seconds * 1000),
        )
        return Asked(run=run, outcome=outcome)

    async def _settle(
        self, entry: NewEntry, entry_id: UUID, meter: Meter, *, price: PriceConfig | None
    ) -> None:
        if not (entry.reserved_micro_dollars or meter.tokens.input or meter.calls != 1):
            return
        cost = run_micro_dollars(meter, price, reserved=entry.reserved_micro_dollars)
        await ledger_queries.settle(self._database, entry_id, meter, micro_dollars=cost)
        metrics.ANALYSIS_TOKENS.labels(entry.provider, "in").inc(meter.tokens.input)
        metrics.ANALYSIS_TOKENS.labels(entry.provider, "out").inc(meter.tokens.output)
        metrics.ANALYSIS_COST.labels(entry.provider).inc(cost)

    def _report(self, outcome: AnalysisResult | AnalyserFailed) -> None:
        breaker = self._analysers.breaker
        if isinstance(outcome, AnalyserFailed) and outcome.provider_down:
            breaker.failed(retry_after_seconds=outcome.retry_after_seconds)
        else:
            breaker.succeeded()
        metrics.BREAKER_OPEN.labels(self._analysers.primary.name).set(breaker.is_open)

    async def _save_unchanged(self, claim: Claim, transcript: Transcript) -> None:
        event = await queries.update_unchanged(
            self._database, claim, transcript.through_seq, settings=self._settings
        )
        if event is not None:
            self._database.publish(event)

    async def _save_result(
        self, run: Run, result: AnalysisResult, *, stands_in: bool = False
    ) -> None:
        saved = await queries.update_analysed(
            self._database, run, result, settings=self._settings, stands_in=stands_in
        )
        if saved is None:
            _log_lost(run.claim)
            return
        metrics.ANALYSES.labels(run.provider, AnalysisStatus.SUCCEEDED).inc()
        self._database.publish(
            AnalysisCompleted(
                conversation_id=run.claim.conversation_id,
                summary=result.summary,
                priority=result.priority,
                tags=result.tags,
                updated_at=saved.updated_at,
                version=saved.version,
            )
        )

    async def _save_failure(self, run: Run, failure: AnalyserFailed) -> None:
        noted = await queries.update_failed(
            self._database,
            run,
            failure.message,
            retry_seconds=backoff_seconds(
                run.claim.attempt, retry_after_seconds=failure.retry_after_seconds
            ),
            max_attempts=self._settings.max_attempts,
        )
        if not noted:
            _log_lost(run.claim)
            return
        metrics.ANALYSES.labels(run.provider, AnalysisStatus.FAILED).inc()
        logger.bind(
            conversation_id=str(run.claim.conversation_id),
            provider=run.provider,
            attempt=run.claim.attempt,
            error=failure.message,
        ).warning("An analysis failed")

    async def _postpone(self, claim: Claim, reason: str, *, wait_seconds: float) -> None:
        """Later by up to a fifth, so that what waits for the same doesn't come at once."""
        spread = random.uniform(1, 1 + BACKOFF_JITTER)  # noqa: S311  # spreads load
        await queries.update_postponed(
            self._database, claim, reason, wait_seconds=max(1.0, wait_seconds) * spread
        )


def new_entry(
    claim: Claim, transcript: Transcript, analyser: Analyser, *, price: PriceConfig | None
) -> NewEntry:
    return NewEntry(
        conversation_id=claim.conversation_id,
        trigger=claim.trigger,
        provider=analyser.name,
        model=analyser.model,
        prompt_version=analyser.prompt_version,
        fingerprint=fingerprint(analyser, transcript.messages),
        through_seq=transcript.through_seq,
        attempt=claim.attempt,
        reserved_micro_dollars=cost_micro_dollars(analyser.most_tokens(transcript.messages), price),
    )


def _log_lost(claim: Claim) -> None:
    logger.bind(conversation_id=str(claim.conversation_id)).info(
        "An analysis was not saved: its lease was lost or its conversation deleted"
    )
