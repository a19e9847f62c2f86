"""SQL that reads the ledger's lines as people see them, with what they think of each analysis."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.analysis.queries import VISIBLE, to_transcript_message
from messaging_server.database import Database
from messaging_server.models import (
    TRANSCRIPT_MESSAGES,
    Analysis,
    AnalysisStatus,
    Caller,
    Feedback,
    Priority,
    TranscriptMessage,
    Verdict,
    timestamp,
)

LABELLED_ANALYSES = 10_000

COLUMNS = """
    a.id, a.status, a.trigger, a.provider, a.model, a.prompt_version, a.through_seq, a.attempt,
    a.summary, a.priority, a.priority_reason, a.tags, a.language, a.suggested_reply, a.error,
    a.calls, a.tokens_in, a.tokens_out, a.tokens_cached, a.cost_micro_dollars,
    a.latency_milliseconds, a.feedback_verdict, a.feedback_priority, a.feedback_tags,
    a.feedback_by, a.feedback_at, a.created_at
"""


class AnalysisCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


class Correction(Struct, frozen=True, kw_only=True):
    """What a person thinks of an analysis."""

    verdict: Verdict
    priority: Priority | None
    tags: Sequence[str] | None


class LabelledExample(Struct, frozen=True, kw_only=True):
    """What an analysis read, oldest first, and what a person says is right; None: not said."""

    analysis_id: UUID
    messages: tuple[TranscriptMessage, ...]
    priority: Priority | None
    tags: tuple[str, ...] | None


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
        select c.id as conversation_id, {COLUMNS}
        from conversations c
        left join lateral (
            select *
            from analyses
            where conversation_id = c.id
              and trigger <> 'suggestion'
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


async def fetch_analysis(
    database: Database, caller: Caller, conversation_id: UUID, analysis_id: UUID
) -> Analysis | None:
    row = await database.fetch_row(
        f"""
        select a.conversation_id, {COLUMNS}
        from analyses a
        join conversations c on c.id = a.conversation_id
        where c.id = $1 and {VISIBLE} and a.id = $4 and a.trigger <> 'suggestion'
        """,
        conversation_id,
        caller.is_admin,
        caller.id,
        analysis_id,
    )
    return _to_analysis(row) if row else None


async def update_feedback(
    database: Database, caller: Caller, analysis: Analysis, correction: Correction
) -> Analysis | None:
    """The analysis with the feedback, which takes the place of an earlier one."""
    row = await database.fetch_row(
        f"""
        update analyses a
        set feedback_verdict = $2,
            feedback_priority = $3,
            feedback_tags = $4,
            feedback_by = $5,
            feedback_at = now()
        where a.id = $1 and a.status = '{AnalysisStatus.SUCCEEDED}'
        returning a.conversation_id, {COLUMNS}
        """,
        analysis.id,
        correction.verdict,
        correction.priority,
        None if correction.tags is None else list(correction.tags),
        caller.id,
    )
    return _to_analysis(row) if row else None


async def list_labelled(database: Database) -> list[LabelledExample]:
    """The analyses that people confirmed or corrected, oldest first; at most 10,000."""
    rows = await database.fetch(
        """
        select a.id,
            case a.feedback_verdict when 'correct' then a.priority else a.feedback_priority end
                as priority,
            case a.feedback_verdict when 'correct' then a.tags else a.feedback_tags end as tags,
            m.seq, m.sender_type, m.content_type, m.content_text
        from (
            select *
            from analyses
            where feedback_at is not null
                and (
                    feedback_verdict = 'correct'
                    or feedback_priority is not null
                    or feedback_tags is not null
                )
            order by feedback_at desc
            limit $1
        ) a
        cross join lateral (
            select seq, sender_type, content_type, content_text
            from messages
            where conversation_id = a.conversation_id and seq <= a.through_seq and not private
            order by seq desc
            limit $2
        ) m
        order by a.created_at, a.id, m.seq
        """,
        LABELLED_ANALYSES,
        TRANSCRIPT_MESSAGES,
    )
    by_analysis: dict[UUID, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_analysis.setdefault(row["id"], []).append(row)
    return [_to_labelled(each) for each in by_analysis.values()]


def _to_labelled(rows: Sequence[Mapping[str, Any]]) -> LabelledExample:
    first = rows[0]
    return LabelledExample(
        analysis_id=first["id"],
        messages=tuple(to_transcript_message(row) for row in rows),
        priority=Priority(first["priority"]) if first["priority"] else None,
        tags=None if first["tags"] is None else tuple(first["tags"]),
    )


def _to_analysis(row: Mapping[str, Any]) -> Analysis:
    return Analysis(
        id=row["id"],
        conversation_id=row["conversation_id"],
        status=AnalysisStatus(row["status"]),
        trigger=row["trigger"],
        provider=row["provider"],
        model=row["model"],
        prompt_version=row["prompt_version"],
        through_seq=row["through_seq"],
        attempt=row["attempt"],
        summary=row["summary"],
        priority=Priority(row["priority"]) if row["priority"] else None,
        priority_reason=row["priority_reason"],
        tags=row["tags"],
        language=row["language"],
        suggested_reply=row["suggested_reply"],
        error=row["error"],
        calls=row["calls"],
        tokens_in=row["tokens_in"],
        tokens_out=row["tokens_out"],
        tokens_cached=row["tokens_cached"],
        cost_micro_dollars=row["cost_micro_dollars"],
        latency_milliseconds=row["latency_milliseconds"],
        feedback=_to_feedback(row),
        created_at=timestamp(row["created_at"]),
    )


def _to_feedback(row: Mapping[str, Any]) -> Feedback | None:
    if row["feedback_at"] is None:
        return None
    return Feedback(
        verdict=Verdict(row["feedback_verdict"]),
        priority=Priority(row["feedback_priority"]) if row["feedback_priority"] else None,
        tags=row["feedback_tags"],
        user_id=row["feedback_by"],
        created_at=timestamp(row["feedback_at"]),
    )
