"""The ledger: what each run took and cost, what is not run at all, and who stands in."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from messaging_server.analysis import queries
from messaging_server.analysis.analysers import Analysers, make_analysers
from messaging_server.analysis.breaker import FAILURES
from messaging_server.analysis.openai_analyser import OpenAIAnalyser
from messaging_server.analysis.runs import BUDGET_SPENT, PROVIDER_DOWN, Runs
from messaging_server.analysis.spending import Meter, Tokens, cost_micro_dollars, run_micro_dollars
from messaging_server.config import AiConfig, PriceConfig, TagConfig
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted
from messaging_server.models import SenderType
from tests.analysis.conftest import QUICK, Debouncers, Inbox, ai_config, only
from tests.analysis.scripted_llm import Reply, ScriptedLLM, answers, later, refuses, says
from tests.analysis.waiting import until

pytestmark = pytest.mark.anyio

PRICE = PriceConfig(model="scripted-1", input=2.0, output=8.0, cached=0.5)


def paid(llm: ScriptedLLM, **changes: Any) -> Analysers:
    return make_analysers(ai_config(llm, prices=(PRICE,), **changes))


async def run_due(database: Database, analysers: Analysers) -> None:
    (claim,) = await queries.claim_due(database, limit=5, lease_seconds=30)
    await Runs(database, analysers, QUICK).run(claim)


async def run_again(
    database: Database, inbox: Inbox, conversation_id: UUID, analysers: Analysers
) -> None:
    await inbox.set(conversation_id, "analysis_due_at = now(), analysis_trigger = 'manual'")
    await run_due(database, analysers)


async def spent_today(database: Database) -> int:
    micro_dollars: int = await database.fetch_value(
        "select coalesce(sum(micro_dollars), 0)::bigint from analysis_spending"
    )
    return micro_dollars


async def assert_balanced(database: Database) -> None:
    """The costs of the lines and the sums that the budgets look at are the same amount."""
    assert await spent_today(database) == await database.fetch_value(
        "select coalesce(sum(cost_micro_dollars), 0)::bigint from analyses"
    )


def test_costs_are_whole_micro_dollars() -> None:
    price = PriceConfig(model="m", input=0.15, output=0.6, cached=0.075)
    assert cost_micro_dollars(Tokens(input=1_000, output=100), price) == 210
    assert cost_micro_dollars(Tokens(input=1_000, output=100, cached=600), price) == 165
    assert cost_micro_dollars(Tokens(input=30), price) == 5  # 4.5
    assert cost_micro_dollars(Tokens(input=1_000_000), None) == 0
    without = PriceConfig(model="m", input=2.0, output=0.0)
    assert cost_micro_dollars(Tokens(input=10, cached=10), without) == 20


def test_a_call_that_nobody_counted_costs_what_was_reserved() -> None:
    meter = Meter()
    meter.begin()
    meter.used(Tokens(input=10, output=10))
    assert run_micro_dollars(meter, PRICE, reserved=5_000) == 100
    meter.begin()
    assert run_micro_dollars(meter, PRICE, reserved=5_000) == 5_000
    meter.refused()
    assert run_micro_dollars(meter, PRICE, reserved=5_000) == 100


async def test_a_line_says_what_a_run_took(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.script = [
        says("nonsense", usage=(1_000, 10, 0)),
        answers(suggestedReply="Hello!", usage=(1_100, 50, 600)),
    ]
    analysers = paid(llm)
    await run_due(database, analysers)
    await analysers.aclose()
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["status"], entry["calls"], entry["prompt_version"]) == ("SUCCEEDED", 2, "2")
    assert (entry["tokens_in"], entry["tokens_out"], entry["tokens_cached"]) == (2_100, 60, 600)
    assert entry["cost_micro_dollars"] == 1_500 * 2 + 300 + 60 * 8
    assert entry["suggested_reply"] == "Hello!"
    await assert_balanced(database)


async def test_local_costs_nothing_and_is_in_the_ledger(database: Database, inbox: Inbox) -> None:
    conversation_id = await inbox.due_conversation()
    analysers = make_analysers(AiConfig())
    await run_due(database, analysers)
    await analysers.aclose()
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["provider"], entry["calls"], entry["cost_micro_dollars"]) == ("local", 1, 0)
    assert (entry["tokens_in"], entry["prompt_version"]) == (0, None)


async def test_a_failure_is_paid_for_too(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = says("nonsense", usage=(100, 10, 0))
    analysers = paid(llm, fallback="none")
    await run_due(database, analysers)
    await analysers.aclose()
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["status"], entry["error"]) == ("FAILED", "not JSON")
    assert entry["cost_micro_dollars"] == 2 * (200 + 80)
    await assert_balanced(database)


@pytest.mark.parametrize(
    ("reply", "free"),
    [
        (refuses(500), True),
        (refuses(429, retry_after="1"), True),
        (refuses(401), True),
        (Reply(hang=True), False),
        (Reply(body=b"<html>"), False),
        (Reply(body=answers().body, cut=True), False),
    ],
)
async def test_what_may_have_been_billed_counts(
    database: Database, inbox: Inbox, llm: ScriptedLLM, reply: Reply, free: bool
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = reply
    analysers = paid(llm, fallback="none", timeout_seconds=0.5)
    await run_due(database, analysers)
    await analysers.aclose()
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["cost_micro_dollars"] == 0) is free
    await assert_balanced(database)


# --- What is not run --------------------------------------------------------------------------


async def test_unchanged_input_is_not_analysed_twice(
    database: Database, inbox: Inbox, llm: ScriptedLLM, completed: list[AnalysisCompleted]
) -> None:
    conversation_id = await inbox.due_conversation()
    analysers = paid(llm)
    await run_due(database, analysers)
    await run_again(database, inbox, conversation_id, analysers)
    row = await inbox.row(conversation_id)
    assert (row["analyzed_seq"], row["analysis_due_at"], row["lease_token"]) == (1, None, None)
    assert len(llm.requests) == len(await inbox.analyses(conversation_id)) == 1
    first, second = completed
    assert (second.summary, second.updated_at) == (first.summary, first.updated_at)
    assert second.version > first.version
    await inbox.say(conversation_id, "a note", sender=SenderType.AGENT, private=True)
    await run_again(database, inbox, conversation_id, analysers)
    assert len(llm.requests) == 1
    await inbox.say(conversation_id, "and another thing")
    await run_again(database, inbox, conversation_id, analysers)
    assert len(llm.requests) == 2
    await analysers.aclose()


@pytest.mark.parametrize(
    "change",
    [
        {"model": "scripted-2"},
        {"tags": (TagConfig(name="vip"),)},
        {"language": "de"},
        {"temperature": 1},
    ],
)
async def test_another_question_is_asked(
    database: Database, inbox: Inbox, llm: ScriptedLLM, change: dict[str, Any]
) -> None:
    conversation_id = await inbox.due_conversation()
    before, after = paid(llm), paid(llm, **change)
    await run_due(database, before)
    await run_again(database, inbox, conversation_id, after)
    assert len(llm.requests) == 2
    await before.aclose()
    await after.aclose()


async def test_a_failure_does_not_count_as_analysed(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.script = [refuses(500)]
    analysers = paid(llm)
    await run_due(database, analysers)
    await run_again(database, inbox, conversation_id, analysers)
    await analysers.aclose()
    assert (await inbox.row(conversation_id))["ai_provider"] == "openai"


# --- Who stands in ----------------------------------------------------------------------------


async def test_local_stands_in_at_once_and_the_failure_stays_one(
    database: Database, inbox: Inbox, llm: ScriptedLLM, completed: list[AnalysisCompleted]
) -> None:
    conversation_id = await inbox.due_conversation("You charged me twice, I want a refund")
    llm.default = refuses(500)
    analysers = paid(llm)
    await run_due(database, analysers)
    row = await inbox.row(conversation_id)
    assert (row["ai_provider"], row["analyzed_seq"]) == ("local", 1)
    assert (row["analysis_attempts"], row["analysis_error"]) == (1, "the endpoint answered 500")
    assert 3.5 < row["due_in"] <= 5
    assert row["lease_token"] is None
    entries = await inbox.analyses(conversation_id)
    assert [(entry["provider"], entry["status"]) for entry in entries] == [
        ("openai", "FAILED"),
        ("local", "SUCCEEDED"),
    ]
    assert "charged me twice" in completed[0].summary
    await run_again(database, inbox, conversation_id, analysers)
    assert len(await inbox.analyses(conversation_id)) == 3  # local has nothing new to say
    llm.default = answers("Charged twice.")
    await run_again(database, inbox, conversation_id, analysers)
    row = await inbox.row(conversation_id)
    assert (row["ai_provider"], row["ai_summary"]) == ("openai", "Charged twice.")
    assert (row["analysis_attempts"], row["analysis_due_at"]) == (0, None)
    await analysers.aclose()


async def test_a_provider_that_is_down_is_not_asked(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    llm.default = refuses(503)
    analysers = paid(llm)
    for _ in range(FAILURES):
        await inbox.due_conversation()
        await run_due(database, analysers)
    conversation_id = await inbox.due_conversation()
    await run_due(database, analysers)
    assert len(llm.requests) == FAILURES
    row = await inbox.row(conversation_id)
    assert (row["ai_provider"], row["analysis_error"]) == ("local", PROVIDER_DOWN)
    assert (row["analysis_attempts"], row["lease_token"]) == (0, None)
    assert 0 < row["due_in"] <= 18
    (entry,) = await inbox.analyses(conversation_id)
    assert entry["provider"] == "local"
    await analysers.aclose()


async def test_over_budget_local_goes_on(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    conversation_id = await inbox.due_conversation()
    analysers = paid(llm, daily_budget_dollars=0.001)
    await run_due(database, analysers)
    await analysers.aclose()
    row = await inbox.row(conversation_id)
    assert (row["ai_provider"], row["analysis_due_at"], row["analysis_error"]) == (
        "local",
        None,
        None,
    )
    assert not llm.requests
    assert await spent_today(database) == 0
    assert await database.fetch_value("select refused from analysis_spending")


async def test_over_budget_without_a_stand_in_it_waits(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    conversation_id = await inbox.due_conversation()
    analysers = paid(llm, monthly_budget_dollars=0.001, fallback="none")
    await run_due(database, analysers)
    await analysers.aclose()
    row = await inbox.row(conversation_id)
    assert (row["ai_summary"], row["analysis_error"]) == (None, BUDGET_SPENT)
    assert row["due_in"] > 500
    assert not await inbox.analyses(conversation_id)


# --- What interrupts --------------------------------------------------------------------------


async def test_erasing_a_lead_keeps_what_was_spent(
    database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    await inbox.due_conversation()
    llm.default = answers("Secret.", priorityReason="x", usage=(100, 10, 0))
    analysers = paid(llm)
    await run_due(database, analysers)
    await analysers.aclose()
    await database.execute("delete from leads")
    entry = await database.fetch_row("select * from analyses")
    assert entry is not None
    assert (entry["conversation_id"], entry["cost_micro_dollars"]) == (None, 280)
    assert entry["summary"] is entry["priority"] is entry["fingerprint"] is None
    await assert_balanced(database)


async def test_erased_during_the_run(database: Database, inbox: Inbox, llm: ScriptedLLM) -> None:
    await inbox.due_conversation()
    llm.default = later(answers(usage=(100, 10, 0)), 0.3)
    analysers = paid(llm)
    running = asyncio.create_task(run_due(database, analysers))
    await until(lambda: llm.requests)
    await database.execute("delete from leads")
    await running
    await analysers.aclose()
    entry = await database.fetch_row("select * from analyses")
    assert entry is not None
    assert (entry["status"], entry["cost_micro_dollars"]) == ("INTERRUPTED", 280)
    await assert_balanced(database)


async def test_a_shutdown_closes_the_line(
    database: Database, inbox: Inbox, llm: ScriptedLLM, debouncers: Debouncers
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = Reply(hang=True)
    analysers = paid(llm)
    debouncer = await debouncers.start(database, analysers)
    await until(lambda: llm.requests)
    await debouncer.stop(timeout_seconds=0.1)
    await analysers.aclose()
    (entry,) = await inbox.analyses(conversation_id)
    assert entry["status"] == "INTERRUPTED"
    assert entry["cost_micro_dollars"] > 0
    await assert_balanced(database)


KILLED = """
import asyncio, sys
from messaging_server.analysis import queries
from messaging_server.analysis.analysers import make_analysers
from messaging_server.analysis.runs import Runs
from messaging_server.config import AiConfig, PriceConfig
from messaging_server.database import Database
from messaging_server.events import Bus
from tests.analysis.conftest import QUICK

