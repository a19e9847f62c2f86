"""One run: what it reads, saves and refuses to save; what a failure costs."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging_server.analysis import queries
from messaging_server.analysis.ledger_queries import NewEntry, insert_entry
from messaging_server.analysis.openai_analyser import OpenAIAnalyser
from messaging_server.analysis.queries import Claim, Run
from messaging_server.analysis.queue_queries import QueueState
from messaging_server.analysis.runs import Runs, backoff_seconds
from messaging_server.analysis.service import fetch_queue
from messaging_server.analysis.spending import Budget, Meter
from messaging_server.config import AiConfig, AnalysisConfig
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted, Bus
from messaging_server.models import (
    AnalysisResult,
    ContentType,
    Priority,
    SenderType,
    TranscriptMessage,
)
from tests.analysis.conftest import QUICK, Inbox, ai_config, only
from tests.analysis.scripted_llm import Reply, ScriptedLLM, answers, later, refuses, says
from tests.analysis.waiting import until

pytestmark = pytest.mark.anyio

RESULT = AnalysisResult(
    summary="s", priority=Priority.LOW, priority_reason=None, tags=(), language=None
)


async def claim_one(database: Database, *, lease_seconds: float = 30.0) -> Claim:
    (claim,) = await queries.claim_due(database, limit=5, lease_seconds=lease_seconds)
    return claim


async def run_one(
    database: Database, analyser: OpenAIAnalyser, settings: AnalysisConfig = QUICK
) -> None:
    await run(database, await claim_one(database), analyser, settings)


async def run(
    database: Database, claim: Claim, analyser: OpenAIAnalyser, settings: AnalysisConfig = QUICK
) -> None:
    await Runs(database, only(analyser), settings).run(claim)


async def test_result_is_saved_in_one_go(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    completed: list[AnalysisCompleted],
) -> None:
    conversation_id = await inbox.due_conversation("I was charged twice")
    llm.default = answers(
        "Charged twice.", "HIGH", tags=["billing"], priorityReason="Money.", language="en"
    )
    await run_one(database, analyser)
    row = await inbox.row(conversation_id)
    assert row["ai_summary"] == "Charged twice."
    assert (row["priority"], row["ai_priority"]) == ("HIGH", "HIGH")
    assert (row["tags"], row["ai_tags"]) == (["billing"], ["billing"])
    assert (row["ai_provider"], row["analyzed_seq"]) == ("openai", 1)
    assert row["analysis_due_at"] is row["analysis_first_at"] is row["lease_token"] is None
    assert row["version"] == 3
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["status"], entry["trigger"], entry["attempt"]) == ("SUCCEEDED", "message", 1)
    assert (entry["provider"], entry["model"]) == ("openai", "scripted-1")
    assert (entry["through_seq"], entry["priority_reason"], entry["language"]) == (
        1,
        "Money.",
        "en",
    )
    (event,) = completed
    assert (event.conversation_id, event.version) == (conversation_id, row["version"])


async def test_reads_the_newest_public_messages(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.conversation()
    for number in range(1, 34):
        await inbox.say(conversation_id, f"message {number}")
    await inbox.say(conversation_id, "internal", sender=SenderType.AGENT, private=True)
    await inbox.say(conversation_id, None, content_type=ContentType.IMAGE)
    await inbox.say(conversation_id, "my ticket", content_type=ContentType.FILE)
    await inbox.set(conversation_id, "analysis_due_at = now()")
    await run_one(database, analyser)
    texts = [entry["text"] for entry in llm.transcripts()[0]]
    assert texts == [
        *(f"message {number}" for number in range(6, 34)),
        "[image]",
        "[file] my ticket",
    ]
    assert (await inbox.row(conversation_id))["analyzed_seq"] == 36


async def test_private_notes_are_read_where_it_is_configured(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    with_notes = msgspec.structs.replace(QUICK, private_notes=True)
    conversation_id = await inbox.due_conversation("hello")
    await inbox.say(conversation_id, "internal", sender=SenderType.AGENT, private=True)
    await run_one(database, analyser, with_notes)
    texts = [entry["text"] for entry in llm.transcripts()[0]]
    assert texts == ["hello", "[private note] internal"]
    assert (await inbox.row(conversation_id))["analyzed_seq"] == 1


async def test_many_private_notes_do_not_hide_the_conversation(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    with_notes = msgspec.structs.replace(QUICK, private_notes=True)
    conversation_id = await inbox.due_conversation("hello")
    for _ in range(31):
        await inbox.say(conversation_id, "internal", sender=SenderType.AGENT, private=True)
    await run_one(database, analyser, with_notes)
    assert [entry["text"] for entry in llm.transcripts()[0]] == ["hello"]


async def test_what_a_person_set_stays(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    await inbox.set(
        conversation_id,
        "priority = 'LOW', priority_source = 'HUMAN', tags = '{mine}', tags_source = 'HUMAN'",
    )
    llm.default = answers(priority="HIGH", tags=["bug"])
    await run_one(database, analyser)
    row = await inbox.row(conversation_id)
    assert (row["priority"], row["tags"]) == ("LOW", ["mine"])
    assert (row["ai_priority"], row["ai_tags"]) == ("HIGH", ["bug"])


async def test_a_person_decides_during_the_run(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = later(answers(priority="HIGH"), 0.2)
    running = asyncio.create_task(run_one(database, analyser))
    await until(lambda: llm.requests)
    await inbox.set(conversation_id, "priority = 'LOW', priority_source = 'HUMAN'")
    await running
    assert (await inbox.row(conversation_id))["priority"] == "LOW"


async def test_messages_during_a_run_keep_it_due(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = later(answers(), 0.2)
    running = asyncio.create_task(run_one(database, analyser))
    await until(lambda: llm.requests)
    await inbox.say(conversation_id, "note", sender=SenderType.AGENT, private=True)
    await inbox.say(conversation_id, "second")
    await running
    row = await inbox.row(conversation_id)
    newest = await database.fetch_value("select max(created_at) from messages")
    assert row["analyzed_seq"] == 1
    assert row["analysis_first_at"] == newest
    assert (row["analysis_due_at"] - newest).total_seconds() == QUICK.quiet_seconds
    assert row["lease_token"] is None


async def test_a_private_note_during_a_run_does_not(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = later(answers(), 0.2)
    running = asyncio.create_task(run_one(database, analyser))
    await until(lambda: llm.requests)
    await inbox.say(conversation_id, "note", sender=SenderType.AGENT, private=True)
    await running
    assert (await inbox.row(conversation_id))["analysis_due_at"] is None


@settings(max_examples=40, deadline=None)
@given(
    ages=st.lists(st.floats(0, 100), min_size=1, max_size=8),
    private=st.lists(st.booleans(), min_size=8, max_size=8),
    through_seq=st.integers(0, 8),
)
async def test_schedule_after_a_run(
    dsn: str, ages: list[float], private: list[bool], through_seq: int
) -> None:
    """Whatever was said when: `quiet` after the newest, at most `max_wait` after the first."""
    database = Database(dsn, pool_size=2, bus=Bus())
    await database.start()
    try:
        inbox = Inbox(database, QUICK)
        conversation_id = await inbox.history(ages, private)
        await inbox.set(conversation_id, "lease_token = gen_random_uuid()")
        await save(database, conversation_id, through_seq=through_seq)
        row = await inbox.row(conversation_id)
        left = await inbox.public_times(conversation_id, after_seq=through_seq)
    finally:
        await database.stop()
    if not left:
        assert row["analysis_due_at"] is row["analysis_first_at"] is None
        return
    assert row["analysis_first_at"] == left[0]
    assert row["analysis_due_at"] == min(
        left[-1] + timedelta(seconds=QUICK.quiet_seconds),
        left[0] + timedelta(seconds=QUICK.max_wait_seconds),
    )


async def save(database: Database, conversation_id: UUID, *, through_seq: int) -> None:
    token = await database.fetch_value(
        "select lease_token from conversations where id = $1", conversation_id
    )
    claim = Claim(conversation_id=conversation_id, token=token, trigger="message", attempt=1)
    entry_id = await insert_entry(database, an_entry(conversation_id, through_seq), Budget())
    assert entry_id is not None
    ended = Run(
        claim=claim,
        entry_id=entry_id,
        provider="p",
        through_seq=through_seq,
        latency_milliseconds=1,
    )
    assert await queries.update_analysed(database, ended, RESULT, settings=QUICK)


def an_entry(conversation_id: UUID, through_seq: int) -> NewEntry:
    return NewEntry(
        conversation_id=conversation_id,
        trigger="message",
        provider="p",
        model="m",
        prompt_version=None,
        fingerprint=None,
        through_seq=through_seq,
        attempt=1,
    )


async def test_a_message_that_commits_while_the_result_waits_for_its_row(
    database: Database, inbox: Inbox
) -> None:
    """The statement's snapshot doesn't hold that message; the row, read afresh, does."""
    conversation_id = await inbox.due_conversation()
    await claim_one(database)
    appended = asyncio.Event()

    async def save_then() -> None:
        await appended.wait()
        await save(database, conversation_id, through_seq=1)

    saving = asyncio.create_task(save_then())
    async with database.transaction():
        await inbox.say(conversation_id, "second")
        appended.set()
        await until(lambda: database.fetch_value("select count(*) from pg_locks where not granted"))
    await saving
    row = await inbox.row(conversation_id)
    (second,) = await inbox.public_times(conversation_id, after_seq=1)
    assert row["analyzed_seq"] == 1
    assert row["analysis_first_at"] == second
    assert row["analysis_due_at"] == second + timedelta(seconds=QUICK.quiet_seconds)


async def test_nothing_to_read_clears_the_schedule(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.conversation()
    await inbox.say(conversation_id, "note", sender=SenderType.AGENT, private=True)
    await inbox.set(conversation_id, "analysis_due_at = now()")
    await run_one(database, analyser)
    row = await inbox.row(conversation_id)
    assert row["analysis_due_at"] is row["lease_token"] is None
    assert not llm.requests
    assert not await inbox.analyses(conversation_id)


async def test_whoever_lost_the_lease_saves_nothing(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    completed: list[AnalysisCompleted],
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.script = [later(answers("first"), 0.5), answers("second")]
    slow = await claim_one(database, lease_seconds=0.05)
    first = asyncio.create_task(run(database, slow, analyser))
    await until(lambda: llm.requests)
    (takeover,) = await until(lambda: queries.claim_due(database, limit=1, lease_seconds=30))
    assert takeover.token != slow.token
    await run(database, takeover, analyser)
    await first
    assert (await inbox.row(conversation_id))["ai_summary"] == "second"
    entries = await inbox.analyses(conversation_id)
    assert [entry["status"] for entry in entries] == ["INTERRUPTED", "SUCCEEDED"]
    assert [entry["summary"] for entry in entries] == [None, "second"]
    assert [event.summary for event in completed] == ["second"]


async def test_a_late_failure_is_not_noted_either(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.script = [refuses(500)]
    claim = await claim_one(database)
    await inbox.set(conversation_id, "lease_token = gen_random_uuid()")
    await run(database, claim, analyser)
    assert (await inbox.row(conversation_id))["analysis_attempts"] == 0
    (entry,) = await inbox.analyses(conversation_id)
    assert entry["status"] == "RUNNING"  # whoever has the lease now will close it


async def test_deleted_during_the_run(
    database: Database,
    inbox: Inbox,
    llm: ScriptedLLM,
    analyser: OpenAIAnalyser,
    completed: list[AnalysisCompleted],
) -> None:
    await inbox.due_conversation()
    llm.default = later(answers(), 0.2)
    running = asyncio.create_task(run_one(database, analyser))
    await until(lambda: llm.requests)
    await database.execute("delete from leads")
    await running
    assert not completed


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refuses(500, "sk-SECRET and a body"), "the endpoint answered 500"),
        (
            refuses(429, code="rate_limit_exceeded"),
            "the endpoint answered 429 (rate_limit_exceeded)",
        ),
        (refuses(401, "Incorrect API key: sk-SECRET"), "the endpoint answered 401"),
        (Reply(body=b"<html>", headers=(("content-type", "text/html"),)), "not a chat completion"),
        (Reply(body=b"[" * 100_000), "not a chat completion"),
        (msgspec.structs.replace(answers(), cut=True), "cut the connection"),
        (Reply(hang=True), "no answer within 1 s"),
        (says(None, refusal="I can't"), "the model refused"),
        (says("", finish_reason="content_filter"), "the model refused"),
        (says("I think it is urgent!"), "not JSON"),
        (says('{"summary": 1}'), "wrong schema: Expected `str`, got `int` - at `$.summary`"),
        (answers(priority="secret"), "wrong schema: Invalid enum value - at `$.priority`"),
        (answers(" \u200b "), "an empty summary"),
        (says("x" * 1_000_000), "not JSON"),
    ],
)
async def test_failures(
    database: Database, inbox: Inbox, llm: ScriptedLLM, reply: Reply, error: str
) -> None:
    conversation_id = await inbox.due_conversation("my secret text")
    llm.default = reply
    analyser = OpenAIAnalyser(ai_config(llm, timeout_seconds=1.0))
    await run_one(database, analyser)
    await analyser.aclose()
    row = await inbox.row(conversation_id)
    assert error in row["analysis_error"]
    assert not any(text in row["analysis_error"] for text in ("SECRET", "secret", "body"))
    assert (row["analysis_attempts"], row["analysis_failed_at"]) == (1, None)
    assert 3.5 < row["due_in"] <= 5
    assert row["lease_token"] is None
    assert row["version"] == 2
    (entry,) = await inbox.analyses(conversation_id)
    assert (entry["status"], entry["error"]) == ("FAILED", row["analysis_error"])


async def test_unreachable_endpoint(database: Database, inbox: Inbox, llm: ScriptedLLM) -> None:
    conversation_id = await inbox.due_conversation()
    analyser = OpenAIAnalyser(AiConfig(provider="openai", model="m", base_url="http://127.0.0.1:9"))
    await run_one(database, analyser)
    await analyser.aclose()
    assert "can't be reached" in (await inbox.row(conversation_id))["analysis_error"]


async def test_retry_after_is_kept(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = refuses(429, retry_after="120")
    await run_one(database, analyser)
    assert 118 < (await inbox.row(conversation_id))["due_in"] <= 120
    await inbox.say(conversation_id, "hello?")
    assert 118 < (await inbox.row(conversation_id))["due_in"] <= 120


async def fail_to_the_end(
    database: Database, inbox: Inbox, analyser: OpenAIAnalyser, conversation_id: UUID
) -> None:
    for _ in range(QUICK.max_attempts):
        await inbox.set(conversation_id, "analysis_due_at = now()")
        await run_one(database, analyser)


async def test_failed_for_good_is_visible_and_a_message_revives_it(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    llm.default = refuses(500)
    await fail_to_the_end(database, inbox, analyser, conversation_id)
    row = await inbox.row(conversation_id)
    assert row["analysis_due_at"] is None
    assert row["analysis_failed_at"] is not None
    queue = await fetch_queue(database)
    assert queue.counts.failed == 1
    assert (queue.items[0].state, queue.items[0].attempts) == (QueueState.FAILED, 6)
    assert queue.items[0].error == "the endpoint answered 500"
    attempts = [entry["attempt"] for entry in await inbox.analyses(conversation_id)]
    assert attempts == [1, 2, 3, 4, 5, 6]

    await inbox.say(conversation_id, "anybody there?")
    row = await inbox.row(conversation_id)
    assert 0 < row["due_in"] <= QUICK.quiet_seconds
    assert (row["analysis_attempts"], row["analysis_failed_at"]) == (0, None)
    llm.default = answers()
    await inbox.set(conversation_id, "analysis_due_at = now()")
    await run_one(database, analyser)
    assert (await inbox.row(conversation_id))["analyzed_seq"] == 2


async def test_a_message_during_the_last_attempt_earns_another(
    database: Database, inbox: Inbox, llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    conversation_id = await inbox.due_conversation()
    await inbox.set(conversation_id, "analysis_attempts = 5")
    llm.default = later(refuses(500), 0.2)
    running = asyncio.create_task(run_one(database, analyser))
    await until(lambda: llm.requests)
    await inbox.say(conversation_id, "one more thing")
    await running
    row = await inbox.row(conversation_id)
    assert row["analysis_failed_at"] is None
    assert 120 < row["due_in"] <= 160


async def test_a_defect_of_an_analyser_is_a_failure(database: Database, inbox: Inbox) -> None:
    class Defective(OpenAIAnalyser):
        async def analyse(
            self, transcript: Sequence[TranscriptMessage], meter: Meter | None = None
        ) -> AnalysisResult:
            raise ZeroDivisionError(len(transcript), meter)

    conversation_id = await inbox.due_conversation()
    analyser = Defective(AiConfig(provider="openai", model="m", base_url="http://127.0.0.1:9"))
    await run_one(database, analyser)
    await analyser.aclose()
    row = await inbox.row(conversation_id)
    assert row["analysis_error"] == "a defect of the analyser (ZeroDivisionError)"


@given(
    attempt=st.integers(1, 100),
    retry_after=st.none() | st.floats(0, 1e9),
)
def test_backoff(attempt: int, retry_after: float | None) -> None:
    wait = backoff_seconds(attempt, retry_after_seconds=retry_after)
    doubled = min(5 * 2 ** (attempt - 1), 300)
    if retry_after is None:
        assert 0.8 * doubled <= wait <= doubled
    else:
        assert wait >= min(retry_after, 3600)
        assert wait <= max(doubled, min(retry_after, 3600))
