"""All SQL of the analysis: the schedule, which lives in columns of `conversations`, and the ledger.

`analysis_due_at` says when; a lease (`lease_until`, `lease_token`) says that somebody is at it.
A claim leaves `analysis_due_at` set, so that work whose owner died is found again, and whatever
a run writes is fenced by the token of its lease.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.config import AnalysisConfig
from messaging_server.database import Database
from messaging_server.models import (
    TRANSCRIPT_MESSAGES,
    Analysis,
    AnalysisResult,
    AnalysisStatus,
    Caller,
    ContentType,
    Model,
    Priority,
    SenderType,
    Timestamp,
    TranscriptMessage,
    timestamp,
)

QUEUE_ITEMS = 100

VISIBLE = "($2 or c.assigned_agent_id = $3)"
"""$2: the caller is ADMIN; $3: the caller's id."""

FIRST_UNANALYSED_AT = """
    coalesce(
        (
            select m.created_at
            from messages m
            where m.conversation_id = c.id and m.seq > $3 and not m.private
            order by m.seq
            limit 1
        ),
        c.last_message_at
    )
"""
"""Null in the subselect: the message was committed after this statement's snapshot, while the
update waited for its row; then the row, which is read afresh, knows the time."""

REMAINING_SCHEDULE = f"""
    analysis_first_at = case when c.last_public_seq > $3 then {FIRST_UNANALYSED_AT} end,
    analysis_due_at = case when c.last_public_seq > $3 then least(
        c.last_message_at + make_interval(secs => $4),
        {FIRST_UNANALYSED_AT} + make_interval(secs => $5)
    ) end,
    analysis_trigger = case when c.last_public_seq > $3 then 'message' end,
    analysis_attempts = 0,
    analysis_error = null,
    analysis_failed_at = null,
    lease_until = null,
    lease_token = null
"""
"""What is left to do after a run through message $3: nothing, or the messages that came meanwhile.
$4: quiet seconds; $5: most seconds to wait."""

GIVES_UP = "c.analysis_attempts + 1 >= $6 and c.last_public_seq <= $3"


class Claim(Struct, frozen=True, kw_only=True):
    """The right to analyse one conversation until the lease ends; `attempt` counts from 1."""

    conversation_id: UUID
    token: UUID
    trigger: str
    attempt: int


class Transcript(Struct, frozen=True, kw_only=True):
    """The newest public messages, oldest first; `through_seq` is the newest one's, 0 for none."""

    messages: Sequence[TranscriptMessage]
    through_seq: int


class Run(Struct, frozen=True, kw_only=True):
    """A run that came to an end, as the ledger describes it."""

    claim: Claim
    provider: str
    model: str
    through_seq: int
    latency_milliseconds: int


class Saved(Struct, frozen=True, kw_only=True):
    """The conversation's state after an analysis was saved."""

    version: int
    updated_at: Timestamp


class AnalysisCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


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


async def claim_due(database: Database, *, limit: int, lease_seconds: float) -> list[Claim]:
    """Lease up to `limit` due conversations that nobody else holds or is writing to."""
    rows = await database.fetch(
        """
        with due as materialized (
            select id
            from conversations
            where analysis_due_at <= now() and (lease_until is null or lease_until < now())
            order by analysis_due_at
            limit $1
            for no key update skip locked
        )
        update conversations c
        set lease_until = now() + make_interval(secs => $2),
            lease_token = gen_random_uuid()
        from due
        where c.id = due.id
        returning c.id, c.lease_token, c.analysis_trigger, c.analysis_attempts
        """,
        limit,
        lease_seconds,
    )
    return [
        Claim(
            conversation_id=row["id"],
            token=row["lease_token"],
            trigger=row["analysis_trigger"] or "message",
            attempt=row["analysis_attempts"] + 1,
        )
        for row in rows
    ]