async def main(dsn, url):
    database = Database(dsn, pool_size=2, bus=Bus())
    await database.start()
    price = PriceConfig(model="scripted-1", input=2.0, output=8.0)
    analysers = make_analysers(AiConfig(
        provider="openai", model="scripted-1", base_url=url, prices=(price,)))
    (claim,) = await queries.claim_due(database, limit=1, lease_seconds=1)
    await Runs(database, analysers, QUICK).run(claim)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_the_ledger_is_complete_after_kill_9(
    dsn: str, database: Database, inbox: Inbox, llm: ScriptedLLM
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.script = [Reply(hang=True)]
    root = Path(__file__).parent.parent.parent
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, dsn, llm.base_url, cwd=root
    )
    await until(lambda: llm.requests)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["status"], entry["provider"], entry["attempt"]) == ("RUNNING", "openai", 1)
    assert entry["cost_micro_dollars"] > 0
    await assert_balanced(database)
    llm.default = answers(usage=(100, 10, 0))
    analysers = paid(llm)
    (claim,) = await until(lambda: queries.claim_due(database, limit=1, lease_seconds=30))
    await Runs(database, analysers, QUICK).run(claim)
    await analysers.aclose()
    cut, whole = await inbox.analyses(conversation_id)
    assert (cut["status"], whole["status"]) == ("INTERRUPTED", "SUCCEEDED")
    assert cut["cost_micro_dollars"] == entry["cost_micro_dollars"]
    await assert_balanced(database)


