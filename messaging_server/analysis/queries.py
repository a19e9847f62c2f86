"""The SQL of the schedule, which lives in columns of `conversations`.

`analysis_due_at` says when; a lease (`lease_until`, `lease_token`) says that somebody is at it.
A claim leaves `analysis_due_at` set, so that work whose owner died is found again, and whatever
a run writes is fenced by the token of its lease.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.config import AnalysisConfig
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted
from messaging_server.models import (
    TRANSCRIPT_MESSAGES,
    AnalysisResult,
    AnalysisStatus,
    Caller,
    ContentType,
    Priority,
    SenderType,
    Timestamp,
    TranscriptMessage,
    timestamp,
)

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

INTERRUPTED = "the run was cut off or lost its lease"


def remaining_schedule(*, quiet: str, max_wait: str) -> str:
    """What is left to do after a run through message $3: nothing, or what came meanwhile.

    The arguments are the parameters with `analysis.quiet_seconds` and `max_wait_seconds`.
    """
    return f"""
        analysis_first_at = case when c.last_public_seq > $3 then {FIRST_UNANALYSED_AT} end,
        analysis_due_at = case when c.last_public_seq > $3 then least(
            c.last_message_at + make_interval(secs => {quiet}),
            {FIRST_UNANALYSED_AT} + make_interval(secs => {max_wait})
        ) end,
        analysis_trigger = case when c.last_public_seq > $3 then 'message' end,
        analysis_attempts = 0,
        analysis_error = null,
        analysis_failed_at = null,
        lease_until = null,
        lease_token = null
    """


GIVES_UP = "c.analysis_attempts + 1 >= $6 and c.last_public_seq <= $3"


class Claim(Struct, frozen=True, kw_only=True):
    """The right to analyse one conversation until the lease ends; `attempt` counts from 1."""

    conversation_id: UUID
    token: UUID
    trigger: str
    attempt: int


class Transcript(Struct, frozen=True, kw_only=True):
    """The newest public messages, oldest first; `through_seq` is the newest one's, 0 for none.

    `analyzed_seq` and `fingerprint` are those of the analysis that the conversation has.
    """

    messages: Sequence[TranscriptMessage]
    through_seq: int
    analyzed_seq: int = 0
    fingerprint: bytes | None = None


class Run(Struct, frozen=True, kw_only=True):
    """A run that came to an end; `entry_id` is its line in the ledger."""

    claim: Claim
    entry_id: UUID
    provider: str
    through_seq: int
    latency_milliseconds: int


class Saved(Struct, frozen=True, kw_only=True):
    """The conversation's state after an analysis was saved."""

    version: int
    updated_at: Timestamp


