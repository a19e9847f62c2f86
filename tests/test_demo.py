"""The demo: its conversations, what it refuses to play, what it would notice, and a whole run."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import ServerConnection, serve

from messaging_server.demo.client import (
    AiData,
    Api,
    Connection,
    Listener,
    OutOfOrder,
    PromiseBroken,
    Room,
    open_socket,
)
from messaging_server.demo.receiver import Receiver, receiving
from messaging_server.demo.screen import one_line
from messaging_server.demo.scripts import BUNDLED, Script, read_scripts
from messaging_server.demo.tally import Tally
from messaging_server.demo.website import CHAT, NOTE, VisitorSocket
from messaging_server.errors import StartupError
from messaging_server.models import PublicMessage

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


def test_bundled_chat_of_a_visitor_goes_both_ways() -> None:
    [script] = read_scripts(CHAT)
    assert [message.sender for message in script.messages] == ["LEAD", "AGENT"] * 2 + ["LEAD"]
    assert script.id not in {script.id for script in read_scripts(BUNDLED)}


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD, "", {**GOOD, "id": "b"})
    assert [script.id for script in read_scripts(path)] == ["a", "b"]


def test_documented_line_can_be_played(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    [line] = re.findall(r'^\{"id": .+$', page, re.MULTILINE)
    [script] = read_scripts(write(tmp_path / "a.jsonl", line))
    assert script.lead_name == "Marta Vidal"
    assert f"name is made of it: {script.lead_name} |" in page


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "Expected `object`, got `array`"),
        ("[" * 5_000, "Expected `object`, got `array`"),
        ({**GOOD, "id": ""}, "id: Expected `str` of length >= 1"),
        ({**GOOD, "id": "first"}, "id: 'first' has come before"),
        ({**GOOD, "id": "a\0b"}, "id: has a NUL character"),
        ({**GOOD, "extra": 1}, "unknown field `extra`"),
        ({"id": "a", "company": "C"}, "missing required field `messages`"),
        ({**GOOD, "messages": []}, "messages: Expected `array` of length >= 1"),
        ({**GOOD, "messages": [AGENT]}, "messages[0].sender: the first message must be a LEAD's"),
        ({**GOOD, "messages": [LEAD, {**AGENT, "sender": "BOT"}]}, "messages[1].sender: "),
        ({**GOOD, "messages": [LEAD, {**AGENT, "text": 7}]}, "messages[1].text: "),
        ({**GOOD, "messages": [LEAD, {**AGENT, "text": " "}]}, "messages[1].text: is blank"),
        ({**GOOD, "messages": [{**LEAD, "at": "May"}]}, "messages[0].at: Invalid RFC3339"),
        (
            {**GOOD, "messages": [{**LEAD, "at": "2026-03-02T09:14:08"}]},
            "messages[0].at: Expected `datetime` with a timezone",
        ),
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


# --- What it would notice on sockets ----------------------------------------------------------


def public_message(seq: int) -> dict[str, Any]:
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
        "clientMessageId": None,
        "createdAt": "2026-03-02T09:14:08.000Z",
    }


def message(seq: int) -> dict[str, Any]:
    return {**public_message(seq), "private": False, "status": None}


def push(seq: int) -> dict[str, Any]:
    return {
        "event": "message:new",
        "conversationId": CONVERSATION_ID,
        "seq": seq,
        "data": {"message": message(seq)},
    }


class AgentEars:
    """A user's socket that joins one conversation."""

    def __init__(self, socket: ClientConnection, seqs: list[int]) -> None:
        self.listener = Listener(
            socket,
            on_message=lambda message: seqs.append(message.seq),
            on_analysis=lambda _conversation_id, _ai: None,
        )
        self.connection = self.listener.connection

    async def join(self) -> None:
        await self.listener.join(CONVERSATION_ID)


def visitor_ears(socket: ClientConnection, seqs: list[int]) -> VisitorSocket:
    room = Room("x", PublicMessage, on_message=lambda message: seqs.append(message.seq))
    return VisitorSocket(socket, room)


