"""The command line: what works, and one clear line, without a traceback, for what does not."""

import asyncio
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from click.testing import CliRunner

from messaging_server.__main__ import main
from messaging_server.migrations import MIGRATION_LOCK
from messaging_server.postgres import EmbeddedPostgres
from tests.client import PASSWORD, Api, LiveServer, wait_until
from tests.conftest import fresh_database, live_server

PROJECT = Path(__file__).parent.parent
BAD_PORT = "postgresql://somebody@127.0.0.1:1/nothing"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the account of root's Postgres can reach, unlike `tmp_path`."""
    path = Path(tempfile.mkdtemp(prefix="cli-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def environment(**variables: str) -> dict[str, str]:
    """Ours without the settings of whoever runs the tests; from any folder it is this program."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("MESSAGING_", "DATABASE_", "OPENAI_"))
    }
    ours = {"MESSAGING_AUTH__BCRYPT_ROUNDS": "4", "PYTHONPATH": str(PROJECT)}
    return {**kept, **ours, **variables}


def run(*arguments: str, folder: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "messaging_server", *arguments]
    return subprocess.run(
        command,
        env=environment(**variables),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_here(
    monkeypatch: pytest.MonkeyPatch, *arguments: str, folder: Path, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Like `run`, but in this process: many quick refusals need no new one each."""
    cleared = {key: None for key in os.environ if key not in environment()}
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        result = CliRunner(env={**cleared, **variables}).invoke(main, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


def assert_one_line(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    """It failed, and said why on standard error in one line with these words."""
    assert result.returncode == 1, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("messaging_server: ")
    for word in words:
        assert word in lines[0]


# --- What works -------------------------------------------------------------------------------


def test_version(folder: Path) -> None:
    result = run("--version", folder=folder)
    assert result.returncode == 0
    assert version("messaging-server") in result.stdout


def test_help_names_every_command(folder: Path) -> None:
    result = run("--help", folder=folder)
    assert result.returncode == 0
    for word in ("serve", "demo", "create-user", "migrate", "check-config", "--port", "--data-dir"):
        assert word in result.stdout


def test_check_config(folder: Path) -> None:
    (folder / "config.toml").write_text("[server]\nport = 4000\nhost = '0.0.0.0'\n")
    result = run(
        "check-config",
        folder=folder,
        DATABASE_URL="postgresql://user:s3cret@db.example/app?password=0ther&sslmode=require",
        MESSAGING_AUTH__SECRET="top-secret-top-secret-top-secret",
        MESSAGING_AI__API_KEY="sk-hidden",
        MESSAGING_SERVER__PORT="5000",
    )
    assert result.returncode == 0, result.stderr
    for secret in ("s3cret", "0ther", "top-secret", "sk-hidden"):
        assert secret not in result.stdout + result.stderr
    assert "postgresql://user:********@db.example/app" in result.stdout
    assert "port = 5000" in result.stdout  # the environment over the file
    assert 'host = "0.0.0.0"' in result.stdout  # the file over the default
    options = run(
        "check-config", "--data-dir", "/x/y", folder=folder, MESSAGING_SERVER__DATA_DIR="/z"
    )
    assert 'data_dir = "/x/y"' in options.stdout  # the command line over all


def test_migrate_and_create_user(
    postgres: EmbeddedPostgres, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fresh_database(postgres, migrated=False) as dsn:

        def call(*arguments: str, url: str = dsn) -> "subprocess.CompletedProcess[str]":
            variables = {"DATABASE_URL": url, "MESSAGING_PASSWORD": PASSWORD}
            return run_here(monkeypatch, *arguments, folder=folder, **variables)

        prisma = dsn + "&schema=public&connection_limit=5&pgbouncer=true"
        first = run("migrate", folder=folder, DATABASE_URL=prisma)
        assert re.fullmatch(r"\d+ migrations run\.\n", first.stdout), first.stderr
        assert call("migrate", url=prisma).stdout == "The schema is up to date.\n"
        made = call("create-user", "eva@example.com", "--password", "another horse")
        assert made.stdout == "Created eva@example.com (ADMIN).\n"
        agent = call("create-user", "luis@example.com", "--name", "Luis")
        assert agent.stdout == "Created luis@example.com (SALES_AGENT).\n"
        second = call("create-user", "ana@example.com", "--role", "ADMIN")
        assert second.stdout == "Created ana@example.com (ADMIN).\n"
        assert_one_line(call("create-user", "EVA@example.com"), "A user with this e-mail exists")
        assert_one_line(
            call("create-user", "x@example.com", "--password", "short"), "password", "8"
        )
        assert_one_line(call("create-user", "nobody"), "email")
        assert_one_line(call("create-user", f"{'x' * 250}@example.com"), "email", "254")
        assert_one_line(call("create-user", "x@example.com", "--name", ""), "name", ">= 1")
        assert_one_line(call("create-user", "x@example.com", "--name", "x" * 201), "name", "200")
        with live_server(dsn) as server, Api(server.url) as nobody:
            nobody.log_in("eva@example.com", "another horse").get("/users", expect=200)
            assert nobody.log_in("luis@example.com").get("/auth/me")["name"] == "Luis"


def test_create_user_beside_a_running_server(folder: Path) -> None:
    """The embedded Postgres of the server is used; without a server it is started for it."""
    data_dir = str(folder / "data")
    create = ("create-user", "--data-dir", data_dir, "--password", PASSWORD)
    first = run(*create, "eva@example.com", folder=folder)
    assert first.stdout == "Created eva@example.com (ADMIN).\n", first.stderr
    server = LiveServer(environment(DATABASE_URL=""), "--data-dir", data_dir)
    try:
        server.start()
        beside = run(*create, "luis@example.com", "--role", "ADMIN", folder=folder)
        assert beside.stdout == "Created luis@example.com (ADMIN).\n", beside.stderr
        assert run("migrate", "--data-dir", data_dir, folder=folder).returncode == 0
        with Api(server.url) as nobody:
            for email in ("eva@example.com", "luis@example.com"):
                nobody.log_in(email).get("/users", expect=200)
        second = run("serve", "--port", "0", "--data-dir", data_dir, folder=folder)
        assert_one_line(second, data_dir, "in use", str(server.pid))
        secret = folder / "data" / "jwt.secret"
        assert secret.stat().st_mode & 0o777 == 0o600
        assert secret.read_text().strip() not in server.log()
    finally:
        server.close()


def test_the_welcome_and_the_end(postgres: EmbeddedPostgres, folder: Path) -> None:
    with fresh_database(postgres) as dsn, live_server(dsn) as server:
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        log = server.log()
        for words in (server.url, "create-user", "database: DATABASE_URL", "Ctrl-C"):
            assert words in log
        os.kill(server.pid, signal.SIGINT)
        assert server.wait() == 0
        assert server.log().endswith("Stopped.\n")
        server.assert_no_defects()


STARTS: dict[str, Callable[[Path], bool]] = {
    "the cluster is being made": lambda folder: (folder / "data").exists(),
    "Postgres starts": lambda folder: any(folder.rglob("postmaster.pid")),
}
MOMENTS: dict[str, Callable[[Path], bool]] = STARTS | {
    "the welcome is shown": lambda folder: "Ctrl-C" in (folder / "log").read_text(),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_end_before_the_start(folder: Path, number: int, moment: str) -> None:
    """The first signal ends it in order, whatever it is doing, and the others change nothing."""
    command = [sys.executable, "-m", "messaging_server", "serve", "--port", "0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--data-dir", str(folder / "data")],
            env=environment(DATABASE_URL=""),
            stderr=log,
        )
    try:
        wait_until(lambda: MOMENTS[moment](folder))
        for _ in range(3):
            server.send_signal(number)
            time.sleep(0.02)
        assert server.wait(60) == 0
    finally:
        server.kill()
    shown = (folder / "log").read_text()
    assert shown.endswith("Stopped.\n")
    assert "Traceback" not in shown
    assert not any(folder.rglob("postmaster.pid"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", STARTS)
@pytest.mark.parametrize("command", ["migrate", "create-user x@example.com"])
def test_a_command_cut_short(folder: Path, number: int, moment: str, command: str) -> None:
    """It ends quietly, leaves nothing running, and can be given again."""
    arguments = (*command.split(), "--data-dir", str(folder / "data"))
    variables = {"DATABASE_URL": "", "MESSAGING_PASSWORD": PASSWORD}
    process = subprocess.Popen(
        [sys.executable, "-m", "messaging_server", *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: MOMENTS[moment](folder))
        for _ in range(3):
            process.send_signal(number)
            time.sleep(0.02)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, shown) == (128 + number, "")
    assert not any(folder.rglob("postmaster.pid"))
    assert run(*arguments, folder=folder, **variables).returncode == 0


SLOW_IMPORT = """
import signal, sys, time

class Slow:
    def find_spec(self, name, path, target=None):
        if name == "click._compat":
            print("importing", flush=True)
            time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Slow())
"""
"""Python starts as in a terminal, also where the tests run in the background without Ctrl-C."""


def test_an_end_while_python_imports(folder: Path) -> None:
    """There is nothing to clean up yet, and nothing to say."""
    (folder / "sitecustomize.py").write_text(SLOW_IMPORT)
    process = subprocess.Popen(
        [sys.executable, "-m", "messaging_server", "check-config"],
        env=environment(PYTHONPATH=f"{folder}:{PROJECT}"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        shown, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT
    assert (shown, log) == ("", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_while_another_server_migrates(
    postgres: EmbeddedPostgres, folder: Path, number: int
) -> None:
    """It waits for the other one's lock, which may take long."""

    async def wait_and_stop(dsn: str) -> None:
        other = await asyncpg.connect(dsn)
        await other.execute("select pg_advisory_lock($1)", MIGRATION_LOCK)
        server = subprocess.Popen(  # noqa: ASYNC220  # nothing else runs in this loop
            [sys.executable, "-m", "messaging_server", "serve", "--port", "0"],
            env=environment(DATABASE_URL=dsn, MESSAGING_SERVER__DATA_DIR=str(folder)),
            stderr=subprocess.PIPE,
            text=True,
        )
        waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        try:
            while not await other.fetchval(waiting):
                assert server.poll() is None
                await asyncio.sleep(0.02)
            server.send_signal(number)
            _, log = server.communicate(timeout=60)
            assert (server.returncode, log) == (0, "Stopped.\n")
        finally:
            server.kill()
            await other.close()

    with fresh_database(postgres) as dsn:
        asyncio.run(wait_and_stop(dsn))


def test_the_command_for_the_first_user_finds_the_same_database(folder: Path) -> None:
    data_dir = folder / "my data"
    server = LiveServer(environment(DATABASE_URL=""), "--data-dir", str(data_dir))
    try:
        server.start()
        [hint] = re.findall(r"First user  python -m messaging_server (.*)", server.log())
        assert hint == f"create-user you@example.com --data-dir '{data_dir}'"
        made = run(*shlex.split(hint), folder=folder, DATABASE_URL="", MESSAGING_PASSWORD=PASSWORD)
        assert made.stdout == "Created you@example.com (ADMIN).\n", made.stderr
        with Api(server.url) as nobody:
            assert nobody.log_in("you@example.com").user["role"] == "ADMIN"
    finally:
        server.close()


def test_an_impatient_end(folder: Path) -> None:
    """Ctrl-C again and again: it still stops in order, Postgres last."""
    server = LiveServer(environment(DATABASE_URL=""), "--data-dir", str(folder / "data"))
    try:
        server.start()
        while server.is_running():
            os.kill(server.pid, signal.SIGINT)
            time.sleep(0.01)
        assert server.wait() == 0
        assert server.log().endswith("Stopped.\n")
        server.assert_no_defects()
        assert not list(folder.rglob("postmaster.pid"))
    finally:
        server.close()


def test_an_end_while_a_client_does_not_read(dsn: str) -> None:
    """It is cut off, and one line says so."""
    with live_server(dsn) as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /docs/openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        time.sleep(0.5)  # until all buffers are full
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait() == 0
        shown = server.log()
    assert "Cancel 1 running task(s)" in shown
    assert "raceback" not in shown
    assert shown.endswith("Stopped.\n")


# --- What does not ----------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), ("serve",), ("migrate",), ("check-config",)])
def test_an_unknown_key(folder: Path, command: tuple[str, ...]) -> None:
    config = folder / "my.toml"
    config.write_text("[server]\nprot = 1\n")
    result = run(*command, "--config", str(config), folder=folder)
    assert_one_line(result, "my.toml", "server.prot", "did you mean port?")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sever]\nport = 1", ["config.toml", "sever", "did you mean server?"]),
        ("[server]\nport = 'x'", ["config.toml", "server.port"]),
        ("[server]\nport = 70000", ["config.toml", "server.port", "65535"]),
        ("[auth]\nregistration = 'anyone'", ["auth.registration", "anyone"]),
        ("[auth]\nsecret = 'short'", ["auth.secret", "32"]),
        ("[server\nport = 1", ["config.toml", "TOML"]),
        ("x = " + "[" * 5_000, ["config.toml", "TOML"]),
        ("port = 1", ["config.toml", "port"]),
        ("[server]\nport = 1\nport = 2", ["config.toml", "TOML"]),
        ("[analysis]\nquiet_seconds = 90", ["max_wait_seconds"]),
        ("[ai]\nprovider = 'openai'", ["ai.model"]),
        ("[ai]\nprovider = 'openai'\nmodel = 'x'", ["OPENAI_API_KEY"]),
        ("[[server]]\nport = 1", ["config.toml", "server"]),
        ("[server]\nallowed_origins = ['example.com']", ["allowed_origins", "example.com"]),
        ("[server]\nbehind_proxy = ['my-proxy']", ["behind_proxy", "my-proxy"]),
    ],
)
def test_a_wrong_file(
    monkeypatch: pytest.MonkeyPatch, folder: Path, text: str, words: list[str]
) -> None:
    (folder / "config.toml").write_text(text)
    assert_one_line(run_here(monkeypatch, "check-config", folder=folder), *words)


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MESSAGING_SERVER__PORT", "x", ["server.port"]),
        ("MESSAGING_SERVER__PROT", "1", ["server.prot", "did you mean port?"]),
        ("MESSAGING_SEVER__PORT", "1", ["sever"]),
        ("MESSAGING_SERVER_PORT", "1", ["did you mean MESSAGING_SERVER__PORT?"]),
        ("MESSAGING_LOG__LEVEL", "LOUD", ["log.level"]),
        ("MESSAGING_AI__TAGS", "[", ["ai.tags"]),
        ("MESSAGING_AI__TAGS", '[{"name":""}]', ["ai.tags[", "name"]),
    ],
)
def test_a_wrong_variable(
    monkeypatch: pytest.MonkeyPatch, folder: Path, variable: str, value: str, words: list[str]
) -> None:
    result = run_here(monkeypatch, "check-config", folder=folder, **{variable: value})
    assert_one_line(result, variable, *words)


def test_a_data_browser_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "piccolo_admin" else found(name)
    )
    for command in ("check-config", "serve"):
        result = run_here(monkeypatch, command, folder=folder, MESSAGING_ADMIN__ENABLED="true")
        assert_one_line(result, "admin.enabled", "messaging-server[admin]")


def test_a_missing_file(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert_one_line(run_here(monkeypatch, "--config", "gone.toml", folder=folder), "gone.toml")
    (folder / "binary.toml").write_bytes(b"\xff\xfe\x00")
    assert_one_line(run_here(monkeypatch, "--config", "binary.toml", folder=folder), "binary.toml")
    assert_one_line(run_here(monkeypatch, "--config", ".", folder=folder), "can't be read")
    assert_one_line(run_here(monkeypatch, "--data-dir", "\udcff", folder=folder), "UTF-8")


def test_wrong_usage(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for arguments in (("fly",), ("--port", "x"), ("create-user",), ("--prot", "1")):
        result = run_here(monkeypatch, *arguments, folder=folder)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("field", ["email", "name", "password"])
def test_what_is_no_utf_8(folder: Path, field: str) -> None:
    fields = {"email": "eva@example.com", "name": "Eva", "password": PASSWORD}
    fields[field] = f"\udcff{fields[field]}"
    arguments = ("create-user", fields["email"], "--name", fields["name"])
    where = ("--data-dir", str(folder / "data"))
    result = run(*arguments, *where, folder=folder, MESSAGING_PASSWORD=fields["password"])
    assert_one_line(result, field, "UTF-8")
    assert not (folder / "data").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("arguments", ["check-config", "--help", "demo --help"])
def test_no_room_for_what_is_printed(folder: Path, arguments: str) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "messaging_server", *arguments.split()],
            env=environment(),
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == "messaging_server: can't write (No space left on device)\n"


def test_a_port_out_of_range(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    result = run_here(monkeypatch, "--port", "70000", folder=folder)
    assert_one_line(result, "server.port")
    assert "environment" not in result.stderr


def test_a_taken_port(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("--port", port, "--data-dir", str(folder / "data"), folder=folder)
        assert_one_line(result, port, "--port")
    assert not (folder / "data").exists()


@pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "a" * 300])
def test_an_unknown_host(folder: Path, host: str) -> None:
    result = run("--host", host, "--data-dir", str(folder / "data"), folder=folder)
    assert_one_line(result, host, "--host")


@pytest.mark.parametrize("command", ["serve", "migrate", "create-user"])
def test_an_unusable_data_dir(folder: Path, command: str) -> None:
    """A file stands where the directory should be: that stops even root."""
    (folder / "file").write_text("")
    arguments = {
        "serve": ["--port", "0"],
        "create-user": ["eva@example.com", "--password", PASSWORD],
    }
    where = str(folder / "file" / "data")
    result = run(command, "--data-dir", where, *arguments.get(command, []), folder=folder)
    assert_one_line(result, where)


def test_a_foreign_data_dir(folder: Path) -> None:
    """A database of another major version is refused, and left alone."""
    cluster = folder / "data" / "postgres" / "data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("9\n")
    result = run("serve", "--port", "0", "--data-dir", str(folder / "data"), folder=folder)
    assert_one_line(result, "9")
    assert (cluster / "PG_VERSION").read_text() == "9\n"


@pytest.mark.parametrize(
    "url",
    [
        BAD_PORT,
        "mysql://localhost/x",
        "postgresql://[bad/x",
        "postgresql://h:port/x",
        "postgresql://127.0.0.1:65536/x",
        "nonsense",
    ],
)
def test_no_database(folder: Path, url: str) -> None:
    for command in (["serve", "--port", "0"], ["migrate"]):
        result = run(
            *command, folder=folder, DATABASE_URL=url, MESSAGING_SERVER__DATA_DIR=str(folder)
        )
        assert result.returncode == 1
        assert "Traceback" not in result.stderr
        last = result.stderr.strip().splitlines()[-1]
        assert last.startswith("messaging_server: ")
        assert "database" in last.lower()


def test_a_database_that_does_not_answer(folder: Path) -> None:
    """Something else listens there, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://somebody@127.0.0.1:{mute.getsockname()[1]}/nothing"
        where = {"MESSAGING_SERVER__DATA_DIR": str(folder)}
        result = run("migrate", folder=folder, DATABASE_URL=url, **where)
    assert_one_line(result, "The database can't be reached: it does not answer")


def test_a_database_of_a_newer_version(postgres: EmbeddedPostgres, folder: Path) -> None:
    with fresh_database(postgres) as dsn:
        execute(dsn, "insert into migration (name, app_name, ran_on)"
                     " values ('2999-01-01T00:00:00:000000', 'messaging', now())")  # fmt: skip
        result = run("migrate", folder=folder, DATABASE_URL=dsn)
        assert_one_line(result, "newer")


def execute(dsn: str, sql: str) -> None:
    async def run_sql() -> None:
        connection: Any = await asyncpg.connect(dsn)
        await connection.execute(sql)
        await connection.close()

    asyncio.run(run_sql())


def test_logs_are_json_and_hold_no_secret(postgres: EmbeddedPostgres) -> None:
    settings = {"MESSAGING_LOG__LEVEL": "DEBUG"}
    with fresh_database(postgres) as dsn, live_server(dsn, **settings) as server:
        with Api.first_admin(server.url) as admin, admin.new_key() as key:
            key.inbound("a very private text")
            admin.post(
                "/auth/login", {"email": "admin@example.com", "password": "wr0ng-horse"}, expect=401
            )
            tokens = [str(admin.token), str(key.token)]
        server.stop()
        lines = [line for line in server.log().splitlines() if line.startswith("{")]
        assert any(json.loads(line)["message"] == "request" for line in lines)
        for secret in (PASSWORD, "wr0ng-horse", "a very private text", *tokens):
            assert secret not in server.log()
