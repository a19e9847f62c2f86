"""The SQL of the ledger: what each run took and cost, what may be spent, what people think of it.

A line is written before the first call, so that a run that was cut off stays visible. At every
moment the costs of a day's lines add up to that day's row of `analysis_spending`, which is what
budgets are compared with: its lock makes them exact however many runs start at once.
"""

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.analysis.queries import INTERRUPTED, VISIBLE, to_transcript_message
from messaging_server.analysis.spending import MICRO_DOLLARS, Budget, Meter
from messaging_server.database import Database
from messaging_server.models import (
    TRANSCRIPT_MESSAGES,
    Analysis,
    AnalysisStatus,
    Caller,
    Feedback,
    Model,
    Priority,
    TranscriptMessage,
    Verdict,
    timestamp,
)

LABELLED_ANALYSES = 10_000

SPENT_EARLIER_THIS_MONTH = """
    coalesce(
        (
            select sum(micro_dollars)
            from analysis_spending
            where day >= date_trunc('month', current_date) and day < current_date
        ),
        0
    )
"""
"""Without today: today's row is read afresh once its lock is held, a subselect is not."""

COLUMNS = """
    a.id, a.status, a.trigger, a.provider, a.model, a.prompt_version, a.through_seq, a.attempt,
    a.summary, a.priority, a.priority_reason, a.tags, a.language, a.suggested_reply, a.error,
    a.calls, a.tokens_in, a.tokens_out, a.tokens_cached, a.cost_micro_dollars,
    a.latency_milliseconds, a.feedback_verdict, a.feedback_priority, a.feedback_tags,
    a.feedback_by, a.feedback_at, a.created_at
"""


class NewEntry(Struct, frozen=True, kw_only=True):
    """A run that is about to begin; `reserved_micro_dollars` is the most that it can cost."""

    conversation_id: UUID
    trigger: str
    provider: str
    model: str
    prompt_version: str | None
    fingerprint: bytes | None
    through_seq: int
    attempt: int
    reserved_micro_dollars: int = 0


class Ending(Struct, frozen=True, kw_only=True):
    """How a suggestion ended; its line has no result."""

    status: AnalysisStatus
    error: str | None
    latency_milliseconds: int


class AnalysisCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


class Usage(Model, frozen=True):
    """`analyses` are runs, `calls` what was sent for them: repairs count too."""

    analyses: int
    calls: int
    tokens_in: int
    tokens_out: int
    tokens_cached: int
    cost_micro_dollars: int
    cost_dollars: float


class UsageItem(Usage, frozen=True):
    """The runs of one day of UTC that have all of this in common."""

    day: date
    provider: str
    model: str
    trigger: str


class Spending(Struct, frozen=True, kw_only=True):
    """In micro-dollars, with what runs under way have reserved; `refused`: the latest run was."""

    today: int
    month: int
    refused: bool


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


async def insert_entry(database: Database, entry: NewEntry, budget: Budget) -> UUID | None:
    """The new line's id; None, and nothing reserved, where it doesn't fit into the budget.

    None too where the conversation is gone.

    Lines of the same conversation that are still open are closed: their runs were cut off, or
    have lost their lease. What they reserved counts as spent, because it may have been.
    """
    reserved = entry.reserved_micro_dollars
    if reserved:
        await _insert_today(database)
    entry_id: UUID | None = await database.fetch_value(
        f"""
        with conversation as materialized (
            select id from conversations where id = $2 for key share
        ),
        interrupted as (
            update analyses
            set status = '{AnalysisStatus.INTERRUPTED}', error = '{INTERRUPTED}'
            where conversation_id = $2
                and status = '{AnalysisStatus.RUNNING}'
                and (trigger = 'suggestion') = ($3 = 'suggestion')
            returning id
        ),
        spending as (
            update analysis_spending s
            set micro_dollars = s.micro_dollars + $10, refused = false
            where $10::bigint > 0
                and (select count(*) from interrupted) >= 0 -- lines first, as where they settle
                and exists (select from conversation)
                and s.day = current_date
                and ($11::bigint = 0 or s.micro_dollars + $10 <= $11)
                and ($12::bigint = 0
                    or s.micro_dollars + $10 + {SPENT_EARLIER_THIS_MONTH} <= $12)
            returning s.day
        )
        insert into analyses (
            id, conversation_id, status, trigger, provider, model, prompt_version, fingerprint,
            through_seq, attempt, cost_micro_dollars
        )
        select $1, c.id, '{AnalysisStatus.RUNNING}', $3, $4, $5, $6, $7, $8, $9, $10
        from conversation c
        where $10 = 0 or exists (select from spending)
        returning id
        """,
        uuid7(),
        entry.conversation_id,
        entry.trigger,
        entry.provider,
        entry.model,
        entry.prompt_version,
        entry.fingerprint,
        entry.through_seq,
        entry.attempt,
        reserved,
        budget.daily,
        budget.monthly,
    )
    return entry_id


