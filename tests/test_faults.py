"""What happens to those who are served when something breaks: no acknowledged message is lost.

The servers here run as users run them, most of them with an embedded Postgres of their own.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer, together, wait_until
from tests.conftest import SECRET, fresh_database, live_server

SENDERS = 8
STOP_SECONDS = 10 + 5  # and some more on a busy machine
RECOVERY_SECONDS = 10.0


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """Not in `tmp_path`: root's is closed to the account that runs Postgres."""
    parent = Path(tempfile.mkdtemp(prefix="faults-"))
    parent.chmod(0o711)
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def embedded(data_dir: Path) -> Iterator[LiveServer]:
    """A server with a Postgres inside, which the tests break one after the other."""
    settings = {
        "DATABASE_URL": "",
        "MESSAGING_SERVER__DATA_DIR": str(data_dir),
        "MESSAGING_LIMITS__ENABLED": "false",
        "MESSAGING_AUTH__SECRET": SECRET,
        "MESSAGING_AUTH__BCRYPT_ROUNDS": "4",
    }
    server = LiveServer({**os.environ, **settings})
    try:
        server.start()
        yield server
        server.assert_no_defects()
    finally:
        server.close()


@pytest.fixture(scope="module")
def admin(embedded: LiveServer) -> Iterator[Api]:
    with Api.first_admin(embedded.url) as admin:
        yield admin


class Load:
    """Senders in a few conversations, who remember what was acknowledged."""

    def __init__(self, api: Api, conversations: int = 4) -> None:
        self._api = api
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(SENDERS)]
        self.conversations = [api.new_conversation()["id"] for _ in range(conversations)]
        self.acknowledged: dict[tuple[str, str], dict[str, Any]] = {}
        self.refused: list[httpx.Response] = []
        self.cut_off = 0
        self.slowest_seconds = 0.0

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request never ended"

    def _send(self) -> None:
        number = 0
        with httpx.Client(headers=self._api.http.headers, timeout=45) as http:
            while not self._stop.is_set():
                conversation = self.conversations[number % len(self.conversations)]
                number += 1
                self._send_one(http, conversation)

    def _send_one(self, http: httpx.Client, conversation: str) -> None:
        text = uuid4().hex
        body = {"contentText": text, "clientMessageId": text}
        started = time.monotonic()
        try:
            url = f"{self._api.url}/api/v1/conversations/{conversation}/messages"
            response = http.post(url, json=body)
        except httpx.TransportError:
            self.cut_off += 1
            self._stop.wait(0.02)
            return
        finally:
            self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - started)
        if response.status_code == 201:
            self.acknowledged[conversation, text] = response.json()["data"]
        else:
            self.refused.append(response)
            self._stop.wait(0.02)

    def wait_for(self, count: int, seconds: float = 30.0) -> None:
        """Until so many more messages are acknowledged."""
        goal = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= goal, seconds)

    def check(self) -> None:
        """All that was acknowledged is there, once, as acknowledged, and no number is missing."""
        for conversation in self.conversations:
            log = whole_log(self._api, conversation)
            assert [message["seq"] for message in log] == list(range(1, len(log) + 1))
            texts = [message["contentText"] for message in log]
            assert len(set(texts)) == len(texts)
            stored = {message["contentText"]: message for message in log}
            for (where, text), message in self.acknowledged.items():
                assert where != conversation or stored[text] == message


def whole_log(api: Api, conversation: str) -> list[dict[str, Any]]:
    log: list[dict[str, Any]] = []
    while True:
        path = f"/conversations/{conversation}/messages"
        page = api.get(path, afterSeq=log[-1]["seq"] if log else 0, limit=100)["items"]
        if not page:
            return log
        log += page


def assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"] == "unavailable"
    assert int(response.headers["retry-after"]) >= 1


def postmaster_of(data_dir: Path) -> int:
    return int((data_dir / "postgres/data/postmaster.pid").read_text().splitlines()[0])


def backends_of(postmaster: int) -> list[int]:
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text()
    return [int(pid) for pid in children.split()]


# --- Postgres goes away -----------------------------------------------------------------------


def test_postgres_is_killed_under_load(embedded: LiveServer, admin: Api, data_dir: Path) -> None:
    pid = embedded.pid
    with Load(admin) as load:
        load.wait_for(50)
        os.kill(postmaster_of(data_dir), signal.SIGKILL)
        wait_until(lambda: load.refused)
        load.wait_for(50, RECOVERY_SECONDS)
    for response in load.refused:
        assert_unavailable(response)
    assert load.cut_off == 0
    assert embedded.pid == pid
    load.check()
    assert httpx.get(f"{embedded.url}/health/ready").status_code == 200