# --- People decide ----------------------------------------------------------------------------


async def test_locks_of_people_hold_under_concurrent_analysis(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
) -> None:
    """People decide before, during and after runs that all want something else."""
    conversations = [await inbox.conversation() for _ in range(12)]
    llm.default = later(answers(priority="HIGH", tags=["bug"]), 0.02)
    await debouncers.start(database, only(analyser))

    async def talk(conversation_id: UUID) -> None:
        for number in range(8):
            await inbox.say(conversation_id, f"message {number}")
            await inbox.set(conversation_id, "analysis_due_at = now()")
            await asyncio.sleep(0.03)

    async def decide(conversation_id: UUID, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        await inbox.set(
            conversation_id,
            "priority = 'LOW', priority_source = 'HUMAN', tags = '{vip}', tags_source = 'HUMAN'",
        )

    async def decided(conversation_id: UUID) -> bool:
        row = await inbox.row(conversation_id)
        assert row["tags_source"] == "AI" or (row["priority"], row["tags"]) == ("LOW", ["vip"])
        return bool(row["analyzed_seq"] == 8 and row["tags_source"] == "HUMAN")

    await asyncio.gather(
        *(talk(conversation_id) for conversation_id in conversations),
        *(decide(each, 0.02 * number) for number, each in enumerate(conversations)),
    )
    for conversation_id in conversations:
        await until(lambda each=conversation_id: decided(each))  # type: ignore[misc]  # bound now
        row = await inbox.row(conversation_id)
        assert (row["priority"], row["tags"]) == ("LOW", ["vip"])
        assert (row["ai_priority"], row["ai_tags"]) == ("HIGH", ["bug"])
