"""The demo: its conversations, what it refuses to play, what it would notice, and a whole run."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from messaging_server.demo.client import Listener, OutOfOrder, PromiseBroken, open_socket
from messaging_server.demo.screen import one_line
from messaging_server.demo.scripts import BUNDLED, read_scripts
from messaging_server.errors import StartupError

LEAD = {"sender": "LEAD", "text": "Hello", "at": "2026-03-02T09:14:08.000Z"}
AGENT = {"sender": "AGENT", "text": "Hi", "at": None}
GOOD = {"id": "a", "company": "C", "messages": [LEAD, AGENT]}
SPANISH = re.compile(r"[¿¡ñáéíóú]|\b(hola|gracias|buenos|buenas)\b", re.IGNORECASE)
CONVERSATION_ID = "01978d2e-0000-7000-8000-000000000001"


# --- Scripts ----------------------------------------------------------------------------------


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_bundled_conversations_are_bilingual_and_of_a_readable_length() -> None:
    scripts = read_scripts(BUNDLED)
    assert 12 <= len(scripts) <= 14
    spanish = [s for s in scripts if len(SPANISH.findall(s.messages[0].text)) >= 1]
    assert len(spanish) == len(scripts) / 2
    for script in scripts:
        assert 3 <= len(script.messages) <= 8
        assert {message.sender for message in script.messages} == {"LEAD", "AGENT"}
        times = [message.at for message in script.messages if message.at]
        assert times == sorted(times)


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, "", {**GOOD, "id": "b"})
    assert [script.id for script in read_scripts(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "Expected `object`, got `array`"),
        ("[" * 5_000, "Expected `object`, got `array`"),
        ({**GOOD, "id": ""}, "id: Expected `str` of length >= 1"),
        ({**GOOD, "id": "first"}, "id: 'first' has come before"),
        ({**GOOD, "extra": 1}, "unknown field `extra`"),
        ({"id": "a", "company": "C"}, "missing required field `messages`"),
        ({**GOOD, "messages": []}, "messages: Expected `array` of length >= 1"),
        ({**GOOD, "messages": [AGENT]}, "messages[0].sender: the first message must be a LEAD's"),
        ({**GOOD, "messages": [LEAD, {**AGENT, "sender": "BOT"}]}, "messages[1].sender: "),
        ({**GOOD, "messages": [LEAD, {**AGENT, "text": 7}]}, "messages[1].text: "),
        ({**GOOD, "messages": [LEAD, {**AGENT, "text": " "}]}, "messages[1].text: is blank"),
        (
            {**GOOD, "messages": [{**LEAD, "text": "a\0b"}]},
            "messages[0].text: is blank or has a NUL",
        ),
        ({**GOOD, "messages": [{**LEAD, "text": "a" * 10_001}]}, "messages[0].text: "),
    ],
)
def test_bad_line_is_named_in_one_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", {**GOOD, "id": "first"}, line)
    with pytest.raises(StartupError) as caught:
        read_scripts(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_file_is_named(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", "")
    with pytest.raises(StartupError, match="has no conversations"):
        read_scripts(empty)
    with pytest.raises(StartupError, match="can't be read"):
        read_scripts(tmp_path / "missing.jsonl")
    with pytest.raises(StartupError, match="can't be read"):
        read_scripts(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(StartupError, match="line 1: "):
        read_scripts(tmp_path / "latin.jsonl")


def test_texts_can_not_command_the_terminal() -> None:
    assert one_line("a\x1b[2J\r\nb\x07 \u202ec\u009b1m") == "a [2J b c 1m"


# --- What it would notice ---------------------------------------------------------------------


def message(seq: int) -> dict[str, Any]:
    return {
        "id": CONVERSATION_ID,
        "conversationId": CONVERSATION_ID,
        "seq": seq,
        "senderType": "LEAD",
        "sender": None,
        "contentType": "TEXT",
        "contentText": "Hello",
        "mediaUrl": None,
        "attachments": [],
        "private": False,
        "status": None,
        "clientMessageId": None,
        "createdAt": "2026-03-02T09:14:08.000Z",
    }


def push(seq: int) -> dict[str, Any]:
    return {
        "event": "message:new",
        "conversationId": CONVERSATION_ID,
        "seq": seq,
        "data": {"message": message(seq)},
    }


async def hear(*, history: Sequence[int], before: Sequence[Any], after: Sequence[Any]) -> list[int]:
    """Listen to a server that sends `before` and `after` around its reply to the join."""

    async def talk(socket: ServerConnection) -> None:
        command = json.loads(await socket.recv())
        reply = {"messages": [message(seq) for seq in history]}
        for frame in [*before, {"id": command["id"], "ok": True, "data": reply}, *after]:
            await socket.send(json.dumps(frame))
        await socket.close(4008, "too slow")

    seqs: list[int] = []
    async with serve(talk, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        listener = Listener(
            await open_socket(f"http://127.0.0.1:{port}"),
            on_message=lambda message: seqs.append(message.seq),
            on_analysis=lambda _conversation_id, _ai: None,
        )
        listening = asyncio.create_task(listener.listen())
        joining = asyncio.create_task(listener.join(CONVERSATION_ID))
        with pytest.raises(PromiseBroken) as caught:
            await listening
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await listener.close()
    if isinstance(caught.value, OutOfOrder):
        raise caught.value
    assert "4008" in str(caught.value)
    return seqs


def test_listener_takes_messages_in_order() -> None:
    seqs = asyncio.run(hear(history=[1, 2], before=[], after=[push(3), {"event": "x"}, push(4)]))
    assert seqs == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("history", "before", "after"),
    [
        ([1, 2], [], [push(4)]),
        ([1, 2], [], [push(2)]),
        ([1, 2], [], [push(3), push(5), push(4)]),
        ([1, 3], [], []),
        ([2], [], []),
        ([1], [push(1)], []),
        ([1], [], [{**push(2), "seq": 3}]),
    ],
)
def test_listener_notices_a_broken_order(
    history: Sequence[int], before: Sequence[Any], after: Sequence[Any]
) -> None:
    with pytest.raises(OutOfOrder):
        asyncio.run(hear(history=history, before=before, after=after))


# --- A whole run ------------------------------------------------------------------------------


def run_demo(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "messaging_server", "demo", *arguments],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_bundled_demo_at_full_speed_holds_every_promise() -> None:
    result = run_demo("--speed", "0", "--exit")
    assert result.returncode == 0, result.stdout + result.stderr
    scripts = read_scripts(BUNDLED)
    count = sum(len(script.messages) for script in scripts)
    assert re.search(rf"Conversations +{len(scripts)} of {len(scripts)} analysed", result.stdout)
    assert re.search(rf"Messages sent +{count}\b", result.stdout)
    assert re.search(rf"Received over sockets +{2 * count}\b", result.stdout)
    assert re.search(r"In order +yes", result.stdout)
    assert "OK: every message arrived once and in order" in result.stdout
    assert "WARNING" not in result.stderr
    assert "Traceback" not in result.stderr
    directory = re.search(r"server of its own in (\S+)", result.stdout)
    assert directory
    assert not Path(directory[1]).exists()


def test_bad_file_stops_the_demo_before_it_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", {**GOOD, "messages": "none"})
    result = run_demo("--from", str(path))
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert f"{path}, line 1: messages: " in line
