"""An endpoint that says what a test tells it to, over real sockets.

It is OpenAI-compatible or Anthropic-compatible, as the replies are that it is given.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct


class Reply(Struct, frozen=True, kw_only=True):
    """What one request gets. `hang`: nothing, ever. `cut`: half an answer, then a reset."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    delay_seconds: float = 0.0
    hang: bool = False
    cut: bool = False


def says(content: str | None, **message: Any) -> Reply:
    """A chat completion with this text; `usage` is tokens in, out and cached."""
    finish_reason = message.pop("finish_reason", "stop")
    usage = message.pop("usage", None)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }
    body: dict[str, Any] = {"object": "chat.completion", "choices": [choice]}
    if usage is not None:
        body["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
            "prompt_tokens_details": {"cached_tokens": usage[2]},
        }
    return Reply(body=json.dumps(body).encode())


def answers(
    summary: str = "A customer needs help.", priority: str = "MEDIUM", **fields: Any
) -> Reply:
    """A chat completion with a result; `usage` as in `says`."""
    usage = fields.pop("usage", None)
    result = {"summary": summary, "priority": priority, "tags": [], **fields}
    return says(json.dumps(result), usage=usage)


def message(
    text: str,
    *,
    stop_reason: str = "end_turn",
    usage: tuple[int, int, int] | None = None,
) -> Reply:
    """Anthropic's message with this text; `usage` as in `says`."""
    body: dict[str, Any] = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}],
        "stop_reason": stop_reason,
    }
    if usage is not None:
        body["usage"] = {
            "input_tokens": usage[0] - usage[2],
            "output_tokens": usage[1],
            "cache_read_input_tokens": usage[2],
        }
    return Reply(body=json.dumps(body).encode())


def later(reply: Reply, seconds: float) -> Reply:
    return msgspec.structs.replace(reply, delay_seconds=seconds)


def refuses(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An error in the vendor's shape; `retry_after="7"` is sent as a header."""
    return Reply(
        status=status,
        headers=tuple((name.replace("_", "-"), value) for name, value in headers.items()),
        body=json.dumps({"error": {"message": message, "code": code}}).encode(),
    )


class ScriptedLLM:
    """`script` is used up from its front; then `default` answers, or what `decide` makes of it.

    `active` are the transcripts that are being read, by their first word, and `overlaps` counts
    those that were active already.
    """

    def __init__(self) -> None:
        self.script: list[Reply] = []
        self.default = answers()
        self.decide: Callable[[dict[str, Any]], Reply] | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.active: list[str] = []
        self.overlaps = 0
        self._handlers: set[asyncio.Task[None]] = set()
        self.base_url = ""
        self.root_url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ScriptedLLM"]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.root_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.base_url = f"{self.root_url}/v1"
        try:
            yield self
        finally:
            server.close()
            for handler in self._handlers:
                handler.cancel()
            await asyncio.gather(*self._handlers, return_exceptions=True)
            await server.wait_closed()

    def transcripts(self) -> list[list[dict[str, str]]]:
        return [transcript_of(request) for request in self.requests]

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.create_task(self._serve(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = int(re.search(r"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]  # the SDK sends it
                request = json.loads(await reader.readexactly(length))
                self.headers.append(head)
                self.requests.append(request)
                await self._answer(request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        reply = self._next(request)
        first_word = " ".join(entry["text"] for entry in transcript_of(request)).partition(" ")[0]
        self.overlaps += first_word in self.active
        self.active.append(first_word)
        try:
            await asyncio.sleep(3600 if reply.hang else reply.delay_seconds)
        finally:
            self.active.remove(first_word)
        headers = (("content-type", "application/json"), *reply.headers)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        head = f"HTTP/1.1 {reply.status} X\r\n{lines}content-length: {len(reply.body)}\r\n\r\n"
        if reply.cut:
            writer.write(head.encode() + reply.body[: len(reply.body) // 2])
            await writer.drain()
            writer.transport.abort()
            raise ConnectionResetError
        writer.write(head.encode() + reply.body)
        await writer.drain()

    def _next(self, request: dict[str, Any]) -> Reply:
        if self.script:
            return self.script.pop(0)
        return self.decide(request) if self.decide else self.default


def transcript_of(request: dict[str, Any]) -> list[dict[str, str]]:
    """The transcript as the model reads it."""
    content = next(turn["content"] for turn in request["messages"] if turn["role"] == "user")
    entries: list[dict[str, str]] = json.loads(
        content.removeprefix("<transcript>\n").removesuffix("\n</transcript>")
    )
    return entries
