"""Budgets: exact to the micro-dollar, however many runs start at once and whatever they cost."""

import asyncio
import random

import pytest
from msgspec import structs

from messaging_server.analysis import ledger_queries
from messaging_server.analysis.ledger_queries import NewEntry, fetch_spending, insert_entry, settle
from messaging_server.analysis.spending import Budget, Meter, Tokens
from messaging_server.database import Database
from tests.analysis.conftest import QUICK, Debouncers, Inbox
from tests.analysis.scripted_llm import ScriptedLLM, answers, later
from tests.analysis.test_ledger import assert_balanced, paid, spent_today
from tests.analysis.waiting import until

pytestmark = pytest.mark.anyio

RUNS = 50


async def entry_of(inbox: Inbox, reserved: int) -> NewEntry:
    return NewEntry(
        conversation_id=await inbox.conversation(),
        trigger="message",
        provider="openai",
        model="m",
        prompt_version="1",
        fingerprint=None,
        through_seq=1,
        attempt=1,
        reserved_micro_dollars=reserved,
    )


@pytest.mark.parametrize(
    "budget",
    [Budget(daily=10_000), Budget(monthly=10_000), Budget(daily=10_000, monthly=20_000)],
)
async def test_fifty_at_once_reserve_exactly_what_fits(
    database: Database, inbox: Inbox, budget: Budget
) -> None:
    entries = [await entry_of(inbox, 1_000) for _ in range(RUNS)]
    ids = await asyncio.gather(*(insert_entry(database, entry, budget) for entry in entries))
    assert sum(each is not None for each in ids) == 10
    assert await spent_today(database) == 10_000
    await assert_balanced(database)


async def test_thousands_of_dollars(database: Database, inbox: Inbox) -> None:
    """Over 2,147 dollars, micro-dollars need more than 32 bits."""
    budget = Budget(daily=5_000_000_000, monthly=90_000_000_000)
    entries = [await entry_of(inbox, reserved) for reserved in (1_000, 3_000_000_000)]
    ids = [await insert_entry(database, entry, budget) for entry in (*entries, entries[-1])]
    assert [each is not None for each in ids] == [True, True, False]
    assert await spent_today(database) == 3_000_001_000
    await assert_balanced(database)


async def test_earlier_days_of_the_month_count_and_other_months_do_not(
    database: Database, inbox: Inbox
) -> None:
    await database.execute(
        """
        insert into analysis_spending (day, micro_dollars)
        select distinct on (day) day, 7000
        from unnest(array[
            date_trunc('month', current_date)::date,
            date_trunc('month', current_date)::date - 1
        ]) as day
        """
    )
    budget = Budget(monthly=10_000)
    first = await insert_entry(database, await entry_of(inbox, 3_000), budget)
    second = await insert_entry(database, await entry_of(inbox, 1), budget)
    assert (first is None, second is None) == (False, True)
    assert (await fetch_spending(database)).month == 10_000


async def test_settling_gives_back_what_was_not_used(database: Database, inbox: Inbox) -> None:
    """Fifty runs reserve, end at different costs, and others take what became free."""
    budget = Budget(daily=100_000)
    chance = random.Random(3)  # noqa: S311  # made-up costs
    refused = 0

    async def run(entry: NewEntry, cost: int, pause_seconds: float) -> None:
        nonlocal refused
        entry_id = await insert_entry(database, entry, budget)
        if entry_id is None:
            refused += 1
            return
        await asyncio.sleep(pause_seconds)
        meter = Meter()
        meter.begin()
        meter.used(Tokens(input=cost))
        await settle(database, entry_id, meter, micro_dollars=cost)

    entries = [await entry_of(inbox, 5_000) for _ in range(4 * RUNS)]
    for start in range(0, len(entries), RUNS):
        batch = entries[start : start + RUNS]
        await asyncio.gather(
            *(run(each, chance.randrange(5_001), chance.random() / 20) for each in batch)
        )
        assert await spent_today(database) <= budget.daily
        await assert_balanced(database)
    assert 0 < refused < 4 * RUNS


async def test_settling_twice_is_settling_once(database: Database, inbox: Inbox) -> None:
    entry_id = await insert_entry(database, await entry_of(inbox, 5_000), Budget())
    assert entry_id is not None
    for _ in range(3):
        await settle(database, entry_id, Meter(), micro_dollars=123)
    assert await spent_today(database) == 123


async def test_fifty_analyses_at_once(
    database: Database, inbox: Inbox, llm: ScriptedLLM, debouncers: Debouncers
) -> None:
    """Through the whole of it: every dollar of the endpoint's is in the ledger, none is over."""
    llm.decide = lambda _request: later(answers(usage=(700, 37, 0)), 0.05)
    probe = paid(llm)
    reserved = probe.primary.most_tokens([])
    await probe.aclose()
    most = (reserved.input * 2 + reserved.output * 8 + 2_000) / 1_000_000
    analysers = paid(llm, daily_budget_dollars=round(8 * most, 6))
    conversations = [await inbox.due_conversation(f"number {number}") for number in range(RUNS)]
    settings = structs.replace(QUICK, concurrency=RUNS)
    await debouncers.start(database, analysers, settings)
    await until(lambda: all_analysed(database, len(conversations)))
    await analysers.aclose()
    calls = len(llm.requests)
    cost = 700 * 2 + 37 * 8
    assert 0 < calls < RUNS
    assert await spent_today(database) == calls * cost <= analysers.budget.daily
    await assert_balanced(database)
    providers = await database.fetch("select ai_provider, count(*) from conversations group by 1")
    assert dict(map(tuple, providers)) == {"openai": calls, "local": RUNS - calls}


async def all_analysed(database: Database, count: int) -> bool:
    done = await database.fetch_value(
        "select count(*) from conversations where ai_summary is not null and lease_token is null"
    )
    return bool(done == count)


async def test_the_latest_run_says_whether_the_budget_is_spent(
    database: Database, inbox: Inbox
) -> None:
    assert not (await fetch_spending(database)).refused
    budget = Budget(daily=1_000)
    large, small = await entry_of(inbox, 1_001), await entry_of(inbox, 10)
    assert await insert_entry(database, large, budget) is None
    await ledger_queries.update_refused(database, large.conversation_id)
    assert (await fetch_spending(database)).refused
    assert await insert_entry(database, small, budget)
    assert not (await fetch_spending(database)).refused
