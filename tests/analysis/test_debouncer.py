"""The heartbeat: many messages and one analysis, leases, crashes, shutdown, a database away."""

import asyncio
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from messaging_server.analysis import queries
from messaging_server.analysis.debouncer import Debouncer
from messaging_server.analysis.openai_analyser import OpenAIAnalyser
from messaging_server.analysis.service import Analysis
from messaging_server.config import AnalysisConfig, Config, ServerConfig
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted, Bus
from tests.analysis.conftest import (
    QUICK,
    Debouncers,
    Inbox,
    ai_config,
    gated_database,
    only,
)
from tests.analysis.scripted_llm import Reply, ScriptedLLM, answers, later
from tests.analysis.waiting import DEADLINE_SECONDS, until

pytestmark = pytest.mark.anyio

PATIENT = AnalysisConfig(quiet_seconds=1.5, max_wait_seconds=30)
"""A busy machine does not make a burst look like two."""


async def test_a_hundred_messages_are_one_analysis(
    database: Database,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
    completed: list[AnalysisCompleted],
) -> None:
    inbox = Inbox(database, PATIENT)
    await debouncers.start(database, analyser, PATIENT)
    conversation_id = await inbox.conversation()
    for number in range(100):
        await inbox.say(conversation_id, f"message {number}")
    await until(lambda: completed)
    assert (await inbox.row(conversation_id))["analyzed_seq"] == 100
    assert len(llm.requests) == 1
    assert len(llm.transcripts()[0]) == 30


async def test_never_later_than_the_longest_wait(
    database: Database,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
    completed: list[AnalysisCompleted],
) -> None:
    """A conversation that is never quiet is analysed all the same, while the talk goes on."""
    settings = AnalysisConfig(quiet_seconds=4, max_wait_seconds=5)
    inbox = Inbox(database, settings)
    await debouncers.start(database, analyser, settings)
    conversation_id = await inbox.conversation()
    started = asyncio.get_running_loop().time()
    while not completed:
        await inbox.say(conversation_id, "and another thing")
        await asyncio.sleep(0.06)
        waited = asyncio.get_running_loop().time() - started
        assert waited < settings.max_wait_seconds + 10
    assert waited > settings.max_wait_seconds


async def test_messages_during_a_run_are_analysed_after_it(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
) -> None:
    llm.script = [later(answers(), 0.5)]
    await debouncers.start(database, analyser)
    conversation_id = await inbox.due_conversation("first")
    await until(lambda: llm.requests)
    await inbox.say(conversation_id, "second")

    async def analysed() -> bool:
        return bool((await inbox.row(conversation_id))["analyzed_seq"] == 2)

    await until(analysed)
    assert [len(transcript) for transcript in llm.transcripts()] == [1, 2]
    assert (await inbox.row(conversation_id))["analysis_due_at"] is None


async def test_a_backlog_does_not_wait_for_ticks(
    database: Database,
    inbox: Inbox,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
    completed: list[AnalysisCompleted],
) -> None:
    for _ in range(40):
        await inbox.due_conversation()
    started = asyncio.get_running_loop().time()
    await debouncers.start(database, analyser)
    await until(lambda: len(completed) == 40)
    assert asyncio.get_running_loop().time() - started < 8  # 40 in fours would be 10 ticks


async def test_no_more_at_once_than_configured(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
    completed: list[AnalysisCompleted],
) -> None:
    llm.default = later(answers(), 0.5)
    for number in range(12):
        await inbox.due_conversation(f"conversation {number}")
    await debouncers.start(database, analyser)
    most = 0
    while len(completed) < 12:
        most = max(most, len(llm.active))
        await asyncio.sleep(0.01)
    assert most == QUICK.concurrency


