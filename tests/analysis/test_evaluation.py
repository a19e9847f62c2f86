"""`evaluate`: its file, its figures and its report; the second analyser is a scripted model."""

import json
import os
import re
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anyio
import pytest
from click.testing import CliRunner
from rich.console import Console

from messaging_server.__main__ import analyser_keys, main
from messaging_server.analysis.analysers import LocalAnalyser, make_analyser
from messaging_server.analysis.evaluation import Evaluation, changes, evaluate, percentile
from messaging_server.analysis.labelled import LabelledConversation, read_labelled, readers_of
from messaging_server.analysis.report import figures, print_report
from messaging_server.analysis.report_html import render_html
from messaging_server.config import AiConfig, PriceConfig
from messaging_server.errors import StartupError
from messaging_server.models import SenderType, TranscriptMessage
from messaging_server.postgres import EmbeddedPostgres
from tests.analysis.conftest import ai_config
from tests.analysis.scripted_llm import ScriptedLLM, answers, later, refuses
from tests.client import Api, wait_until
from tests.conftest import fresh_database, live_server

pytestmark = pytest.mark.anyio

HOSTILE = '<script>alert(1)</script>[bold]\x1b[31m"><img src=x>'


def line(
    name: str, text: str, *, priority: Sequence[str] = ("HIGH", "HIGH"), **labels: Any
) -> dict[str, Any]:
    return {
        "id": name,
        "company": "Acme",
        "messages": [{"sender": "LEAD", "text": text, "at": None}],
        "labels": {"priority": priority, **labels},
    }


LINES = [
    line(
        "locked",
        "I am locked out of my account and need it today",
        tags=[["account-access"], ["account-access", "bug"]],
        keywords=[["account"], ["locked"]],
    ),
    line(
        "crash",
        "The editor crashes every time I export a picture",
        priority=["MEDIUM", "HIGH"],
        tags=[["bug"], ["bug"]],
        keywords=[["crash"], ["editor"]],
    ),
    line(
        "thanks",
        "Love the new release, great work!",
        priority=["LOW", "LOW"],
        tags=[["feedback"], ["feedback"]],
        keywords=[["release"], ["love"]],
    ),
]
HOSTILE_LINES = [line("hostile", f"{HOSTILE} the app crashes", priority=["MEDIUM"])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path, LINES)


def write(folder: Path, lines: Sequence[Any]) -> Path:
    path = folder / "labelled.jsonl"
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    path.write_text(text + "\n\n", "utf-8")
    return path


async def measure(path: Path, llm: ScriptedLLM | None = None, **settings: Any) -> Evaluation:
    analyser = make_analyser(ai_config(llm, **settings)) if llm else LocalAnalyser(())
    try:
        return await evaluate(
            analyser,
            read_labelled(path),
            price=PriceConfig(model="scripted-1", input=2, output=10),
            concurrency=4,
            on_progress=lambda: None,
        )
    finally:
        await analyser.aclose()


# --- The file ---------------------------------------------------------------------------------


def test_a_file_is_read(path: Path) -> None:
    conversations = read_labelled(path)
    assert [conversation.id for conversation in conversations] == ["locked", "crash", "thanks"]
    assert conversations[0].messages[0].sender is SenderType.LEAD
    assert conversations[0].labels.tags[1] == ("account-access", "bug")


def test_any_number_of_readers(tmp_path: Path) -> None:
    one = line("a", "hello", priority=["LOW"])
    three = line("b", "hello", priority=["LOW", "LOW", "HIGH"])
    assert readers_of(read_labelled(write(tmp_path, [one]))) == 1
    assert readers_of(read_labelled(write(tmp_path, [one, three]))) == 3