async def _insert_today(database: Database) -> None:
    await database.execute(
        "insert into analysis_spending (day) values (current_date) on conflict do nothing"
    )


async def update_refused(database: Database, conversation_id: UUID) -> None:
    """Note, for the dashboard, that a run of this conversation did not fit into the budget."""
    await database.execute(
        """
        update analysis_spending
        set refused = true
        where day = current_date
            and not refused
            and exists (select from conversations where id = $1)
        """,
        conversation_id,
    )


async def settle(database: Database, entry_id: UUID, meter: Meter, *, micro_dollars: int) -> None:
    """Put what a run used in the place of what it reserved, in its line and in its day."""
    await database.execute(
        """
        with before as materialized (
            select id, created_at::date as day, cost_micro_dollars
            from analyses
            where id = $1
            for no key update
        ),
        spending as (
            update analysis_spending s
            set micro_dollars = s.micro_dollars + $6 - before.cost_micro_dollars
            from before
            where s.day = before.day and before.cost_micro_dollars <> $6
        )
        update analyses a
        set calls = $2, tokens_in = $3, tokens_out = $4, tokens_cached = $5,
            cost_micro_dollars = $6
        from before
        where a.id = before.id
        """,
        entry_id,
        meter.calls,
        meter.tokens.input,
        meter.tokens.output,
        meter.tokens.cached,
        micro_dollars,
    )


async def update_ended(database: Database, entry_id: UUID, ending: Ending) -> None:
    await database.execute(
        """
        update analyses
        set status = $2, error = $3, latency_milliseconds = $4
        where id = $1
        """,
        entry_id,
        ending.status,
        ending.error,
        ending.latency_milliseconds,
    )


async def fetch_spending(database: Database) -> Spending:
    row = await database.fetch_row(
        f"""
        select coalesce(sum(micro_dollars), 0)::bigint as today,
            (coalesce(sum(micro_dollars), 0) + {SPENT_EARLIER_THIS_MONTH})::bigint as month,
            coalesce(bool_or(refused), false) as refused
        from analysis_spending
        where day = current_date
        """
    )
    assert row is not None
    return Spending(**row)


async def list_usage(database: Database, *, first: date, last: date) -> list[UsageItem]:
    """Both days included, newest first."""
    rows = await database.fetch(
        """
        select created_at::date as day, provider, model, trigger,
            count(*) as analyses,
            sum(calls) as calls,
            sum(tokens_in) as tokens_in,
            sum(tokens_out) as tokens_out,
            sum(tokens_cached) as tokens_cached,
            sum(cost_micro_dollars)::bigint as cost_micro_dollars
        from analyses
        where created_at >= $1::date and created_at < $2::date + 1
        group by 1, 2, 3, 4
        order by 1 desc, 2, 3, 4
        """,
        first,
        last,
    )
    return [
        UsageItem(**row, cost_dollars=row["cost_micro_dollars"] / MICRO_DOLLARS) for row in rows
    ]


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
