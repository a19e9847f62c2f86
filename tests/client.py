"""How tests use the server: as a process, over HTTP and over sockets."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self, TypeVar
from uuid import uuid4

import httpx
from websockets.sync.client import ClientConnection, connect

T = TypeVar("T")

START_SECONDS = 60.0
PASSWORD = "correct horse"


class LiveServer:
    """`python -m messaging_server --port 0` in a process of its own."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self._environment = environment
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `stop`
        self.url = ""
        self.port = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the server answers that it is ready; a later start keeps the port."""
        before = len(self.log())
        self._process = subprocess.Popen(
            [sys.executable, "-m", "messaging_server", "--port", str(self.port), *self._arguments],
            env=self._environment,
            stderr=self._log,
            stdout=subprocess.DEVNULL,
        )
        wait_until(lambda: self._find_address(before) and self._is_ready(), START_SECONDS)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _find_address(self, start: int) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the server ended: {self.log()}"
        for line in self.log()[start:].splitlines():
            if line.strip().startswith("Address"):
                self.url = line.split()[1]
                self.port = int(self.url.rpartition(":")[2])
                return True
        return False

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        """What the server wrote to standard error so far."""
        if self._log.closed:
            return ""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode()

    def assert_no_defects(self) -> None:
        """Nothing met an error that nobody had thought of."""
        for line in self.log().splitlines():
            is_json = line.startswith("{")
            assert not is_json or json.loads(line)["level"] not in ("ERROR", "CRITICAL"), line
            assert not line.startswith("Traceback"), self.log()

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._process is not None
        if self.is_running():
            self._process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Until it has ended; the exit code."""
        assert self._process is not None
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def close(self) -> None:
        """Stop, and forget the log."""
        try:
            if self._process is not None:
                self.stop()
        finally:
            self._log.close()


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """What `condition` gives once it is true; an AssertionError when it does not get true."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"it did not happen within {seconds} s"
        time.sleep(0.02)
    return result


def together(calls: Iterable[Callable[[], T]], threads: int = 20) -> list[T]:
    """Run all `calls` at the same time, as far as `threads` go; their results in order."""
    with ThreadPoolExecutor(threads) as executor:
        return list(executor.map(lambda call: call(), calls))


ALL_KEPT_ALIVE = httpx.Limits(max_connections=100, max_keepalive_connections=None)
"""Else httpx closes the surplus of idle ones, also one that another thread was just given."""


class Api:
    """One user's (or key's, or nobody's) view of the REST API; closes those it made."""

    def __init__(self, url: str, token: str | None = None, user: dict[str, Any] | None = None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url
        self.token = token
        self.user = user or {}
        self.http = httpx.Client(
            base_url=f"{url}/api/v1", headers=headers, timeout=30, limits=ALL_KEPT_ALIVE
        )
        self._made: list[Api] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()
        for made in self._made:
            made.close()

    def _make(self, token: str, user: dict[str, Any] | None = None) -> "Api":
        self._made.append(Api(self.url, token, user))
        return self._made[-1]

    @classmethod
    def first_admin(cls, url: str) -> "Api":
        with cls(url) as nobody:
            nobody.post("/auth/register", {"email": "admin@example.com", "password": PASSWORD})
            nobody.log_in("admin@example.com")
            return nobody._made.pop()

    def log_in(self, email: str, password: str = PASSWORD) -> "Api":
        data = self.post("/auth/login", {"email": email, "password": password}, expect=200)
        return self._make(data["token"], data["user"])

    def new_user(self, role: str = "SALES_AGENT", name: str | None = None) -> "Api":
        """A new user, made by this ADMIN, logged in."""
        email = f"{uuid4().hex[:12]}@example.com"
        self.post(
            "/auth/register", {"email": email, "password": PASSWORD, "role": role, "name": name}
        )
        return self.log_in(email)

    def new_key(self) -> "Api":
        """An API key, made by this ADMIN."""
        return self._make(self.post("/api-keys", {"name": "tests"})["key"])

    def request(
        self, method: str, path: str, body: Any = None, *, expect: int | None = None, **query: Any
    ) -> Any:
        """The `data` of a success; the `error` when `expect` is an error's status."""
        response = self.http.request(method, path, json=body, params=query or None)
        return self.unwrap(response, expect)

    @staticmethod
    def unwrap(response: httpx.Response, expect: int | None = None) -> Any:
        envelope = response.json()
        if expect is not None:
            assert response.status_code == expect, response.text
        else:
            assert response.is_success, response.text
        if response.is_success:
            assert envelope["status"] == "success"
            return envelope["data"]
        assert envelope["status"] == "error"
        return envelope["error"]

    def get(self, path: str, *, expect: int | None = None, **query: Any) -> Any:
        return self.request("GET", path, expect=expect, **query)

    def post(self, path: str, body: Any = None, *, expect: int | None = None) -> Any:
        return self.request("POST", path, {} if body is None else body, expect=expect)

    def patch(self, path: str, body: Any, *, expect: int | None = None) -> Any:
        return self.request("PATCH", path, body, expect=expect)

    def delete(self, path: str, *, expect: int | None = None) -> Any:
        return self.request("DELETE", path, expect=expect)

    def new_conversation(self, agent: "Api | None" = None, name: str = "Ana") -> dict[str, Any]:
        body: dict[str, Any] = {"lead": {"name": name, "email": f"{uuid4().hex[:8]}@example.com"}}
        if agent is not None:
            body["assignedAgentId"] = agent.user["id"]
        result: dict[str, Any] = self.post("/conversations", body)
        return result

    def send(self, conversation_id: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
        result: dict[str, Any] = self.post(
            f"/conversations/{conversation_id}/messages", {"contentText": text, **fields}
        )
        return result

    def upload(
        self, content: bytes = b"hello", name: str = "note.txt", *, expect: int | None = None
    ) -> dict[str, Any]:
        """The attachment; the `error` when `expect` is an error's status."""
        response = self.http.post("/attachments", files={"file": (name, content)})
        result: dict[str, Any] = self.unwrap(response, expect)
        return result

    def inbound(self, text: str, **fields: Any) -> dict[str, Any]:
        """With an API key: a lead's message."""
        body = {
            "externalId": uuid4().hex,
            "lead": {"name": "Luis", "externalId": uuid4().hex},
            "message": {"contentText": text},
            **fields,
        }
        result: dict[str, Any] = self.post("/inbound", body)
        return result

    @contextmanager
    def socket(self, **options: Any) -> Iterator["Socket"]:
        """An authenticated socket of this user."""
        with connect(f"{self.url.replace('http', 'ws', 1)}/ws", **options) as connection:
            socket = Socket(connection)
            reply = socket.call("auth", {"token": self.token})
            assert reply["ok"], reply
            yield socket


class Socket:
    """A socket that keeps what it reads until somebody waits for it."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.frames: list[dict[str, Any]] = []
        self._id = 0

    def call(self, event: str, data: Any = None, timeout: float = 20.0) -> dict[str, Any]:
        """Send a command and return its reply."""
        self._id += 1
        frame = {"id": self._id, "event": event}
        self.connection.send(json.dumps(frame if data is None else {**frame, "data": data}))
        return self.wait(lambda frame: frame.get("id") == self._id, timeout)

    def wait_event(self, event: str, timeout: float = 20.0) -> dict[str, Any]:
        return self.wait(lambda frame: frame.get("event") == event, timeout)

    def wait(self, matches: Any, timeout: float = 20.0) -> dict[str, Any]:
        """The first frame that matches, read or still to come; it is taken out."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            while seen < len(self.frames):
                if matches(self.frames[seen]):
                    return self.frames.pop(seen)
                seen += 1
            remaining = deadline - time.monotonic()
            assert remaining > 0, f"no such frame; there were {self.frames[-5:]}"
            try:
                self.read(remaining)
            except TimeoutError:
                raise AssertionError(f"no such frame; there were {self.frames[-5:]}") from None

    def read(self, timeout: float) -> None:
        frame = json.loads(self.connection.recv(timeout))
        if frame.get("event") == "ping":
            self.connection.send('{"event":"pong"}')
        self.frames.append(frame)