async def test_two_processes_never_run_one_conversation_at_once(
    dsn: str,
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
) -> None:
    """Two debouncers on pools of their own, new messages during the runs, no overlap."""
    other = Database(dsn, pool_size=5, bus=Bus())
    await other.start()
    llm.decide = lambda _request: later(answers(), 0.05)
    eager = AnalysisConfig(quiet_seconds=0.01, max_wait_seconds=0.1, concurrency=4)
    talk = Inbox(database, eager)
    conversations = [await inbox.conversation() for _ in range(6)]
    for conversation_id in conversations:
        await talk.say(conversation_id, f"{conversation_id} {uuid4()}")
    first = await debouncers.start(database, analyser, eager)
    second = await debouncers.start(other, analyser, eager)
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(llm.requests) < 5 * len(conversations):
            for conversation_id in conversations:
                await talk.say(conversation_id, f"{conversation_id} {uuid4()}")
            first.wake()
            second.wake()
    await until(lambda: all_analysed(database))
    await second.stop(timeout_seconds=1)
    await other.stop()
    assert llm.overlaps == 0


async def all_analysed(database: Database) -> bool:
    return not await database.fetch_value(
        "select count(*) from conversations where analyzed_seq < last_public_seq"
    )


async def test_a_crash_loses_nothing(
    database: Database,
    inbox: Inbox,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
    completed: list[AnalysisCompleted],
) -> None:
    conversation_id = await inbox.due_conversation()
    await queries.claim_due(database, limit=1, lease_seconds=1.0)  # and the process dies
    await debouncers.start(database, analyser)
    await until(lambda: completed)
    assert (await inbox.row(conversation_id))["analyzed_seq"] == 1


async def test_shutdown_lets_a_run_finish(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    completed: list[AnalysisCompleted],
) -> None:
    llm.default = later(answers(), 0.3)
    await inbox.due_conversation()
    debouncer = Debouncer(database, only(analyser), QUICK)
    await debouncer.start()
    await until(lambda: llm.requests)
    await debouncer.stop(timeout_seconds=5)
    assert len(completed) == 1


async def test_shutdown_gives_back_what_does_not_finish(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    llm.default = Reply(hang=True)
    conversation_id = await inbox.due_conversation()
    debouncer = Debouncer(database, only(analyser), QUICK)
    await debouncer.start()
    await until(lambda: llm.requests)
    assert (await inbox.row(conversation_id))["leased_for"] > 0
    await debouncer.stop(timeout_seconds=0.1)
    row = await inbox.row(conversation_id)
    assert row["lease_token"] is row["lease_until"] is None
    assert row["due_in"] <= 0
    assert row["analysis_attempts"] == 0


async def test_shutdown_gives_back_in_time_where_requests_took_it_all(
    database: Database, bus: Bus, inbox: Inbox, llm: ScriptedLLM
) -> None:
    llm.default = Reply(hang=True)
    conversation_id = await inbox.due_conversation()
    config = Config(ai=ai_config(llm), analysis=QUICK, server=ServerConfig(shutdown_seconds=60))
    analysis = Analysis(config, database, bus)
    await analysis.start()
    await until(lambda: llm.requests)
    async with asyncio.timeout(30):
        await analysis.stop(by=asyncio.get_running_loop().time() + 0.5)
    assert (await inbox.row(conversation_id))["lease_token"] is None


async def test_the_database_goes_away_and_comes_back(
    dsn: str,
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    debouncers: Debouncers,
    tmp_path: Path,
) -> None:
    """A run under way can't save and ticks fail; afterwards everything is done at once."""
    llm.script = [later(answers(), 0.3)]
    async with gated_database(dsn, Bus(), tmp_path) as (gated, gate):
        await debouncers.start(gated, analyser)
        conversations = [await inbox.due_conversation()]
        await until(lambda: llm.requests)
        gate.close()
        conversations.append(await inbox.due_conversation())
        await until(lambda: gate.refused >= 3 and not llm.active)
        assert await unanalysed(inbox, conversations) == conversations
        gate.open()
        returned = asyncio.get_running_loop().time()

        async def done() -> bool:
            return not await unanalysed(inbox, conversations)

        await until(done)
        assert asyncio.get_running_loop().time() - returned < 15


async def unanalysed(inbox: Inbox, conversations: list[UUID]) -> list[UUID]:
    rows = [await inbox.row(conversation_id) for conversation_id in conversations]
    return [row["id"] for row in rows if row["analyzed_seq"] == 0]