async def hear(
    kind: Any, *, history: Sequence[int], before: Sequence[Any], after: Sequence[Any]
) -> list[int]:
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
        ears = kind(await open_socket(f"http://127.0.0.1:{port}"), seqs)
        connection: Connection = ears.connection
        listening = asyncio.create_task(connection.listen())
        joining = asyncio.create_task(ears.join())
        with pytest.raises(PromiseBroken) as caught:
            await listening
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        await connection.close()
    if "4008" not in str(caught.value):
        raise caught.value
    return seqs


@pytest.mark.parametrize("kind", [AgentEars, visitor_ears])
def test_listener_takes_messages_in_order(kind: Any) -> None:
    typing = {"event": "typing:start", "data": {"name": "x"}}
    after = [push(3), typing, push(4)]
    assert asyncio.run(hear(kind, history=[1, 2], before=[], after=after)) == [1, 2, 3, 4]


@pytest.mark.parametrize("kind", [AgentEars, visitor_ears])
@pytest.mark.parametrize(
    ("history", "before", "after"),
    [
        ([1, 2], [], [push(4)]),
        ([1, 2], [], [push(2)]),
        ([1, 2], [], [push(3), push(5), push(4)]),
        ([1, 3], [], []),
        ([2], [], []),
        ([1], [push(1)], []),
        ([], [push(1)], []),
        ([1], [], [{**push(2), "seq": 3}]),
        ([1], [], [{**push(3), "seq": 2}]),
    ],
)
def test_listener_notices_a_broken_order(
    kind: Any, history: Sequence[int], before: Sequence[Any], after: Sequence[Any]
) -> None:
    with pytest.raises(OutOfOrder):
        asyncio.run(hear(kind, history=history, before=before, after=after))


@pytest.mark.parametrize("event", ["conversation:updated", "conversation:ai:update", "presence"])
def test_visitor_must_not_hear_of_anything_else(event: str) -> None:
    foreign = {"event": event, "conversationId": CONVERSATION_ID, "data": {}}
    assert asyncio.run(hear(AgentEars, history=[1], before=[], after=[push(2)])) == [1, 2]
    with pytest.raises(PromiseBroken, match=f"was told of {event}"):
        asyncio.run(hear(visitor_ears, history=[1], before=[], after=[foreign]))


