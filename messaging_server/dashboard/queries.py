"""All SQL of the dashboard: sums of the counters, never a count of conversations."""

from collections.abc import Mapping
from typing import Any

from messaging_server.config import AiConfig
from messaging_server.database import Database
from messaging_server.models import Caller, Model

RECENT_REPLIES = 200


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

    `medianFirstReplySeconds` is that of the 200 most recently active conversations with a reply.
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


async def fetch_metrics(database: Database, caller: Caller, ai: AiConfig) -> Metrics:
    row = await database.fetch_row(
        f"""
        with counts as (
            select status, priority, waiting, assigned_agent_id, count
            from conversation_counts
            where $1 or assigned_agent_id = $2
        ),
        replies as (
            select first_reply_seconds
            from conversations
            where first_reply_seconds is not null and ($1 or assigned_agent_id = $2)
            order by last_activity_at desc
            limit {RECENT_REPLIES}
        )
        select
            coalesce(sum(count), 0) as total,
            coalesce(sum(count) filter (where waiting and status <> 'RESOLVED'), 0) as unreplied,
            coalesce(sum(count) filter (where priority = 'HIGH'), 0) as high,
            coalesce(sum(count) filter (where priority = 'MEDIUM'), 0) as medium,
            coalesce(sum(count) filter (where priority = 'LOW'), 0) as low,
            coalesce(sum(count) filter (where priority is null), 0) as unanalyzed,
            coalesce(sum(count) filter (where status = 'OPEN'), 0) as open,
            coalesce(sum(count) filter (where status = 'SNOOZED'), 0) as snoozed,
            coalesce(sum(count) filter (where status = 'RESOLVED'), 0) as resolved,
            coalesce(sum(count) filter (where assigned_agent_id is null), 0) as unassigned,
            (
                select percentile_cont(0.5) within group (order by first_reply_seconds)
                from replies
            ) as median_first_reply_seconds,
            exists (
                select from analysis_spending where day = current_date and refused
            ) as budget_refused
        from counts
        """,
        caller.is_admin,
        caller.id,
    )
    assert row is not None
    return to_metrics(row, ai)


def to_metrics(row: Mapping[str, Any], ai: AiConfig) -> Metrics:
    median = row["median_first_reply_seconds"]
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
        median_first_reply_seconds=round(median, 3) if median is not None else None,
        ai=AiState(
            provider=ai.provider,
            model=ai.model,
            fallback=ai.fallback,
            budget_spent=ai.has_budget and row["budget_refused"],
        ),
    )