async def release_leases(database: Database, claims: Sequence[Claim]) -> None:
    """Give back what was claimed and not saved; it is due as before."""
    await database.execute(
        """
        update conversations
        set lease_until = null, lease_token = null
        where id = any($1::uuid[]) and lease_token = any($2::uuid[])
        """,
        [claim.conversation_id for claim in claims],
        [claim.token for claim in claims],
    )


async def fetch_transcript(database: Database, conversation_id: UUID) -> Transcript:
    rows = await database.fetch(
        """
        select seq, sender_type, content_type, content_text
        from messages
        where conversation_id = $1 and not private
        order by seq desc
        limit $2
        """,
        conversation_id,
        TRANSCRIPT_MESSAGES,
    )
    return Transcript(
        messages=[_to_transcript_message(row) for row in reversed(rows)],
        through_seq=rows[0]["seq"] if rows else 0,
    )


def _to_transcript_message(row: Mapping[str, Any]) -> TranscriptMessage:
    """What is not text stands as a placeholder, `[image]`, before its caption if it has one."""
    parts = [row["content_text"]] if row["content_text"] else []
    if row["content_type"] != ContentType.TEXT:
        parts.insert(0, f"[{row['content_type'].lower()}]")
    return TranscriptMessage(sender=SenderType(row["sender_type"]), text=" ".join(parts))


async def update_analysed(
    database: Database, run: Run, result: AnalysisResult, *, settings: AnalysisConfig
) -> Saved | None:
    """Save the result and its ledger entry; None, and nothing saved, if the lease was lost.

    What a person decided stays; messages that came during the run keep the conversation due.
    """
    row = await database.fetch_row(
        f"""
        with saved as (
            update conversations c
            set ai_summary = $6,
                ai_priority = $7,
                ai_tags = $8,
                ai_provider = $9,
                ai_updated_at = now(),
                priority = case when c.priority_source = 'AI' then $7 else c.priority end,
                tags = case when c.tags_source = 'AI' then $8 else c.tags end,
                analyzed_seq = $3,
                updated_at = now(),
                version = c.version + 1,
                {REMAINING_SCHEDULE}
            where c.id = $1 and c.lease_token = $2
            returning c.id, c.version, c.updated_at
        ),
        entry as (
            insert into analyses (
                id, conversation_id, status, trigger, provider, model, through_seq, attempt,
                summary, priority, priority_reason, tags, language, latency_milliseconds
            )
            select $10, id, '{AnalysisStatus.SUCCEEDED}', $11, $9, $12, $3, $13,
                $6, $7, $14, $8, $15, $16
            from saved
        )
        select version, updated_at from saved
        """,
        run.claim.conversation_id,
        run.claim.token,
        run.through_seq,
        settings.quiet_seconds,
        settings.max_wait_seconds,
        result.summary,
        result.priority,
        list(result.tags),
        run.provider,
        uuid7(),
        run.claim.trigger,
        run.model,
        run.claim.attempt,
        result.priority_reason,
        result.language,
        run.latency_milliseconds,
    )
    return Saved(version=row["version"], updated_at=timestamp(row["updated_at"])) if row else None


async def update_failed(
    database: Database, run: Run, error: str, *, retry_seconds: float, max_attempts: int
) -> bool:
    """Note the failure and when to try again; after `max_attempts` stand still, visibly.

    Messages that came during the last attempt earn one more. False: the lease was lost.
    """
    found = await database.fetch_value(
        f"""
        with failed as (
            update conversations c
            set analysis_attempts = c.analysis_attempts + 1,
                analysis_error = $4,
                analysis_due_at = case when {GIVES_UP} then null
                    else now() + make_interval(secs => $5) end,
                analysis_first_at = case when {GIVES_UP} then null else c.analysis_first_at end,
                analysis_failed_at = case when {GIVES_UP} then now() end,
                lease_until = null,
                lease_token = null
            where c.id = $1 and c.lease_token = $2
            returning c.id
        ),
        entry as (
            insert into analyses (
                id, conversation_id, status, trigger, provider, model, through_seq, attempt,
                error, latency_milliseconds
            )
            select $7, id, '{AnalysisStatus.FAILED}', $8, $9, $10, $3, $11, $4, $12
            from failed
        )
        select id from failed
        """,
        run.claim.conversation_id,
        run.claim.token,
        run.through_seq,
        error,
        retry_seconds,
        max_attempts,
        uuid7(),
        run.claim.trigger,
        run.provider,
        run.model,
        run.claim.attempt,
        run.latency_milliseconds,
    )
    return found is not None