# --- What it would notice of webhooks ---------------------------------------------------------

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Witness:
    """A `Watcher` that writes down what it is shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def happened(self, kind: str, name: str, text: str) -> None:
        self.lines.append(f"{kind} {name}: {text}")

    def analysis_arrived(self, name: str, ai: AiData) -> None:
        raise AssertionError(name, ai)


def event(kind: str, *, conversation_id: str = "c", **message: Any) -> dict[str, Any]:
    told = {"id": f"{conversation_id}{message['seq']}", "private": False, **message}
    data = {"lead": {"name": "Ana"}, "conversation": {"id": conversation_id}, "message": told}
    return {"type": kind, "timestamp": "2026-03-02T09:14:08.000Z", "data": data}


def created(seq: int, **changes: Any) -> dict[str, Any]:
    return event("message.created", seq=seq, **changes)


def signed(
    body: str, *, delivery_id: str, secret: str = SECRET, age: timedelta = timedelta(0)
) -> dict[str, str]:
    at = datetime.now(UTC) - age
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(delivery_id, at, body),
    }


class Post:
    """Delivers events to a receiver."""

    def __init__(self) -> None:
        self.tally, self.witness = Tally(conversations=1), Witness()
        self.receiver = Receiver(SECRET, tally=self.tally, watcher=self.witness)

    def deliver(self, told: Mapping[str, Any], delivery_id: str = "", **how: Any) -> None:
        body = json.dumps(told)
        headers = signed(body, delivery_id=delivery_id or body, **how)
        self.receiver.take(headers, body.encode())

    def deliver_everything(self, *seqs: int, conversation_id: str = "c") -> None:
        for kind in ("conversation.created", "conversation.assigned"):
            self.deliver(event(kind, conversation_id=conversation_id, seq=0))
        for seq in seqs:
            self.deliver(created(seq, conversation_id=conversation_id))
        self.deliver(event("conversation.ai_updated", conversation_id=conversation_id, seq=0))

    async def is_missing_something(self) -> bool:
        try:
            await self.receiver.wait_for_expected(timeout_seconds=0.05)
        except PromiseBroken as broken:
            assert "of 1 conversations" in str(broken)  # noqa: PT017  # a wait may also succeed
            return True
        return False


def test_receiver_counts_what_it_verified_and_shows_some() -> None:
    post = Post()
    for _ in range(2):
        post.deliver_everything(1, 3)
    post.deliver(created(1, conversation_id="d"))
    assert post.tally.deliveries == 11
    assert post.tally.events == {
        "message.created": 3,
        "conversation.created": 1,
        "conversation.assigned": 1,
        "conversation.ai_updated": 1,
    }
    assert post.witness.lines == ["WEBHOOK Ana: conversation.created #0 verified"]


def test_receiver_refuses_what_is_not_signed() -> None:
    post = Post()
    other = "whsec_" + "A" * 32
    forgeries: list[dict[str, Any]] = [{"secret": other}, {"age": timedelta(minutes=6)}]
    for forgery in forgeries:
        with pytest.raises(PromiseBroken, match="was not verified"):
            post.deliver(created(1), **forgery)
    body = json.dumps(created(1))
    for changed in (
        {"webhook-id": "another"},
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "nonsense"},
        {"webhook-signature": ""},
    ):
        with pytest.raises(PromiseBroken, match="was not verified"):
            post.receiver.take({**signed(body, delivery_id="x"), **changed}, body.encode())
    with pytest.raises(PromiseBroken, match="was not verified"):
        post.receiver.take(signed(body, delivery_id="x"), json.dumps(created(2)).encode())
    assert post.tally.deliveries == 0


def test_receiver_refuses_a_repetition_with_other_bytes() -> None:
    post = Post()
    post.deliver(created(1), "same")
    post.deliver(created(1), "same")
    with pytest.raises(PromiseBroken, match="other bytes"):
        post.deliver({**created(1), "timestamp": "2026-03-02T09:14:09.000Z"}, "same")


@pytest.mark.parametrize("seq", [1, 2])
def test_receiver_notices_messages_out_of_order(seq: int) -> None:
    post = Post()
    post.deliver(created(2))
    post.deliver(created(1, conversation_id="d"))
    with pytest.raises(OutOfOrder, match=f"message {seq} after 2"):
        post.deliver(created(seq), "another")


def test_receiver_refuses_private_notes_and_unknown_shapes() -> None:
    post = Post()
    with pytest.raises(PromiseBroken, match="private note"):
        post.deliver(created(1, private=True))
    with pytest.raises(PromiseBroken, match="something else"):
        post.deliver({"type": "message.created", "data": {}})


async def wait_for_what_is_told() -> None:
    post = Post()
    post.deliver_everything(1, 3)
    post.receiver.expect("c", ["c1", "c3"])
    assert not await post.is_missing_something()
    post.receiver.expect("d", ["d1", "d2"])
    assert await post.is_missing_something()
    for seq in (1, 2):
        post.deliver(created(seq, conversation_id="d"))
    assert await post.is_missing_something()
    waiting = asyncio.create_task(post.receiver.wait_for_expected(timeout_seconds=30))
    await asyncio.sleep(0)
    post.deliver_everything(conversation_id="d")
    await waiting
    post.deliver(created(3, conversation_id="d"))
    assert await post.is_missing_something()


def test_receiver_misses_what_it_was_not_told() -> None:
    asyncio.run(wait_for_what_is_told())


class Registry(Api):
    """Takes the webhook down instead of telling a server of it."""

    calls: list[tuple[str, Mapping[str, Any]]]

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        self.calls = [(path, body)]
        return {"id": "1", "secret": SECRET}

    async def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        self.calls.append((path, body))


async def deliver_over_http() -> tuple[list[int], list[tuple[str, Mapping[str, Any]]]]:
    """A good delivery and a forged one: the answers, and what the API was asked for."""
    api, body = Registry("http://127.0.0.1"), json.dumps(created(1))
    good = signed(body, delivery_id="a")
    forged = {**good, "webhook-id": "b"}
    tally = Tally(conversations=1)
    async with receiving(api, tally=tally, watcher=Witness()) as receiver:
        watching = asyncio.create_task(receiver.watch())
        async with httpx.AsyncClient(trust_env=False) as client:
            url = api.calls[0][1]["url"]
            answers = [await client.post(url, content=body, headers=h) for h in (good, forged)]
        with pytest.raises(PromiseBroken, match="was not verified"):
            await watching
    await api.close()
    assert tally.deliveries == 1
    return [answer.status_code for answer in answers], api.calls


def test_receiver_listens_on_loopback_and_reports_what_is_broken() -> None:
    statuses, [(made, webhook), (paused, change)] = asyncio.run(deliver_over_http())
    assert statuses == [204, 400]
    assert (made, paused, change) == ("/webhooks", "/webhooks/1", {"enabled": False})
    assert webhook["url"].startswith("http://127.0.0.1:")


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
    scripts, [chat] = read_scripts(BUNDLED), read_scripts(CHAT)
    played = len(scripts) + 1
    public = sum(len(script.messages) for script in [*scripts, chat])
    heard = 2 * (public + 1) + len(chat.messages)
    summary = " ".join(result.stdout.split())
    assert f"Conversations {played} of {played} analysed" in summary
    assert f"Messages sent {public + 1} " in summary
    assert f"Received over sockets {heard} " in summary
    assert re.search(r"Webhook deliveries \d+ verified, \d+ events", summary)
    assert f"message.created {public}, " in summary
    for kind in ("conversation.created", "conversation.assigned", "lead.created"):
        assert f"{kind} {played}, " in summary
    assert "Website visitor wrote 3 messages, read 2 answers" in summary
    assert_shown(result.stdout, chat)
    assert "In order yes" in summary
    assert "OK: every message arrived once and in order" in result.stdout
    assert "WARNING" not in result.stderr
    assert "Traceback" not in result.stderr
    directory = re.search(r"server of its own in (\S+)", result.stdout)
    assert directory
    assert not Path(directory[1]).exists()


def assert_shown(output: str, chat: Script) -> None:
    """The visitor's chat line by line, and verified deliveries as they came."""
    shown = [line for line in output.splitlines() if f" {chat.lead_name}: " in line]
    kinds = {"LEAD": "WEBSITE", "AGENT": "AGENT"}
    for message in chat.messages:
        assert f"{kinds[message.sender]} {chat.lead_name}: {one_line(message.text)}" in shown
    assert f"NOTE {chat.lead_name}: {NOTE}" in shown
    for number in (2, 4):
        assert f"WEBSITE {chat.lead_name}: has read message {number}" in shown
    assert re.search(
        r"^WEBHOOK [^:]+: (message|conversation|lead)\.\w+( #\d+)? verified$", output, re.MULTILINE
    )


