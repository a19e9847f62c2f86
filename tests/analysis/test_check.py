"""`check-ai`, as users run it: what came back, tokens and price, or one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from messaging_server.analysis.check import check_ai
from messaging_server.config import PriceConfig
from messaging_server.errors import StartupError
from tests.analysis.conftest import ai_config
from tests.analysis.scripted_llm import Reply, ScriptedLLM, answers, refuses, says

PRICE = PriceConfig(model="scripted-1", input=0.25, output=2.0)


def run(folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    usual = {key: value for key, value in os.environ.items() if "API_KEY" not in key}
    return subprocess.run(
        [sys.executable, "-m", "messaging_server", "check-ai"],
        env={**usual, **variables},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_local_needs_nothing(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["Analyser", "Summary", "Priority", "Tags", "Language", "Time", "Cost"]
    assert "HIGH" in done.stdout


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AI__BASE_URL": "http://127.0.0.1:9"}, "anthropic m: the endpoint can't be reached"),
        ({}, "ANTHROPIC_API_KEY"),
        ({"AI__API_KEY_FILE": "/nowhere/key"}, "ai.api_key_file: /nowhere/key: No such file"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    settings = {"AI__PROVIDER": "anthropic", "AI__MODEL": "m", **variables}
    done = run(tmp_path, **{f"MESSAGING_{key}": value for key, value in settings.items()})
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("messaging_server: ")
    assert words in line


@pytest.mark.anyio
async def test_it_says_what_came_back_and_what_it_cost(llm: ScriptedLLM) -> None:
    llm.default = answers(
        "Charged twice.", "HIGH", tags=["billing"], language="en", usage=(900, 100, 400)
    )
    lines = await check_ai(ai_config(llm, prices=(PRICE,)))
    assert lines[:5] == [
        "Analyser  openai scripted-1",
        "Summary   Charged twice.",
        "Priority  HIGH: no reason given",
        "Tags      billing",
        "Language  en",
    ]
    assert lines[6:] == [
        "Tokens    900 in (400 cached), 100 out",
        "Cost      $0.000425, by ai.prices",
    ]
    assert "order 1042" in json.dumps(llm.requests)


@pytest.mark.anyio
async def test_without_a_price_or_tokens_it_says_so(llm: ScriptedLLM) -> None:
    llm.script = [answers(usage=(1, 1, 0)), answers()]
    assert (await check_ai(ai_config(llm)))[-1] == (
        "Cost      unknown: ai.prices has no entry for scripted-1"
    )
    assert (await check_ai(ai_config(llm)))[-1] == "Tokens    the endpoint doesn't say"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (refuses(401, "Incorrect API key: sk-SECRET"), "the endpoint answered 401"),
        (says("nonsense"), "not JSON"),
        (Reply(hang=True), "no answer within 0.5 s"),
    ],
)
async def test_failures_are_errors_of_the_start(llm: ScriptedLLM, reply: Reply, words: str) -> None:
    llm.default = reply
    with pytest.raises(StartupError) as caught:
        await check_ai(ai_config(llm, timeout_seconds=0.5))
    assert words in str(caught.value)
    assert "SECRET" not in str(caught.value)