def test_a_backend_is_killed_under_load(embedded: LiveServer, admin: Api, data_dir: Path) -> None:
    """Postgres restarts itself: the connections break, and come back."""
    with Load(admin) as load:
        load.wait_for(50)
        os.kill(max(backends_of(postmaster_of(data_dir))), signal.SIGKILL)
        wait_until(lambda: load.refused)
        load.wait_for(50, RECOVERY_SECONDS)
    for response in load.refused:
        assert_unavailable(response)
    load.check()


@contextlib.contextmanager
def frozen(data_dir: Path) -> Iterator[None]:
    """Postgres as when its machine is paused."""
    postmaster = postmaster_of(data_dir)
    pids = [postmaster, *backends_of(postmaster)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the backends")
def test_readiness_while_postgres_hangs(embedded: LiveServer, admin: Api, data_dir: Path) -> None:
    """The question meets a connection that is free, and is not answered there."""
    assert admin.get("/auth/me")
    with frozen(data_dir):
        assert_unavailable(httpx.get(f"{embedded.url}/health/ready", timeout=20))
    wait_until(lambda: httpx.get(f"{embedded.url}/health/ready").status_code == 200)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the backends")
def test_postgres_hangs_and_goes_on(embedded: LiveServer, admin: Api, data_dir: Path) -> None:
    """As when a machine is paused: what needs no database is answered, and nothing is lost."""
    with Load(admin) as load:
        load.wait_for(50)
        with frozen(data_dir):
            assert httpx.get(f"{embedded.url}/health/live", timeout=2).status_code == 200
            assert_unavailable(httpx.get(f"{embedded.url}/health/ready", timeout=20))
        load.wait_for(50, RECOVERY_SECONDS)
    for response in load.refused:
        assert_unavailable(response)
    load.check()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to find the backends")
def test_the_end_while_postgres_hangs(embedded: LiveServer, admin: Api, data_dir: Path) -> None:
    """It is not waited for longer than ten seconds, and nothing is left of it or lost."""
    with Load(admin) as load:
        load.wait_for(50)
    with frozen(data_dir):
        pids = backends_of(postmaster_of(data_dir))
        started = time.monotonic()
        assert embedded.stop() == 0
        assert time.monotonic() - started < STOP_SECONDS
        wait_until(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in pids))
    embedded.start()
    load.check()


# --- The server goes away ---------------------------------------------------------------------


def test_the_server_is_killed_ten_times_under_load(embedded: LiveServer, admin: Api) -> None:
    loads = []
    for number in range(10):
        with Load(admin, conversations=2) as load:
            load.wait_for(20 + 7 * number)
            embedded.kill()
            embedded.start()
            load.wait_for(5)
        loads.append(load)
        assert {response.status_code for response in load.refused} <= {503}
    for load in loads:
        load.check()


def test_sigterm_under_load(postgres: EmbeddedPostgres) -> None:
    """Whoever is being answered gets the answer; it takes less than ten seconds; exit code 0."""
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn) as server,
        Api.first_admin(server.url) as admin,
    ):
        with Load(admin) as load:
            load.wait_for(50)
            started = time.monotonic()
            code = server.stop()
            assert time.monotonic() - started < RECOVERY_SECONDS
        assert code == 0
        for response in load.refused:
            assert_unavailable(response)
        server.assert_no_defects()
        server.start()
        load.check()


HANGING_DISK = """
import os, pathlib, time

def hang(_descriptor):
    pathlib.Path(__file__).with_name("hangs").touch()
    time.sleep(120)

os.fsync = hang
"""


def test_a_thread_that_hangs_is_left_behind(postgres: EmbeddedPostgres, tmp_path: Path) -> None:
    """Nobody can end it, neither the request that waits for it nor Python."""
    (tmp_path / "sitecustomize.py").write_text(HANGING_DISK)
    variables = {"PYTHONPATH": str(tmp_path), "MESSAGING_SERVER__SHUTDOWN_SECONDS": "1"}
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn, **variables) as server,
        Api.first_admin(server.url) as admin,
        ThreadPoolExecutor(1) as sender,
    ):
        upload = sender.submit(admin.http.post, "/attachments", files={"file": ("a.txt", b"a")})
        wait_until((tmp_path / "hangs").exists)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < STOP_SECONDS
        assert_unavailable(upload.result())