def changed(*path: str | int, value: Any) -> dict[str, Any]:
    """The first line with another value at `path`."""
    whole: dict[str, Any] = json.loads(json.dumps(LINES[0]))
    part: Any = whole
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return {**whole, "id": whole["id"] + "2"}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "not valid JSON"),
        ("\ud800", "not valid JSON"),
        ([], "Expected `object`, got `array`"),
        ({"id": "x"}, "missing required field `messages`"),
        (LINES[0], "id: is that of line 1 already"),
        (changed("labels", "priority", value=["URGENT"]), "labels.priority[0]: Invalid enum"),
        (changed("labels", "priority", value=[]), "labels.priority: Expected `array` of length"),
        (changed("labels", "tags", value=["bug"]), "labels.tags[0]: Expected `array`"),
        (changed("labels", "keyword", value=[]), "labels: Object contains unknown field `keyword`"),
        (changed("messages", value=[]), "messages: Expected `array` of length >= 1"),
        (changed("messages", 0, "sender", value="BOT"), "messages[0].sender: Invalid enum"),
        (changed("messages", 0, "text", value=7), "messages[0].text: Expected `str`, got `int`"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, bad: Any, words: str) -> None:
    path = write(tmp_path, [LINES[0]])
    text = bad if isinstance(bad, str) else json.dumps(bad)
    path.write_bytes(path.read_bytes() + text.encode("utf-8", "surrogatepass"))
    with pytest.raises(StartupError) as caught:
        read_labelled(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ")
    assert words in message
    assert "\n" not in message


def test_an_empty_file_and_none(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="has no conversations"):
        read_labelled(write(tmp_path, []))
    with pytest.raises(StartupError, match="can't be read"):
        read_labelled(tmp_path / "none.jsonl")


# --- The figures ------------------------------------------------------------------------------


async def test_local_is_measured(path: Path) -> None:
    evaluation = await measure(path)
    shown = figures(evaluation)
    assert evaluation.name == "local local-1"
    assert evaluation.scores.accuracy == pytest.approx(2.5 / 3)
    assert shown["first tag right"] == "1.000"
    assert shown["summary has a keyword"] == "1.000"
    assert (shown["failed"], shown["tokens in / out"], shown["cost"]) == ("0", "0 / 0", "$0.0000")


async def test_two_analysers_and_what_changed(path: Path, llm: ScriptedLLM) -> None:
    llm.default = answers("Something.", "LOW", tags=["feedback"])
    before, after = await measure(path), await measure(path, llm)
    found = changes(before, after)
    assert [change.conversation.id for change in found] == ["locked", "crash"]
    assert after.scores.accuracy == pytest.approx(1 / 3)
    assert after.scores.coverage == 0.0


async def test_failures_count_as_wrong_and_are_named(path: Path, llm: ScriptedLLM) -> None:
    llm.default = refuses(401, "no", "invalid_api_key")
    evaluation = await measure(path, llm)
    assert evaluation.errors == {"the endpoint answered 401 (invalid_api_key)": 3}
    assert evaluation.scores.accuracy == 0.0
    page = render_html([evaluation])
    assert "the endpoint answered 401" in page


async def test_a_provider_that_says_when_is_asked_again(path: Path, llm: ScriptedLLM) -> None:
    llm.script = [refuses(429, retry_after="0.01")]
    evaluation = await measure(path, llm)
    assert not evaluation.errors
    assert len(llm.requests) == 4


async def test_tokens_and_cost_are_counted(path: Path, llm: ScriptedLLM) -> None:
    llm.default = answers(usage=(1_000, 50, 0))
    shown = figures(await measure(path, llm))
    assert (shown["tokens in / out"], shown["cost"]) == ("3,000 / 150", "$0.0075")


async def test_no_more_at_once_than_allowed(llm: ScriptedLLM, tmp_path: Path) -> None:
    lines = [line(str(number), f"question {number}?") for number in range(12)]
    path = write(tmp_path, lines)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(llm.active))
            await anyio.sleep(0.001)

    llm.default = later(answers(), 0.3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        await measure(path, llm)
        tasks.cancel_scope.cancel()
    assert most == 4


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.5) == 1.0
    assert percentile([float(n) for n in range(1, 101)], 0.95) == 95.0
    assert percentile([7.0], 0.95) == percentile([7.0], 0.0) == 7.0


# --- The report -------------------------------------------------------------------------------


