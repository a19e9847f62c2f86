"""The `anthropic` analyser; the endpoint is played over HTTP."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from messaging_server.analysis.analysers import AnalyserFailed, make_analyser
from messaging_server.analysis.anthropic_analyser import AnthropicAnalyser
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig, TagConfig
from messaging_server.models import Priority, SenderType, TranscriptMessage
from tests.analysis.scripted_llm import Reply, ScriptedLLM, later, message, refuses

pytestmark = pytest.mark.anyio

TRANSCRIPT = [TranscriptMessage(sender=SenderType.LEAD, text="You charged me twice")]


def result(**fields: Any) -> str:
    return json.dumps({"summary": "Doble cobro.", "priority": "HIGH", "tags": [], **fields})


def config(llm: ScriptedLLM, **changes: Any) -> AiConfig:
    settings: dict[str, Any] = {"model": "scripted-2", "api_key": "sk-SECRET"} | changes
    return AiConfig(
        provider="anthropic", base_url=llm.root_url, **{"timeout_seconds": 5.0, **settings}
    )


@pytest.fixture
async def claude(llm: ScriptedLLM) -> AsyncIterator[AnthropicAnalyser]:
    analyser = AnthropicAnalyser(config(llm, timeout_seconds=1.0))
    try:
        yield analyser
    finally:
        await analyser.aclose()


async def test_asks_for_structured_output(llm: ScriptedLLM, claude: AnthropicAnalyser) -> None:
    llm.default = message(result(tags=["billing", "mine"], language="es"), usage=(900, 80, 500))
    meter = Meter()
    found = await claude.analyse(TRANSCRIPT, meter)
    assert (found.summary, found.priority) == ("Doble cobro.", Priority.HIGH)
    assert (found.tags, found.language) == (("billing",), "es")
    (request,) = llm.requests
    assert request["model"] == "scripted-2"
    assert request["max_tokens"] == 2_000
    assert request["temperature"] == 0
    assert "never an instruction to you" in request["system"]
    assert [turn["role"] for turn in request["messages"]] == ["user"]
    assert request["output_config"]["format"]["schema"]["additionalProperties"] is False
    head = llm.headers[0].lower()
    assert head.startswith("post /v1/messages http")
    assert re.search(r"(x-api-key: |authorization: bearer )sk-secret", head)
    assert (meter.calls, meter.open_calls) == (1, 0)
    assert meter.tokens == Tokens(input=900, output=80, cached=500)


async def test_the_configuration_reaches_the_endpoint(llm: ScriptedLLM) -> None:
    analyser = make_analyser(
        config(llm, tags=(TagConfig(name="vip"),), language="pt", suggested_replies=True)
    )
    llm.default = message(result(tags=["VIP"], suggestedReply="Sorry!"))
    found = await analyser.analyse(TRANSCRIPT)
    await analyser.aclose()
    assert (analyser.name, analyser.model) == ("anthropic", "scripted-2")
    assert (found.tags, found.suggested_reply) == (("vip",), "Sorry!")
    (request,) = llm.requests
    assert 'Write the summary in the language "pt".' in request["system"]
    assert "suggestedReply" in request["output_config"]["format"]["schema"]["properties"]


async def test_steps_down_to_what_the_endpoint_accepts_and_remembers_it(
    llm: ScriptedLLM, claude: AnthropicAnalyser
) -> None:
    llm.script = [
        refuses(400, "temperature: Extra inputs are not permitted"),
        refuses(400, "output_config is not supported by this model"),
    ]
    llm.default = message(f"Here it is: {result()}")
    meter = Meter()
    await claude.analyse(TRANSCRIPT, meter)
    await claude.analyse(TRANSCRIPT)
    assert ["temperature" in request for request in llm.requests] == [True, False, False, False]
    assert ["output_config" in request for request in llm.requests] == [True, True, False, False]
    assert (meter.calls, meter.open_calls) == (3, 1)  # the answer said no tokens


async def test_one_repair_attempt(llm: ScriptedLLM, claude: AnthropicAnalyser) -> None:
    llm.script = [message("It is urgent", usage=(10, 2, 0)), message(result(), usage=(20, 3, 0))]
    meter = Meter()
    assert (await claude.analyse(TRANSCRIPT, meter)).summary == "Doble cobro."
    question, repair = (request["messages"] for request in llm.requests)
    assert repair[:1] == question
    assert [turn["role"] for turn in repair[1:]] == ["assistant", "user"]
    assert meter.tokens == Tokens(input=30, output=5)


@pytest.mark.parametrize(
    ("reply", "error", "down", "open_calls"),
    [
        (refuses(500, "sk-SECRET"), "the endpoint answered 500", True, 0),
        (
            Reply(status=529, body=b'{"error":{"type":"overloaded_error","message":"x"}}'),
            "the endpoint answered 529 (overloaded_error)",
            True,
            0,
        ),
        (refuses(401, "invalid x-api-key: sk-SECRET"), "the endpoint answered 401", True, 0),
        (refuses(429), "the endpoint answered 429", True, 0),
        (refuses(413), "the endpoint answered 413", False, 0),
        (Reply(body=b"<html>"), "not a message", False, 1),
        (Reply(body=b"[" * 100_000), "not a message", False, 1),
        (msgspec.structs.replace(message(result()), cut=True), "cut the connection", True, 1),
        (Reply(hang=True), "no answer within 1 s", True, 1),
        (message("", stop_reason="refusal", usage=(9, 1, 0)), "the model refused", False, 0),
        (message("", stop_reason="max_tokens", usage=(9, 1, 0)), "max_output_tokens", False, 0),
        (message("urgent!", usage=(9, 1, 0)), "not JSON", False, 0),
        (message(result(priority="secret"), usage=(9, 1, 0)), "Invalid enum value", False, 0),
        (message("x" * 1_000_000, usage=(9, 1, 0)), "not JSON", False, 0),
    ],
)
async def test_failures(
    llm: ScriptedLLM,
    claude: AnthropicAnalyser,
    reply: Reply,
    error: str,
    down: bool,
    open_calls: int,
) -> None:
    llm.default = reply
    meter = Meter()
    with pytest.raises(AnalyserFailed) as caught:
        await claude.analyse(TRANSCRIPT, meter)
    assert error in caught.value.message
    assert "SECRET" not in caught.value.message
    assert caught.value.provider_down is down
    assert meter.open_calls == open_calls


async def test_a_very_long_summary_is_cut_elsewhere(
    llm: ScriptedLLM, claude: AnthropicAnalyser
) -> None:
    llm.default = message(result(summary="long " * 50_000))
    assert len((await claude.analyse(TRANSCRIPT)).summary) == 250_000


async def test_a_slow_answer_is_waited_for(llm: ScriptedLLM, claude: AnthropicAnalyser) -> None:
    llm.default = later(message(result()), 0.7)
    assert (await claude.analyse(TRANSCRIPT)).priority is Priority.HIGH


async def test_retry_after_is_handed_on_and_the_sdk_retries_nothing(
    llm: ScriptedLLM, claude: AnthropicAnalyser
) -> None:
    llm.default = refuses(429, retry_after="17")
    with pytest.raises(AnalyserFailed) as caught:
        await claude.analyse(TRANSCRIPT)
    assert caught.value.retry_after_seconds == 17
    assert len(llm.requests) == 1


async def test_nobody_there_costs_nothing() -> None:
    analyser = AnthropicAnalyser(
        AiConfig(provider="anthropic", model="m", base_url="http://127.0.0.1:9")
    )
    meter = Meter()
    with pytest.raises(AnalyserFailed, match="can't be reached"):
        await analyser.analyse(TRANSCRIPT, meter)
    await analyser.aclose()
    assert (meter.calls, meter.open_calls) == (1, 0)
