"""All SQL of the dashboard: sums of the counters, never a count of conversations."""

from collections.abc import Mapping
from typing import Any

from messaging_server.database import Database
from messaging_server.models import Caller

RECENT_REPLIES = 200


async def fetch_counts(database: Database, caller: Caller) -> Mapping[str, Any]:
    """How many conversations there are of each kind, and whether the AI's budget is spent."""
    row: Mapping[str, Any] | None = await database.fetch_row(
        """
        with counts as (
            select status, priority, waiting, assigned_agent_id, count
            from conversation_counts
            where $1 or assigned_agent_id = $2
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
            exists (
                select from analysis_spending where day = current_date and refused
            ) as budget_refused
        from counts
        """,
        caller.is_admin,
        caller.id,
    )
    assert row is not None
    return row


async def fetch_median_first_reply(database: Database, caller: Caller) -> float | None:
    """In seconds, of the conversations that were active last; None when nobody has replied yet."""
    median = await database.fetch_value(
        f"""
        select percentile_cont(0.5) within group (order by first_reply_seconds)
        from (
            select first_reply_seconds
            from conversations
            where first_reply_seconds is not null and ($1 or assigned_agent_id = $2)
            order by last_activity_at desc
            limit {RECENT_REPLIES}
        ) replies
        """,
        caller.is_admin,
        caller.id,
    )
    return round(median, 3) if median is not None else None