def test_bad_file_stops_the_demo_before_it_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", {**GOOD, "messages": "none"})
    result = run_demo("--from", str(path))
    assert result.returncode == 1
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert f"{path}, line 1: messages: " in line


@pytest.mark.parametrize("speed", ["nan", "inf", "-1", "1001"])
def test_impossible_speed_is_named(speed: str) -> None:
    result = run_demo("--speed", speed)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("Error: Invalid value for '--speed': ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["Starting a server", "@demo.example"])
def test_interrupted_demo_leaves_nothing(number: int, moment: str) -> None:
    """However often it is told."""
    demo = subprocess.Popen(
        [sys.executable, "-u", "-m", "messaging_server", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert demo.stdout is not None
    shown = demo.stdout.readline()
    directory = re.search(r"server of its own in (\S+)", shown)
    assert directory
    try:
        while moment not in shown:
            shown += (line := demo.stdout.readline())
            assert line, shown
        for _ in range(3):
            demo.send_signal(number)
            time.sleep(0.05)
        shown += demo.communicate(timeout=60)[0]
    finally:
        demo.kill()
    assert demo.returncode == 130
    assert shown.endswith("Stopped.\n")
    assert "ERROR" not in shown
    assert "Traceback" not in shown
    assert not Path(directory[1]).exists()
