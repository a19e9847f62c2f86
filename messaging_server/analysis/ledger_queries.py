"""The SQL of the ledger: what each run took and cost, and what may be spent.

A line is written before the first call, so that a run that was cut off stays visible. At every
moment the costs of a day's lines add up to that day's row of `analysis_spending`, which is what
budgets are compared with: its lock makes them exact however many runs start at once.
"""

from datetime import date
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.analysis.queries import INTERRUPTED
from messaging_server.analysis.spending import MICRO_DOLLARS, Budget, Meter
from messaging_server.database import Database
from messaging_server.models import AnalysisStatus, Model

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
