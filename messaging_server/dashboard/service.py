"""The dashboard: how much there is to do, over the conversations that the caller may see."""

from messaging_server.config import AiConfig
from messaging_server.dashboard import queries
from messaging_server.database import Database
from messaging_server.models import Caller, Model
from messaging_server.remembered import Remembered


class PriorityBreakdown(Model, frozen=True):
    high: int
    medium: int
    low: int
    unanalyzed: int


class AiState(Model, frozen=True):
    """`budgetSpent`: `fallback` analyses, because the provider's budget is spent."""

    provider: str
    model: str
    fallback: str
    budget_spent: bool


class Metrics(Model, frozen=True):
    """Over the conversations that the caller may see.

    `medianFirstReplySeconds` is that of the 200 most recently active conversations with a reply,
    some seconds ago at most.
    """

    total_conversations: int
    total_unreplied: int
    priority_breakdown: PriorityBreakdown
    open: int
    snoozed: int
    resolved: int
    unassigned: int
    median_first_reply_seconds: float | None
    ai: AiState


class Dashboard:
    """Counts as of now; the median is remembered, for it costs five times as much as they do."""

    MEDIAN_SECONDS = 5.0

    def __init__(self, database: Database, ai: AiConfig) -> None:
        self._database = database
        self._ai = ai
        self._medians: Remembered[Caller, float | None] = Remembered(seconds=self.MEDIAN_SECONDS)

    async def fetch_metrics(self, caller: Caller) -> Metrics:
        row = await queries.fetch_counts(self._database, caller)
        return Metrics(
            total_conversations=row["total"],
            total_unreplied=row["unreplied"],
            priority_breakdown=PriorityBreakdown(
                high=row["high"],
                medium=row["medium"],
                low=row["low"],
                unanalyzed=row["unanalyzed"],
            ),
            open=row["open"],
            snoozed=row["snoozed"],
            resolved=row["resolved"],
            unassigned=row["unassigned"],
            median_first_reply_seconds=await self._medians.find(caller, self._fetch_median),
            ai=AiState(
                provider=self._ai.provider,
                model=self._ai.model,
                fallback=self._ai.fallback,
                budget_spent=self._ai.has_budget and row["budget_refused"],
            ),
        )

    async def _fetch_median(self, caller: Caller) -> float | None:
        return await queries.fetch_median_first_reply(self._database, caller)
