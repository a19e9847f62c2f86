"""A model that writes piece by piece, as OpenAI's and Anthropic's endpoints stream it."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from msgspec import Struct

PAUSE_SECONDS = 0.02


class Script(Struct, frozen=True, kw_only=True):
    """What every request gets. `hang`: after the pieces nothing, `cut`: the connection ends."""

    pieces: Sequence[str] = ("Hello Ana, ", "we are ", "looking into it.")
    status: int = 200
    message: str = "no"
    refuses: tuple[str, ...] = ()
    refusal: bool = False
    garbage: bool = False
    hang: bool = False
    cut: bool = False


class StreamingLLM:
    """`hung_up` is set when a client closes a connection on which pieces still come."""

    def __init__(self) -> None:
        self.script = Script()
        self.requests: list[dict[str, Any]] = []
        self.hung_up = threading.Event()
        self.url = ""

    @contextmanager
    def serving(self) -> Iterator["StreamingLLM"]:
        llm = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                llm.answer(self)

            def log_message(self, *_: Any) -> None:
                """Silent."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = False
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.script = Script()
            server.shutdown()
            server.server_close()
            thread.join()

    def asked(self) -> str:
        """All that the newest request told the model."""
        return json.dumps(self.requests[-1], ensure_ascii=False)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        script = self.script
        length = int(handler.headers["content-length"])
        request = json.loads(handler.rfile.read(length))
        self.requests.append(request)
        refused = next((name for name in script.refuses if name in request), None)
        if script.status != 200 or refused:
            body = json.dumps({"error": {"message": f"{script.message} {refused}"}}).encode()
            handler.send_response(400 if refused else script.status)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)
            return
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.end_headers()
        is_openai = "completions" in handler.path
        events = _openai_events(script) if is_openai else _anthropic_events(script)
        try:
            for event in events:
                handler.wfile.write(event)
                handler.wfile.flush()
                time.sleep(PAUSE_SECONDS)
            while self.script is script and script.hang:
                handler.wfile.write(b": still here\n\n")
                time.sleep(PAUSE_SECONDS)
        except ConnectionError:
            self.hung_up.set()


def _event(data: dict[str, Any]) -> bytes:
    name = f"event: {data['type']}\n" if "type" in data else ""
    return f"{name}data: {json.dumps(data)}\n\n".encode()


def _openai_events(script: Script) -> Iterator[bytes]:
    if script.garbage:
        yield b"data: {nonsense\n\n"
    for piece in script.pieces:
        yield _event({"choices": [{"index": 0, "delta": {"content": piece}}]})
    if script.cut or script.hang:
        return
    reason = "content_filter" if script.refusal else "stop"
    yield _event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    yield _event({"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})
    yield b"data: [DONE]\n\n"


def _anthropic_events(script: Script) -> Iterator[bytes]:
    if script.garbage:
        yield b"event: message_start\ndata: {nonsense\n\n"
    usage = {"input_tokens": 60, "cache_read_input_tokens": 40, "output_tokens": 1}
    yield _event({"type": "message_start", "message": {"content": [], "usage": usage}})
    yield _event({"type": "ping"})
    for piece in script.pieces:
        delta = {"type": "text_delta", "text": piece}
        yield _event({"type": "content_block_delta", "index": 0, "delta": delta})
    if script.cut or script.hang:
        return
    reason = "refusal" if script.refusal else "end_turn"
    delta = {"stop_reason": reason}
    yield _event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": 10}})
    yield _event({"type": "message_stop"})
