"""What the benchmarks share: a server of their own, its CPU time, and a lean HTTP client."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import asyncpg
import psutil

SECRET = "a-secret-for-benchmarks-of-32-bytes-or-more"
PASSWORD = "correct horse"


class BenchServer:
    """`python -m messaging_server` with its own embedded Postgres in a throwaway folder."""

    def __init__(self, **environment: str) -> None:
        self.data_dir = Path(tempfile.mkdtemp(prefix="mb-"))
        self.data_dir.chmod(0o755)
        self._environment = {
            **os.environ,
            "MESSAGING_AUTH__SECRET": SECRET,
            "MESSAGING_AUTH__BCRYPT_ROUNDS": "4",
            "MESSAGING_LIMITS__WRITES_PER_MINUTE_PER_USER": "100000000",
            "MESSAGING_LIMITS__INBOUND_PER_MINUTE_PER_KEY": "100000000",
            **environment,
        }
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def start(self) -> None:
        """Returns at the first 200; `start_seconds` is how long that took."""
        started = time.perf_counter()
        command = [sys.executable, "-m", "messaging_server", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--data-dir", str(self.data_dir)],
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.strip().startswith("Address"):
                self.url = line.split()[1]
                break
        while True:
            assert self.process.poll() is None, self.process.stderr.read()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health/ready", timeout=5).close()
                break
            time.sleep(0.01)
        self.start_seconds = time.perf_counter() - started
        self.port = int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)

    def processes(self) -> list[psutil.Process]:
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time used so far, by the server and by Postgres."""
        used = {"server": 0.0, "postgres": 0.0}
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                kind = "server" if process.pid == self.process.pid else "postgres"
                used[kind] += times.user + times.system
                if kind == "postgres":  # ended backends are in their parent's account
                    used[kind] += times.children_user + times.children_system
        return used

    def resident_bytes(self) -> int:
        """Of the server process alone."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def dsn(self) -> str:
        from messaging_server.postgres import EmbeddedPostgres

        return EmbeddedPostgres(self.data_dir).dsn

    def call(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/v1{path}",
            data=json.dumps(body).encode() if body is not None else None,
            method=method,
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())["data"]

    def admin_token(self) -> str:
        """Registers the first user where there is none."""
        credentials = {"email": "admin@example.com", "password": PASSWORD}
        with contextlib.suppress(urllib.error.HTTPError):
            request = urllib.request.Request(
                f"{self.url}/api/v1/auth/register",
                data=json.dumps(credentials).encode(),
                headers={"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=60).close()
        token: str = self.call("POST", "/auth/login", credentials)["token"]
        return token


class Yardstick:
    """A plain message, stored by Postgres alone: what the machine is worth at this moment.

    Shared machines get slower and faster by half within minutes. Where the targets come from,
    such a statement took `EXPECTED_MICROSECONDS`.
    """

    EXPECTED_MICROSECONDS = 110
    CONNECTIONS = 8
    CONVERSATIONS = 1_000
    TABLES = """
        create table yard_conversations (
            id uuid primary key, last_seq integer not null default 0,
            last_message_at timestamptz, preview text, updated_at timestamptz
        );
        create table yard_messages (
            id uuid primary key, conversation_id uuid not null references yard_conversations,
            seq integer not null, sender_type text not null, content_text text not null,
            created_at timestamptz not null default now(),
            unique (conversation_id, seq)
        );
    """
    INSERT = """
        with c as (
            update yard_conversations
            set last_seq = last_seq + 1, last_message_at = now(), preview = left($3, 100),
                updated_at = now()
            where id = $1
            returning id, last_seq
        )
        insert into yard_messages (id, conversation_id, seq, sender_type, content_text)
        select $2, c.id, c.last_seq, 'AGENT', $3 from c
        returning seq, created_at
    """
    TEXT = "Thanks for writing in! I had a look at your order, and it left our warehouse today."

    def __init__(self, server: BenchServer) -> None:
        self._server = server
        self._ids = itertools.cycle([uuid4() for _ in range(self.CONVERSATIONS)])

    async def open(self) -> None:
        connect = [asyncpg.connect(self._server.dsn()) for _ in range(self.CONNECTIONS)]
        self._connections = await asyncio.gather(*connect)
        await self._connections[0].execute(self.TABLES)
        await self._connections[0].executemany(
            "insert into yard_conversations (id) values ($1)",
            [(next(self._ids),) for _ in range(self.CONVERSATIONS)],
        )
        await self.measure(400)

    async def measure(self, messages: int = 1_600) -> float:
        """µs of Postgres's CPU a message."""

        async def store(connection: asyncpg.Connection) -> None:
            for _ in range(messages // self.CONNECTIONS):
                await connection.fetchrow(self.INSERT, next(self._ids), uuid4(), self.TEXT)

        before = self._server.cpu_seconds()["postgres"]
        await asyncio.gather(*map(store, self._connections))
        used = self._server.cpu_seconds()["postgres"] - before
        return used / messages * 1e6

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()


class Connection(asyncio.Protocol):
    """One kept-alive HTTP/1.1 connection that costs its own process as little as possible."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = (
            f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\n"
        )

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answer = self._loop.create_future()
        await self._loop.create_connection(lambda: self, "127.0.0.1", self._port)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n"
        self._received = b""
        self._answer = self._loop.create_future()
        self._transport.write(head.encode() + body)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().index(b"content-length:") + 15
        if len(body) >= int(head[at:].partition(b"\r")[0]):
            self._answer.set_result((int(head[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError())

    def close(self) -> None:
        self._transport.close()


@contextlib.contextmanager
def cpu_of(server: BenchServer, operations: int, label: str) -> Iterator[dict[str, float]]:
    """Prints CPU a message, of server and Postgres, over what runs inside."""
    before, started = server.cpu_seconds(), time.perf_counter()
    result: dict[str, float] = {}
    yield result
    seconds = time.perf_counter() - started
    after = server.cpu_seconds()
    for kind in after:
        result[kind] = (after[kind] - before[kind]) / operations * 1e6
    result["total"] = result["server"] + result["postgres"]
    result["rate"] = operations / seconds
    print(
        f"{label:<34} {result['total']:8.0f} µs CPU  "
        f"(server {result['server']:6.0f}, Postgres {result['postgres']:6.0f})  "
        f"{result['rate']:8.0f}/s"
    )
