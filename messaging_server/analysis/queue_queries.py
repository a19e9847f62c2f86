"""SQL about the queue of analyses, as ADMINs see it: what is due, runs, or failed and why."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from messaging_server.database import Database
from messaging_server.models import Model, Timestamp, timestamp

QUEUE_ITEMS = 100


class QueueState(StrEnum):
    """`WAITING`: due later. `DUE`: waits for a free place. `FAILED`: given up until a message."""

    WAITING = "WAITING"
    DUE = "DUE"
    RUNNING = "RUNNING"
    FAILED = "FAILED"


class QueueCounts(Model, frozen=True, kw_only=True):
    waiting: int
    due: int
    running: int
    failed: int


class QueueItem(Model, frozen=True, kw_only=True):
    """`error` is the newest attempt's; `attempts` counts those that failed in a row."""

    conversation_id: UUID
    state: QueueState
    trigger: str | None
    due_at: Timestamp | None
    lease_until: Timestamp | None
    attempts: int
    error: str | None
    failed_at: Timestamp | None


class AnalysisQueue(Model, frozen=True, kw_only=True):
    """The failed ones first, then what runs, is due and waits, soonest first; at most 100."""

    counts: QueueCounts
    items: Sequence[QueueItem]


async def count_queue(database: Database) -> QueueCounts:
    row = await database.fetch_row(
        """
        select
            (select count(*) from conversations where analysis_failed_at is not null) as failed,
            count(*) filter (where leased) as running,
            count(*) filter (where not leased and due) as due,
            count(*) filter (where not leased and not due) as waiting
        from (
            select analysis_due_at <= now() as due, coalesce(lease_until > now(), false) as leased
            from conversations
            where analysis_due_at is not null
        ) q
        """
    )
    assert row is not None
    return QueueCounts(**row)


async def list_queue(database: Database) -> list[QueueItem]:
    rows = await database.fetch(
        """
        select id, state, analysis_trigger, analysis_due_at, lease_until, analysis_attempts,
            analysis_error, analysis_failed_at
        from (
            (
                select c.*, 'FAILED' as state, 1 as place
                from conversations c
                where analysis_failed_at is not null
                order by analysis_failed_at desc
                limit $1
            )
            union all
            (
                select c.*, 'RUNNING', 2
                from conversations c
                where analysis_due_at is not null and lease_until > now()
                order by analysis_due_at
                limit $1
            )
            union all
            (
                select c.*, case when analysis_due_at <= now() then 'DUE' else 'WAITING' end, 3
                from conversations c
                where analysis_due_at is not null
                  and (lease_until is null or lease_until <= now())
                order by analysis_due_at
                limit $1
            )
        ) q
        order by place, case when place = 1 then null else analysis_due_at end,
            analysis_failed_at desc
        limit $1
        """,
        QUEUE_ITEMS,
    )
    return [_to_queue_item(row) for row in rows]


def _to_queue_item(row: Mapping[str, Any]) -> QueueItem:
    return QueueItem(
        conversation_id=row["id"],
        state=QueueState(row["state"]),
        trigger=row["analysis_trigger"],
        due_at=_optional(row["analysis_due_at"]),
        lease_until=_optional(row["lease_until"]),
        attempts=row["analysis_attempts"],
        error=row["analysis_error"],
        failed_at=_optional(row["analysis_failed_at"]),
    )


def _optional(at: datetime | None) -> Timestamp | None:
    return timestamp(at) if at else None