async def claim_due(database: Database, *, limit: int, lease_seconds: float) -> list[Claim]:
    """Lease up to `limit` due conversations that nobody else holds or is writing to.

    One that changed since the statement began is left for the next time.
    """
    rows = await database.fetch(
        """
        with due as materialized (
            select id, ctid as place
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
        where c.id = due.id and c.ctid = due.place
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
        f"""
        with released as (
            update conversations
            set lease_until = null, lease_token = null
            where id = any($1::uuid[]) and lease_token = any($2::uuid[])
            returning id
        )
        update analyses a
        set status = '{AnalysisStatus.INTERRUPTED}', error = '{INTERRUPTED}'
        from released
        where a.conversation_id = released.id and a.status = '{AnalysisStatus.RUNNING}'
        """,
        [claim.conversation_id for claim in claims],
        [claim.token for claim in claims],
    )


async def fetch_transcript(
    database: Database, conversation_id: UUID, *, private_notes: bool = False
) -> Transcript:
    """With `private_notes` those among the newest messages too, unless there is nothing else."""
    rows = await _fetch_newest(database, conversation_id, private_notes=private_notes)
    if private_notes and all(row["private"] for row in rows):
        rows = await _fetch_newest(database, conversation_id, private_notes=False)
    analysed = await database.fetch_row(
        """
        select c.analyzed_seq, a.fingerprint
        from conversations c
        left join lateral (
            select fingerprint
            from analyses
            where conversation_id = c.id and status = 'SUCCEEDED' and trigger <> 'suggestion'
            order by created_at desc, id desc
            limit 1
        ) a on true
        where c.id = $1
        """,
        conversation_id,
    )
    return Transcript(
        messages=[to_transcript_message(row) for row in reversed(rows)],
        through_seq=next((row["seq"] for row in rows if not row["private"]), 0),
        analyzed_seq=analysed["analyzed_seq"] if analysed else 0,
        fingerprint=analysed["fingerprint"] if analysed else None,
    )


async def _fetch_newest(
    database: Database, conversation_id: UUID, *, private_notes: bool
) -> Sequence[Mapping[str, Any]]:
    return await database.fetch(
        """
        select seq, sender_type, content_type, content_text, private
        from messages
        where conversation_id = $1 and (not private or $3)
        order by seq desc
        limit $2
        """,
        conversation_id,
        TRANSCRIPT_MESSAGES,
        private_notes,
    )


def to_transcript_message(row: Mapping[str, Any]) -> TranscriptMessage:
    """What is not text stands as a placeholder, `[image]`, before its caption if it has one."""
    parts = [row["content_text"]] if row["content_text"] else []
    if row["content_type"] != ContentType.TEXT:
        parts.insert(0, f"[{row['content_type'].lower()}]")
    if row.get("private"):
        parts.insert(0, "[private note]")
    return TranscriptMessage(sender=SenderType(row["sender_type"]), text=" ".join(parts))


async def update_analysed(
    database: Database,
    run: Run,
    result: AnalysisResult,
    *,
    settings: AnalysisConfig,
    stands_in: bool = False,
) -> Saved | None:
    """Save the result and end its ledger entry; None, and nothing saved, if the lease was lost.

    What a person decided stays; messages that came during the run keep the conversation due.
    One who only stands in leaves the lease and the schedule to the analyser that failed.
    """
    schedule = remaining_schedule(quiet="$13", max_wait="$14")
    row = await database.fetch_row(
        f"""
        with saved as (
            update conversations c
            set ai_summary = $4,
                ai_priority = $5,
                ai_tags = $6,
                ai_provider = $7,
                ai_updated_at = now(),
                priority = case when c.priority_source = 'AI' then $5 else c.priority end,
                tags = case when c.tags_source = 'AI' then $6 else c.tags end,
                analyzed_seq = $3,
                {"" if stands_in else f"{schedule},"}
                updated_at = now(),
                version = c.version + 1
            where c.id = $1 and c.lease_token = $2
            returning c.id, c.version, c.updated_at
        ),
        entry as (
            update analyses a
            set status = '{AnalysisStatus.SUCCEEDED}',
                summary = $4,
                priority = $5,
                tags = $6,
                priority_reason = $9,
                language = $10,
                suggested_reply = $11,
                latency_milliseconds = $12,
                error = null
            from saved
            where a.id = $8
        )
        select version, updated_at from saved
        """,
        run.claim.conversation_id,
        run.claim.token,
        run.through_seq,
        result.summary,
        result.priority,
        list(result.tags),
        run.provider,
        run.entry_id,
        result.priority_reason,
        result.language,
        result.suggested_reply,
        run.latency_milliseconds,
        *(() if stands_in else (settings.quiet_seconds, settings.max_wait_seconds)),
    )
    return Saved(version=row["version"], updated_at=timestamp(row["updated_at"])) if row else None


async def update_unchanged(
    database: Database, claim: Claim, through_seq: int, *, settings: AnalysisConfig
) -> AnalysisCompleted | None:
    """Say of the analysis that there is that it holds for message `through_seq` too.

    What it said; None if the lease was lost.
    """
    row = await database.fetch_row(
        f"""
        update conversations c
        set analyzed_seq = $3,
            updated_at = now(),
            version = c.version + 1,
            {remaining_schedule(quiet="$4", max_wait="$5")}
        where c.id = $1 and c.lease_token = $2
        returning c.ai_summary, c.ai_priority, c.ai_tags, c.ai_updated_at, c.version
        """,
        claim.conversation_id,
        claim.token,
        through_seq,
        settings.quiet_seconds,
        settings.max_wait_seconds,
    )
    if row is None:
        return None
    return AnalysisCompleted(
        conversation_id=claim.conversation_id,
        summary=row["ai_summary"],
        priority=Priority(row["ai_priority"]),
        tags=tuple(row["ai_tags"]),
        updated_at=timestamp(row["ai_updated_at"]),
        version=row["version"],
    )


async def update_postponed(
    database: Database, claim: Claim, error: str, *, wait_seconds: float
) -> None:
    """Give a conversation back that could not be analysed now; it does not count as an attempt."""
    await database.execute(
        """
        update conversations
        set analysis_due_at = now() + make_interval(secs => $4),
            analysis_error = $3,
            lease_until = null,
            lease_token = null
        where id = $1 and lease_token = $2
        """,
        claim.conversation_id,
        claim.token,
        error,
        wait_seconds,
    )


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
            update analyses a
            set status = '{AnalysisStatus.FAILED}', error = $4, latency_milliseconds = $8
            from failed
            where a.id = $7
        )
        select id from failed
        """,
        run.claim.conversation_id,
        run.claim.token,
        run.through_seq,
        error,
        retry_seconds,
        max_attempts,
        run.entry_id,
        run.latency_milliseconds,
    )
    return found is not None


async def clear_schedule(database: Database, claim: Claim, *, settings: AnalysisConfig) -> None:
    """End a run that found no message to analyse."""
    await database.execute(
        f"""
        update conversations c
        set {remaining_schedule(quiet="$4", max_wait="$5")}
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