class Page(HTMLParser):
    """All elements with their attributes, and all text outside of `style`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(
    tmp_path: Path, llm: ScriptedLLM
) -> None:
    path = write(tmp_path, HOSTILE_LINES)
    llm.default = answers(HOSTILE, "HIGH", tags=["bug"], priorityReason=HOSTILE)
    text = render_html([await measure(path), await measure(path, llm)])
    page = Page(text)
    names = {name for name, _ in page.elements}
    assert {"svg", "table", "rect", "path"} <= names
    assert not names & {"script", "img", "link", "iframe", "object", "use", "image", "a"}
    assert not re.search(r"url\(|@import|https?:", text)
    attributes = {key for _, found in page.elements for key in found}
    assert not {key for key in attributes if key.startswith("on") or key in ("src", "href")}
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert "<script>alert(1)</script>" in page.text


async def test_the_page_shows_what_changed(path: Path, llm: ScriptedLLM) -> None:
    llm.default = answers("Something.", "LOW", tags=["feedback"])
    page = Page(render_html([await measure(path), await measure(path, llm)]))
    assert "What changed: 2 with another priority or first tag" in page.text
    assert "worse" in page.text
    assert "locked out of my account" in page.text


async def test_the_terminal_shows_texts_as_texts(tmp_path: Path, llm: ScriptedLLM) -> None:
    path = write(tmp_path, HOSTILE_LINES)
    llm.default = answers(HOSTILE, "HIGH", tags=["bug"])
    console = Console(width=200, record=True, highlight=False, force_terminal=True)
    with console.capture() as capture:
        print_report(console, [await measure(path), await measure(path, llm)])
    assert "\x1b[31m" not in capture.get()
    assert "[bold]" in capture.get()


# --- The command ------------------------------------------------------------------------------


def run(*arguments: str, **variables: str) -> Any:
    cleared = {"OPENAI_API_KEY": None, "ANTHROPIC_API_KEY": None, "DATABASE_URL": None}
    return CliRunner(env={**cleared, **variables}).invoke(main, ["evaluate", *arguments])


def test_the_command_needs_no_database(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "report.html"
    result = run(str(path), "--html", str(report), DATABASE_URL="postgresql://nowhere:1/nothing")
    assert result.exit_code == 0, result.output
    assert "3 conversations, 2 readers" in result.stdout
    assert "priority macro-F1" in result.stdout
    assert report.read_text("utf-8").startswith("<!doctype html>")


async def test_two_models_by_name(path: Path, tmp_path: Path, llm: ScriptedLLM) -> None:
    arguments = (str(path), "--analyser", "openai:m1", "--against", "openai:llama3.2:1b")
    result = await anyio.run_process(
        [sys.executable, "-m", "messaging_server", "evaluate", *arguments],
        env={**os.environ, "MESSAGING_AI__BASE_URL": llm.base_url},
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert {request["model"] for request in llm.requests} == {"m1", "llama3.2:1b"}
    assert b"0 conversations with another priority" in result.stdout


def test_a_key_is_not_shown_to_another_vendor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    configured = AiConfig(provider="openai", model="m", base_url="http://x", api_key="sk-openai")
    foreign = analyser_keys(configured, "anthropic:c1")
    assert {foreign[name] for name in ("api_key", "base_url", "api_key_file")} == {""}
    assert (foreign["provider"], foreign["model"]) == ("anthropic", "c1")
    assert "api_key" not in analyser_keys(configured, "openai:m2")


def test_feedback_is_measured_against(
    postgres: EmbeddedPostgres, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    with fresh_database(postgres) as dsn:
        assert "no feedback on analyses yet" in run("--from-feedback", DATABASE_URL=dsn).stderr
        with live_server(dsn) as server, Api.first_admin(server.url) as admin:
            give_feedback(admin, {"verdict": "correct"})
            give_feedback(admin, {"verdict": "wrong", "priority": "LOW"})
            give_feedback(admin, {"verdict": "wrong", "tags": ["how-to"]})
        alone = run("--from-feedback", DATABASE_URL=dsn)
        both = run(str(path), "--from-feedback", DATABASE_URL=dsn)
    assert "3 conversations, 1 reader\n" in re.sub(" +\n", "\n", alone.stdout), alone.output
    assert re.search(r"priority accuracy +│ +0.500", alone.stdout)
    assert re.search(r"first tag right +│ +0.500", alone.stdout)
    assert "6 conversations, 2 readers" in both.stdout


def give_feedback(admin: Api, feedback: dict[str, Any]) -> None:
    with admin.new_key() as key:
        conversation_id = key.inbound("I am locked out of my account")["conversationId"]
    history = f"/conversations/{conversation_id}/analyses"
    (analysis,) = wait_until(lambda: admin.get(history)["items"])
    wait_until(lambda: admin.get(history)["items"][0]["status"] == "SUCCEEDED")
    admin.post(f"{history}/{analysis['id']}/feedback", feedback, expect=200)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "needs a file"),
        (["none.jsonl"], "none.jsonl: can't be read"),
        (["labelled.jsonl", "--analyser", "oracle"], "ai.provider"),
        (["labelled.jsonl", "--against", "openai"], "ai.model must name a model"),
        (["labelled.jsonl", "--html", "no/such/folder.html"], "can't be written"),
        (
            ["labelled.jsonl", "--analyser", "openai:m"],
            "openai m gave no result",
        ),
    ],
)
def test_what_fails_says_so_in_one_line(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    nobody = {"MESSAGING_AI__BASE_URL": "http://127.0.0.1:9/v1"} if "openai:m" in arguments else {}
    result = run(*arguments, **nobody)
    assert result.exit_code == 1
    (said,) = result.stderr.splitlines()
    assert said.startswith("messaging_server: ")
    assert words in said


def test_conversations_of_every_sender_are_read(tmp_path: Path) -> None:
    messages = [{"sender": sender.value, "text": "x"} for sender in SenderType]
    (conversation,) = read_labelled(write(tmp_path, [{**LINES[0], "messages": messages}]))
    assert conversation == LabelledConversation(
        id="locked",
        messages=tuple(TranscriptMessage(sender=sender, text="x") for sender in SenderType),
        labels=conversation.labels,
    )