async def clear_schedule(database: Database, claim: Claim, *, settings: AnalysisConfig) -> None:
    """End a run that found no message to analyse."""
    await database.execute(
        f"""
        update conversations c
        set {REMAINING_SCHEDULE}
        where c.id = $1 and c.lease_token = $2
        """,
        claim.conversation_id,
        claim.token,
        0,
        settings.quiet_seconds,
        settings.max_wait_seconds,
    )


async def update_requested(
    database: Database, caller: Caller, conversation_id: UUID
) -> Timestamp | None:
    """Make a conversation due now and forget its failures; None when the caller can't see it.

    It counts as having waited a day, more than any `max_wait_seconds`, so that a message which
    arrives before the run starts doesn't put it off.
    """
    due_at: datetime | None = await database.fetch_value(
        f"""
        update conversations c
        set analysis_due_at = now(),
            analysis_first_at = least(c.analysis_first_at, now() - interval '1 day'),
            analysis_trigger = 'manual',
            analysis_attempts = 0,
            analysis_error = null,
            analysis_failed_at = null
        where c.id = $1 and {VISIBLE}
        returning c.analysis_due_at
        """,
        conversation_id,
        caller.is_admin,
        caller.id,
    )
    return timestamp(due_at) if due_at else None


async def list_analyses(
    database: Database,
    caller: Caller,
    conversation_id: UUID,
    *,
    limit: int,
    cursor: AnalysisCursor | None,
) -> tuple[list[Analysis], AnalysisCursor | None] | None:
    """The runs over a conversation, newest first; None when the caller can't see it."""
    rows = await database.fetch(
        f"""
        select a.id, c.id as conversation_id, a.status, a.trigger, a.provider, a.model,
            a.through_seq, a.attempt, a.summary, a.priority, a.priority_reason, a.tags, a.language,
            a.error, a.latency_milliseconds, a.created_at
        from conversations c
        left join lateral (
            select *
            from analyses
            where conversation_id = c.id
              and ($5::timestamptz is null or (created_at, id) < ($5, $6::uuid))
            order by created_at desc, id desc
            limit $4
        ) a on true
        where c.id = $1 and {VISIBLE}
        order by a.created_at desc, a.id desc
        """,
        conversation_id,
        caller.is_admin,
        caller.id,
        limit + 1,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
    )
    if not rows:
        return None
    found = [row for row in rows if row["id"] is not None]
    last = found[limit - 1] if len(found) > limit else None
    following = AnalysisCursor(last["created_at"], last["id"]) if last else None
    return [_to_analysis(row) for row in found[:limit]], following


def _to_analysis(row: Mapping[str, Any]) -> Analysis:
    return Analysis(
        id=row["id"],
        conversation_id=row["conversation_id"],
        status=AnalysisStatus(row["status"]),
        trigger=row["trigger"],
        provider=row["provider"],
        model=row["model"],
        through_seq=row["through_seq"],
        attempt=row["attempt"],
        summary=row["summary"],
        priority=Priority(row["priority"]) if row["priority"] else None,
        priority_reason=row["priority_reason"],
        tags=row["tags"],
        language=row["language"],
        error=row["error"],
        latency_milliseconds=row["latency_milliseconds"],
        created_at=timestamp(row["created_at"]),
    )


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
