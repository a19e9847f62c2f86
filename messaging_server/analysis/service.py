"""Analyses: what people may ask for, and the part of the server that makes them."""

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated
from uuid import UUID

from msgspec import Meta, field

from messaging_server.analysis import feedback_queries, ledger_queries, queries, queue_queries
from messaging_server.analysis.analysers import TAG_CHARACTERS, make_analysers
from messaging_server.analysis.debouncer import Debouncer
from messaging_server.analysis.feedback_queries import AnalysisCursor, Correction, LabelledExample
from messaging_server.analysis.ledger_queries import Usage, UsageItem
from messaging_server.analysis.queue_queries import AnalysisQueue
from messaging_server.analysis.spending import MICRO_DOLLARS
from messaging_server.config import AiConfig, Config
from messaging_server.database import Database
from messaging_server.errors import Conflict, NotFound, ValidationFailed
from messaging_server.events import Bus, Event
from messaging_server.models import MAX_TAGS, VISIBLE, Caller, Model, Priority, Timestamp, Verdict
from messaging_server.models import Analysis as AnalysisEntry
from messaging_server.models import Request as RequestBody

GIVING_BACK_SECONDS = 1.0
USAGE_DAYS = 30
USAGE_DAYS_MAX = 366
EARLIEST_DAY = date(2000, 1, 1)
_DAY = re.compile(r"\d{4}-\d\d-\d\d(T|$)")

TagName = Annotated[str, Meta(min_length=1, max_length=TAG_CHARACTERS, pattern=VISIBLE)]


class AnalysisRequested(Event, frozen=True, kw_only=True):
    """Somebody asked for an analysis now."""

    conversation_id: UUID


class AnalysisAccepted(Model, frozen=True, kw_only=True):
    """The analysis will run; its result comes as `conversation:ai:update`."""

    conversation_id: UUID
    due_at: Timestamp


class NewFeedback(RequestBody, frozen=True):
    """`priority` and `tags` are what would have been right, where the verdict is `wrong`."""

    verdict: Verdict
    priority: Priority | None = None
    tags: Annotated[list[TagName], Meta(max_length=MAX_TAGS)] | None = None


class BudgetState(Model, frozen=True, kw_only=True):
    """Of UTC's day and month, with what runs under way may cost; 0: no budget.

    `spent`: the latest run that wanted to begin did not fit.
    """

    daily_dollars: float
    monthly_dollars: float
    spent_today_dollars: float
    spent_this_month_dollars: float
    spent: bool


class AnalysisUsage(Model, frozen=True, kw_only=True):
    """Both days are included; `items` have the newest day first."""

    from_day: date = field(name="from")
    to_day: date = field(name="to")
    total: Usage
    budget: BudgetState
    items: Sequence[UsageItem]


class Analysis:
    """Analyses what is due from `start` to `stop`, unless `analysis.enabled` is false."""

    def __init__(self, config: Config, database: Database, bus: Bus) -> None:
        self._enabled = config.analysis.enabled
        self._shutdown_seconds = config.server.shutdown_seconds
        self.analysers = make_analysers(config.ai)
        self._debouncer = Debouncer(database, self.analysers, config.analysis)
        bus.subscribe(AnalysisRequested, lambda _event: self._debouncer.wake())

    async def start(self) -> None:
        if self._enabled:
            await self._debouncer.start()

    async def stop(self, *, by: float | None = None) -> None:
        """Runs may take `server.shutdown_seconds`, and not until `by`, a time of the loop.

        The leases of those that take longer are given back before; the database must be up.
        """
        seconds = self._shutdown_seconds
        if by is not None:
            left_seconds = by - asyncio.get_running_loop().time()
            seconds = max(0.0, min(seconds, left_seconds - GIVING_BACK_SECONDS))
        await self._debouncer.stop(timeout_seconds=seconds)
        await self.analysers.aclose()


async def request_analysis(
    database: Database, caller: Caller, conversation_id: UUID
) -> AnalysisAccepted:
    due_at = await queries.update_requested(database, caller, conversation_id)
    if due_at is None:
        raise NotFound("No such conversation")
    database.publish(AnalysisRequested(conversation_id=conversation_id))
    return AnalysisAccepted(conversation_id=conversation_id, due_at=due_at)