def test_what_is_not_done_in_time_is_told_so(postgres: EmbeddedPostgres) -> None:
    """A body that stops: the server does not wait for its end, and the client may try again."""
    with (
        fresh_database(postgres) as dsn,
        live_server(
            dsn,
            MESSAGING_SERVER__SHUTDOWN_SECONDS="1",
            MESSAGING_SERVER__ALLOWED_ORIGINS="https://app.example",
        ) as server,
        Api.first_admin(server.url) as admin,
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
    ):
        head = (
            f"POST /api/v1/leads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {admin.token}\r\n"
            "Origin: https://app.example\r\n"
            "Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"name":')
        admin.get("/auth/me")  # the server has seen it
        assert server.stop() == 0
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 503 "), answer
        assert b'"code":"unavailable"' in answer
        assert b"\r\nretry-after: 1\r\n" in answer
        assert b"\r\nx-request-id: " in answer
        assert b"\r\naccess-control-allow-origin: https://app.example\r\n" in answer
        assert "Traceback" not in server.log()


def test_sigterm_with_an_embedded_postgres(embedded: LiveServer, data_dir: Path) -> None:
    postmaster = postmaster_of(data_dir)
    started = time.monotonic()
    assert embedded.stop() == 0
    assert time.monotonic() - started < RECOVERY_SECONDS
    assert not Path(f"/proc/{postmaster}").exists()
    assert not (data_dir / "postgres/data/postmaster.pid").exists()
    embedded.start()


# --- Too little of something ------------------------------------------------------------------


@contextlib.contextmanager
def locked(dsn: str, table: str) -> Iterator[None]:
    """Nobody else can read or write `table`."""
    loop = asyncio.new_event_loop()

    async def lock() -> asyncpg.Connection:
        connection = await asyncpg.connect(dsn)
        await connection.execute(f"begin; lock table {table} in access exclusive mode")
        return connection

    try:
        connection = loop.run_until_complete(lock())
        yield
        loop.run_until_complete(connection.close())
    finally:
        loop.close()


def waiting(dsn: str) -> int:
    """How many statements wait for a lock."""
    sql = "select count(*) from pg_locks where not granted"
    return int(asyncio.run(fetch_value(dsn, sql)))


async def fetch_value(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def test_a_full_pool_answers_503(postgres: EmbeddedPostgres) -> None:
    """All connections wait for a lock: further requests are told so, and nothing hangs after."""
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn, MESSAGING_DATABASE__POOL_SIZE="2") as server,
        Api.first_admin(server.url) as admin,
    ):
        conversations = [admin.new_conversation()["id"] for _ in range(6)]
        answers: list[httpx.Response] = []
        ready: list[httpx.Response] = []

        def send(conversation: str) -> None:
            path = f"/conversations/{conversation}/messages"
            answers.append(admin.http.post(path, json={"contentText": "patience"}))

        def ask() -> None:
            ready.append(httpx.get(f"{server.url}/health/ready", timeout=12))

        threads = [threading.Thread(target=send, args=(each,)) for each in conversations]
        with locked(dsn, "messages"):
            for thread in threads:
                thread.start()
            wait_until(lambda: waiting(dsn) == 2)
            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            assert httpx.get(f"{server.url}/health/live", timeout=2).status_code == 200
            wait_until(lambda: len(answers) == 4 and ready, 12)
            assert_unavailable(ready[0])
        for thread in threads:
            thread.join(15)
        assert sorted(answer.status_code for answer in answers) == [201, 201, 503, 503, 503, 503]
        for answer in answers:
            if answer.status_code != 201:
                assert_unavailable(answer)
        logs = [whole_log(admin, each) for each in conversations]
        assert sorted(len(log) for log in logs) == [0, 0, 0, 0, 1, 1]
        server.assert_no_defects()


def test_messages_behind_one_that_is_held_up_are_told_so(postgres: EmbeddedPostgres) -> None:
    """Those of one conversation wait for each other, but not for ever."""
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn) as server,
        Api.first_admin(server.url) as admin,
    ):
        conversation = admin.new_conversation()["id"]
        path = f"/conversations/{conversation}/messages"
        answers: list[httpx.Response] = []

        def send() -> None:
            answers.append(admin.http.post(path, json={"contentText": "patience"}))

        threads = [threading.Thread(target=send) for _ in range(4)]
        with locked(dsn, "messages"):
            for thread in threads:
                thread.start()
            wait_until(lambda: len(answers) == 3, 12)
        for thread in threads:
            thread.join(15)
        assert sorted(answer.status_code for answer in answers) == [201, 503, 503, 503]
        assert [message["seq"] for message in whole_log(admin, conversation)] == [1]
        server.assert_no_defects()


def test_first_starts_at_the_same_moment_migrate_once(postgres: EmbeddedPostgres) -> None:
    with fresh_database(postgres, migrated=False) as dsn, contextlib.ExitStack() as stack:
        together([lambda: stack.enter_context(live_server(dsn)) for _ in range(3)], threads=3)

        twice = "select count(*) - count(distinct name) from migration"
        assert asyncio.run(fetch_value(dsn, twice)) == 0
