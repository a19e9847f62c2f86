"""The analysers as the rest sees them; the endpoint of `openai` is played over HTTP."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from messaging_server.analysis.analysers import AnalyserFailed, LocalAnalyser, make_analyser
from messaging_server.analysis.exchange import retry_after_seconds
from messaging_server.analysis.openai_analyser import OpenAIAnalyser
from messaging_server.config import AiConfig, TagConfig
from messaging_server.models import Priority, SenderType, TranscriptMessage
from tests.analysis.conftest import ai_config
from tests.analysis.scripted_llm import Reply, ScriptedLLM, answers, later, refuses, says

pytestmark = pytest.mark.anyio

TRANSCRIPT = [
    TranscriptMessage(sender=SenderType.LEAD, text="You charged me twice, I want my money back"),
]


@pytest.fixture
async def local() -> AsyncIterator[LocalAnalyser]:
    analyser = LocalAnalyser(())
    try:
        yield analyser
    finally:
        await analyser.aclose()


async def test_local_says_what_it_is(local: LocalAnalyser) -> None:
    result = await local.analyse(TRANSCRIPT)
    assert (local.name, local.model) == ("local", "local-1")
    assert "charged me twice" in result.summary
    assert await local.analyse(TRANSCRIPT) == result


async def test_local_leaves_the_event_loop_free(local: LocalAnalyser) -> None:
    long = [TranscriptMessage(sender=SenderType.LEAD, text="I lost it. " * 900)] * 30
    analysis = asyncio.create_task(local.analyse(long))
    turns = 0
    while not analysis.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 10


def test_the_vendors_sdk_is_not_imported_for_local() -> None:
    code = (
        "import sys; from messaging_server.app import create_app; "
        "from messaging_server.config import AiConfig; "
        "from messaging_server.analysis.analysers import make_analyser; "
        "make_analyser(AiConfig()); sys.exit('openai' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_openai_asks_for_structured_output(
    llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    llm.default = answers("Doble cobro.", "HIGH", tags=["billing", "mine"], language="es")
    result = await analyser.analyse(TRANSCRIPT)
    assert (result.summary, result.priority) == ("Doble cobro.", Priority.HIGH)
    assert (result.tags, result.language) == (("billing",), "es")
    (request,) = llm.requests
    assert request["model"] == "scripted-1"
    assert request["temperature"] == 0
    assert request["response_format"]["json_schema"]["strict"] is True
    assert "authorization: bearer sk-secret" in llm.headers[0].lower()


async def test_the_configuration_reaches_the_endpoint(llm: ScriptedLLM) -> None:
    tags = (TagConfig(name="vip"),)
    analyser = make_analyser(ai_config(llm, model="m2", temperature=0.7, tags=tags, api_key=""))
    llm.default = answers(tags=["VIP", "billing"])
    result = await analyser.analyse(TRANSCRIPT)
    await analyser.aclose()
    assert (analyser.name, analyser.model) == ("openai", "m2")
    assert result.tags == ("vip",)
    assert llm.requests[0]["temperature"] == 0.7


async def test_steps_down_to_what_the_endpoint_accepts_and_remembers_it(
    llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    llm.script = [
        refuses(400, "Unsupported value: 'temperature' does not support 0.0 with this model"),
        refuses(400, "response_format json_schema is not supported"),
        answers(),
        answers(),
    ]
    await analyser.analyse(TRANSCRIPT)
    await analyser.analyse(TRANSCRIPT)
    formats = [request["response_format"]["type"] for request in llm.requests]
    assert formats == ["json_schema", "json_schema", "json_object", "json_object"]
    assert ["temperature" in request for request in llm.requests] == [True, False, False, False]


async def test_an_endpoint_that_refuses_everything_is_asked_in_full_again(
    llm: ScriptedLLM, analyser: OpenAIAnalyser
) -> None:
    llm.default = refuses(400, "context too long")
    with pytest.raises(AnalyserFailed, match="answered 400"):
        await analyser.analyse(TRANSCRIPT)
    assert len(llm.requests) == 3
    assert "response_format" not in llm.requests[2]
    llm.default = answers()
    await analyser.analyse(TRANSCRIPT)
    assert llm.requests[3]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("first", [says("It is urgent"), answers(priority="urgent"), says(None)])
async def test_one_repair_attempt(llm: ScriptedLLM, analyser: OpenAIAnalyser, first: Reply) -> None:
    llm.script = [first, answers("Repaired.")]
    assert (await analyser.analyse(TRANSCRIPT)).summary == "Repaired."
    question, repair = (request["messages"] for request in llm.requests)
    assert repair[:2] == question
    assert [message["role"] for message in repair[2:]] == ["assistant", "user"]


async def test_no_second_repair_attempt(llm: ScriptedLLM, analyser: OpenAIAnalyser) -> None:
    llm.default = says("nonsense")
    with pytest.raises(AnalyserFailed, match="not JSON"):
        await analyser.analyse(TRANSCRIPT)
    assert len(llm.requests) == 2


async def test_the_sdk_retries_nothing(llm: ScriptedLLM, analyser: OpenAIAnalyser) -> None:
    llm.default = refuses(500)
    with pytest.raises(AnalyserFailed):
        await analyser.analyse(TRANSCRIPT)
    assert len(llm.requests) == 1


async def test_a_slow_answer_is_waited_for(llm: ScriptedLLM, analyser: OpenAIAnalyser) -> None:
    llm.default = later(answers("Slow."), 1.0)
    assert (await analyser.analyse(TRANSCRIPT)).summary == "Slow."


@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_handed_on(
    llm: ScriptedLLM, analyser: OpenAIAnalyser, status: int
) -> None:
    llm.default = refuses(status, retry_after="17")
    with pytest.raises(AnalyserFailed) as caught:
        await analyser.analyse(TRANSCRIPT)
    assert caught.value.retry_after_seconds == 17


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after_seconds(None) is None
    assert retry_after_seconds("7") == 7
    assert retry_after_seconds("0.5") == 0.5
    assert all(
        retry_after_seconds(text) is None for text in ("", "soon", "-3", "nan", "1e9", "9" * 40)
    )
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 55 < (retry_after_seconds(in_a_minute) or 0) <= 60
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0


async def test_bodies_and_keys_are_not_logged(
    llm: ScriptedLLM, analyser: OpenAIAnalyser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    llm.script = [answers(), refuses(401, "Incorrect API key: sk-SECRET")]
    await analyser.analyse(TRANSCRIPT)
    with pytest.raises(AnalyserFailed):
        await analyser.analyse(TRANSCRIPT)
    assert "charged" not in caplog.text
    assert "SECRET" not in caplog.text


def test_an_endpoint_without_a_key_is_enough() -> None:
    assert make_analyser(AiConfig(provider="openai", model="m", base_url="http://x/v1"))