async def list_analyses(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    *,
    limit: int,
    cursor: AnalysisCursor | None,
) -> tuple[list[AnalysisEntry], AnalysisCursor | None]:
    found = await feedback_queries.list_analyses(
        database, caller, conversation_id, limit=limit, cursor=cursor
    )
    if found is None:
        raise NotFound("No such conversation")
    return found


async def fetch_queue(database: Database) -> AnalysisQueue:
    return AnalysisQueue(
        counts=await queue_queries.count_queue(database),
        items=await queue_queries.list_queue(database),
    )


async def give_feedback(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    analysis_id: UUID,
    feedback: NewFeedback,
) -> AnalysisEntry:
    """The analysis with the feedback, which takes the place of an earlier one."""
    if feedback.verdict is Verdict.CORRECT and (feedback.priority or feedback.tags is not None):
        raise ValidationFailed.of("verdict", 'must be "wrong" where a priority or tags are given')
    analysis = await feedback_queries.fetch_analysis(database, caller, conversation_id, analysis_id)
    if analysis is None:
        raise NotFound("No such analysis")
    tags = None if feedback.tags is None else tuple(dict.fromkeys(feedback.tags))
    correction = Correction(verdict=feedback.verdict, priority=feedback.priority, tags=tags)
    updated = await feedback_queries.update_feedback(database, caller, analysis, correction)
    if updated is None:
        raise Conflict("This analysis has no result")
    return updated


async def labelled_examples(database: Database) -> list[LabelledExample]:
    """What people confirmed or corrected, for `evaluate`: oldest first, at most 10,000."""
    return await feedback_queries.list_labelled(database)


async def fetch_usage(
    database: Database, config: AiConfig, *, first: str | None, last: str | None
) -> AnalysisUsage:
    """By default the last 30 days; a time stands for its day in UTC."""
    to_day = datetime.now(UTC).date() if last is None else _day("to", last)
    from_day = to_day - timedelta(days=USAGE_DAYS - 1) if first is None else _day("from", first)
    if not 0 <= (to_day - from_day).days < USAGE_DAYS_MAX:
        raise ValidationFailed.of("from", f"must be up to {USAGE_DAYS_MAX - 1} days before to")
    items = await ledger_queries.list_usage(database, first=from_day, last=to_day)
    return AnalysisUsage(
        from_day=from_day,
        to_day=to_day,
        total=_total(items),
        budget=await _budget_state(database, config),
        items=items,
    )


def _day(name: str, text: str) -> date:
    try:
        if not _DAY.match(text):  # Python takes weeks, and days without hyphens, too
            raise ValueError(text)
        at = datetime.fromisoformat(text)
        day = (at.astimezone(UTC) if at.tzinfo else at).date()
    except (ValueError, OverflowError):
        day = date.min
    if day < EARLIEST_DAY:
        raise ValidationFailed.of(name, "must be a day like 2026-01-31, or a time")
    return day


def _total(items: Sequence[UsageItem]) -> Usage:
    cost = sum(item.cost_micro_dollars for item in items)
    return Usage(
        analyses=sum(item.analyses for item in items),
        calls=sum(item.calls for item in items),
        tokens_in=sum(item.tokens_in for item in items),
        tokens_out=sum(item.tokens_out for item in items),
        tokens_cached=sum(item.tokens_cached for item in items),
        cost_micro_dollars=cost,
        cost_dollars=cost / MICRO_DOLLARS,
    )


async def _budget_state(database: Database, config: AiConfig) -> BudgetState:
    spending = await ledger_queries.fetch_spending(database)
    return BudgetState(
        daily_dollars=config.daily_budget_dollars,
        monthly_dollars=config.monthly_budget_dollars,
        spent_today_dollars=spending.today / MICRO_DOLLARS,
        spent_this_month_dollars=spending.month / MICRO_DOLLARS,
        spent=config.has_budget and spending.refused,
    )
