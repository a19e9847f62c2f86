"""One run over one conversation: what it does, and what a failure costs.

It reads, asks the analyser with no transaction open, and saves in one statement that the
lease's token fences: whoever lost the lease saves nothing.
"""

import asyncio
import random
import time
from collections.abc import Sequence

from loguru import logger

from messaging_server import metrics
from messaging_server.analysis import queries
from messaging_server.analysis.analysers import Analyser, AnalyserFailed, bounded
from messaging_server.analysis.queries import Claim, Run
from messaging_server.config import AnalysisConfig
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted
from messaging_server.models import AnalysisResult, AnalysisStatus, TranscriptMessage

BACKOFF_SECONDS = 5.0
BACKOFF_MAX_SECONDS = 300.0
BACKOFF_JITTER = 0.2
RETRY_AFTER_MAX_SECONDS = 3_600.0
LEASE_MARGIN_SECONDS = 10.0


def lease_seconds(analyser: Analyser) -> float:
    """How long a claim holds: as long as the analyser may take, and reading and saving."""
    return analyser.timeout_seconds + LEASE_MARGIN_SECONDS


def backoff_seconds(attempt: int, *, retry_after_seconds: float | None) -> float:
    """The wait after failed attempt 1, 2, 3…: 5 s doubled each time, at most 5 minutes.

    Up to a fifth is left off at random, so that what failed together doesn't return together.
    A provider's `Retry-After` is kept, up to an hour.
    """
    doubled = min(BACKOFF_SECONDS * 2.0 ** min(attempt - 1, 16), BACKOFF_MAX_SECONDS)
    wait = doubled * random.uniform(1 - BACKOFF_JITTER, 1)  # noqa: S311  # spreads load
    return max(wait, min(retry_after_seconds or 0.0, RETRY_AFTER_MAX_SECONDS))


async def run_analysis(
    database: Database, claim: Claim, *, analyser: Analyser, settings: AnalysisConfig
) -> None:
    """Analyse what was claimed and save the result or the failure.

    Raises `Unavailable` when the database is away; the lease is then still held.
    """
    transcript = await queries.fetch_transcript(database, claim.conversation_id)
    if not transcript.messages:
        await queries.clear_schedule(database, claim, settings=settings)
        return
    started = time.perf_counter()
    outcome = await ask(analyser, transcript.messages)
    seconds = time.perf_counter() - started
    metrics.ANALYSIS_SECONDS.labels(analyser.name).observe(seconds)
    run = Run(
        claim=claim,
        provider=analyser.name,
        model=analyser.model,
        through_seq=transcript.through_seq,
        latency_milliseconds=round(seconds * 1000),
    )
    if isinstance(outcome, AnalyserFailed):
        await _save_failure(database, run, outcome, settings=settings)
    else:
        await _save_result(database, run, outcome, settings=settings)


async def ask(
    analyser: Analyser, transcript: Sequence[TranscriptMessage]
) -> AnalysisResult | AnalyserFailed:
    """The analyser's result within bounds, or why there is none; never raises."""
    try:
        async with asyncio.timeout(analyser.timeout_seconds):
            return bounded(await analyser.analyse(transcript))
    except AnalyserFailed as failure:
        return failure
    except TimeoutError:
        return AnalyserFailed(f"no answer within {analyser.timeout_seconds:g} s")
    except Exception as error:  # noqa: BLE001  # a defect is a failure that people must see
        logger.exception("The analyser {} has a defect", analyser.name)
        return AnalyserFailed(f"a defect of the analyser ({type(error).__name__})")


async def _save_result(
    database: Database, run: Run, result: AnalysisResult, *, settings: AnalysisConfig
) -> None:
    saved = await queries.update_analysed(database, run, result, settings=settings)
    if saved is None:
        _log_lost(run)
        return
    metrics.ANALYSES.labels(run.provider, AnalysisStatus.SUCCEEDED).inc()
    database.publish(
        AnalysisCompleted(
            conversation_id=run.claim.conversation_id,
            summary=result.summary,
            priority=result.priority,
            tags=result.tags,
            updated_at=saved.updated_at,
            version=saved.version,
        )
    )


async def _save_failure(
    database: Database, run: Run, failure: AnalyserFailed, *, settings: AnalysisConfig
) -> None:
    noted = await queries.update_failed(
        database,
        run,
        failure.message,
        retry_seconds=backoff_seconds(
            run.claim.attempt, retry_after_seconds=failure.retry_after_seconds
        ),
        max_attempts=settings.max_attempts,
    )
    if not noted:
        _log_lost(run)
        return
    metrics.ANALYSES.labels(run.provider, AnalysisStatus.FAILED).inc()
    logger.bind(
        conversation_id=str(run.claim.conversation_id),
        provider=run.provider,
        attempt=run.claim.attempt,
        error=failure.message,
    ).warning("An analysis failed")


def _log_lost(run: Run) -> None:
    logger.bind(conversation_id=str(run.claim.conversation_id)).info(
        "An analysis was not saved: its lease was lost or its conversation deleted"
    )
