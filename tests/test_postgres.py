"""The embedded Postgres, with real processes: starts, crashes, refusals, and what is left.

As root every test runs twice, the second time as an ordinary user: see the last test.
"""

import asyncio
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from messaging_server import postgres
from messaging_server.errors import DataDirectoryInUse, StartupError
from messaging_server.postgres import EmbeddedPostgres
from messaging_server.postgres_binaries import copy_for_everyone, find_binaries

AS_ROOT = os.geteuid() == 0
LINUX = sys.platform == "linux"
PROGRAM = Path(__file__).with_name("run_postgres.py")
PROJECT = PROGRAM.parent.parent

Make = Callable[..., EmbeddedPostgres]
Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not in `tmp_path`: root's is closed to the account that runs Postgres."""
    parent = Path(tempfile.mkdtemp(prefix="embedded-"))
    parent.chmod(0o711)
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture(scope="module")
def ready_made() -> Iterator[Path]:
    """The data directory of a server that has run and stopped."""
    parent = Path(tempfile.mkdtemp(prefix="embedded-"))
    parent.chmod(0o711)
    server = EmbeddedPostgres(parent / "data")
    server.start()
    server.stop()
    yield parent / "data"
    shutil.rmtree(parent)


@pytest.fixture
def has_run(ready_made: Path, data_dir: Path) -> None:
    """`data_dir` has its database already, which is quicker than to make it."""
    subprocess.run(["cp", "-a", ready_made, data_dir], check=True)


@pytest.fixture
def make(data_dir: Path) -> Iterator[Make]:
    """Servers in this process, stopped at the end."""
    made: list[EmbeddedPostgres] = []

    def make_server(where: Path = data_dir) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(where))
        return made[-1]

    yield make_server
    for server in made:
        server.stop()


@pytest.fixture
def run(data_dir: Path) -> Iterator[Run]:
    """Servers as processes of their own, killed at the end; a dead one's Postgres follows."""
    started: list[subprocess.Popen[str]] = []

    def run_server(*options: str) -> "subprocess.Popen[str]":
        command = [sys.executable, str(PROGRAM), str(data_dir), *options]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), *sys.path])}
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        started.append(process)
        return process

    yield run_server
    for process in started:
        process.kill()
        process.communicate()


def query(server: EmbeddedPostgres, sql: str) -> object:
    async def fetch() -> object:
        connection = await asyncpg.connect(**server.connect_arguments())
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(fetch())


def remember(server: EmbeddedPostgres, number: int) -> None:
    query(server, "create table if not exists kept (number int)")
    query(server, f"insert into kept values ({number})")


def remembered(server: EmbeddedPostgres) -> object:
    return query(server, "select array_agg(number order by number) from kept")


def wait_until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def wait_ready(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def pid_file(data_dir: Path) -> Path:
    return data_dir / "postgres/data/postmaster.pid"


def postmaster(data_dir: Path) -> int:
    return int(pid_file(data_dir).read_text().split("\n")[0])


def is_alive(pid: int) -> bool:
    """A zombie, which only its parent can end, counts as dead."""
    command = ["ps", "-o", "stat=", "-p", str(pid)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_starts_stops_and_keeps_data(make: Make, data_dir: Path) -> None:
    first = make()
    first.start()
    remember(first, 1)
    pid = postmaster(data_dir)
    first.stop()
    first.stop()
    assert not is_alive(pid)
    assert not pid_file(data_dir).exists()

    second = make()
    second.start()
    assert remembered(second) == [1]


@pytest.mark.usefixtures("has_run")
def test_durable_and_reachable_by_socket_only(make: Make) -> None:
    server = make()
    server.start()
    assert query(server, "select current_setting('fsync')") == "on"
    assert query(server, "select current_setting('synchronous_commit')") == "on"
    assert query(server, "select current_setting('listen_addresses')") == ""
    assert Path(server.connect_arguments()["host"]).stat().st_mode & 0o777 == 0o700
    found = subprocess.run(
        [find_binaries().folder / "psql", server.dsn, "-Atc", "select current_user"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "messaging\n"


@pytest.mark.parametrize("language", [None, "C", "C.UTF-8"])
def test_text_is_alike_in_every_environment(
    make: Make, monkeypatch: pytest.MonkeyPatch, language: str | None
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    if language:
        monkeypatch.setenv("LC_ALL", language)
    monkeypatch.setenv("PGPORT", "1")
    server = make()
    server.start()
    assert query(server, "select lower('ÉÑ')") == "éñ"
    words = query(server, "select to_tsvector('spanish', '¿Cuánto? ¡Hola! Señor—él')")
    assert words == query(server, "select to_tsvector('spanish', 'Cuánto  Hola  Señor él')")


@pytest.mark.usefixtures("has_run")
def test_a_second_server_is_refused(make: Make, run: Run, data_dir: Path) -> None:
    holder = run()
    wait_ready(holder)
    pid = postmaster(data_dir)
    line = f"The data directory {data_dir} is in use by another messaging_server (pid {holder.pid})"
    with pytest.raises(DataDirectoryInUse, match=re.escape(line)):
        make().start()
    assert is_alive(pid)
    holder.communicate()
    assert holder.returncode == 0
    assert not is_alive(pid)
    make().start()


@pytest.mark.usefixtures("has_run")
def test_sigterm_stops_everything(run: Run, data_dir: Path) -> None:
    server = run()
    wait_ready(server)
    pid = postmaster(data_dir)
    server.terminate()
    assert server.wait(10) == 0
    assert not is_alive(pid)


def test_sigterm_while_starting(make: Make, run: Run, data_dir: Path) -> None:
    server = run()
    wait_until(lambda: any(data_dir.glob("postgres/unfinished-*/*")))
    server.terminate()
    assert server.wait(10) == 0
    assert not pid_file(data_dir).exists()
    make().start()


@pytest.mark.usefixtures("has_run")
def test_killed_server_loses_nothing(make: Make, run: Run, data_dir: Path) -> None:
    for round_number in range(3):
        wait_ready(killed := run())
        remember(EmbeddedPostgres(data_dir), round_number)
        killed.kill()
        killed.wait()
    server = make()
    server.start()
    assert remembered(server) == [0, 1, 2]


@pytest.mark.usefixtures("has_run")
@pytest.mark.skipif(not LINUX, reason="PR_SET_PDEATHSIG")
def test_postgres_ends_with_a_killed_server(run: Run, data_dir: Path) -> None:
    wait_ready(killed := run())
    pid = postmaster(data_dir)
    killed.kill()
    wait_until(lambda: not is_alive(pid))


@pytest.mark.usefixtures("has_run")
def test_adopts_a_survivor_and_stops_it(make: Make, run: Run, data_dir: Path) -> None:
    wait_ready(killed := run("--survivor"))
    pid = postmaster(data_dir)
    killed.kill()
    killed.wait()
    assert is_alive(pid)

    server = make()
    server.start()
    remember(server, 1)
    assert postmaster(data_dir) == pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    server.ensure_running()
    wait_until(lambda: pid_file(data_dir).exists() and postmaster(data_dir) != pid)
    server.stop()
    assert not pid_file(data_dir).exists()

    wait_ready(killed := run("--survivor"))
    pid = postmaster(data_dir)
    killed.kill()
    killed.wait()
    server = make()
    server.start()
    server.stop()
    assert not is_alive(pid)


def answers(server: EmbeddedPostgres) -> bool:
    try:
        return query(server, "select true") is True
    except (OSError, asyncpg.PostgresError):
        return False


def revived(server: EmbeddedPostgres) -> bool:
    """As its watcher asks: a try may fail while backends of the old postmaster still end."""
    server.ensure_running()
    return answers(server)


@pytest.mark.usefixtures("has_run")
def test_revives_a_killed_postmaster(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    for number in range(3):
        remember(server, number)
        pid = postmaster(data_dir)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]  # mypy#12557
        server.ensure_running()
        server.ensure_running()
        wait_until(lambda: revived(server), seconds=30)
        assert postmaster(data_dir) != pid
    server.ensure_running()
    assert remembered(server) == [0, 1, 2]
    server.stop()
    server.ensure_running()
    assert not pid_file(data_dir).exists()


@pytest.mark.usefixtures("has_run")
def test_a_failed_revival_is_tried_again(
    make: Make, data_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(postgres, "_REVIVAL_PAUSE_SECONDS", 0.1)
    server = make()
    server.start()
    cluster, aside = data_dir / "postgres/data", data_dir / "aside"
    pid = postmaster(data_dir)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    cluster.rename(aside)
    server.ensure_running()
    wait_until(lambda: "The database is gone" in caplog.text)
    assert not cluster.exists()
    aside.rename(cluster)

    def revived() -> bool:
        server.ensure_running()
        return answers(server)

    wait_until(revived)


@pytest.mark.usefixtures("has_run")
@pytest.mark.parametrize("revive", [False, True])
def test_postgres_outlives_the_thread_that_called(make: Make, data_dir: Path, revive: bool) -> None:
    server = make()
    threads = [threading.Thread(target=server.start)]
    threads[0].start()
    threads[0].join()
    pid = postmaster(data_dir)
    if revive:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid))
        threads.append(threading.Thread(target=server.ensure_running))
        threads[1].start()
        threads[1].join()
        wait_until(lambda: answers(server))
        pid = postmaster(data_dir)
    with pytest.raises(AssertionError, match="never"):
        wait_until(lambda: not is_alive(pid), seconds=0.5)


def postgres_user(data_dir: Path) -> dict[str, object]:
    if not AS_ROOT:
        return {}
    found = (data_dir / "postgres").stat()
    return {"user": found.st_uid, "group": found.st_gid, "extra_groups": []}


@pytest.mark.usefixtures("has_run")
def test_stale_pid_file_naming_a_live_process(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    remember(server, 1)
    lines = pid_file(data_dir).read_text().split("\n")
    server.stop()
    bystander = subprocess.Popen(["sleep", "60"], **postgres_user(data_dir))  # type: ignore[call-overload]
    try:
        pid_file(data_dir).write_text("\n".join([str(bystander.pid), *lines[1:]]))
        server = make()
        server.start()
        assert remembered(server) == [1]
        server.stop()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.usefixtures("has_run")
def test_stale_pid_file_and_a_server_that_fails(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    server.stop()
    (data_dir / "postgres/data/global/pg_control").unlink()
    with pytest.raises(StartupError, match=r"Postgres did not start: .*pg_control"):
        make().start()
    with pytest.raises(StartupError, match=r"Postgres did not start: .*pg_control"):
        make().start()


@pytest.mark.usefixtures("has_run")
def test_another_major_version_is_refused(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    server.stop()
    version = data_dir / "postgres/data/PG_VERSION"
    version.write_text("13\n")
    with pytest.raises(StartupError, match=r"made by Postgres 13, but only .* dump") as caught:
        make().start()
    assert "\n" not in str(caught.value)
    version.write_text("nonsense")
    with pytest.raises(StartupError, match="damaged"):
        make().start()


def test_uses_the_version_that_made_the_database(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        older = find_binaries(16)
    except StartupError:
        pytest.skip("only one version of Postgres is installed")
    with monkeypatch.context() as patched:
        patched.setattr(postgres, "find_binaries", lambda _: older)
        server = make()
        server.start()
        server.stop()
    server = make()
    server.start()
    assert query(server, "select current_setting('server_version_num')::int / 10000") == 16


def test_without_the_wheel(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("messaging_server.postgres_binaries._wheel_folders", lambda: iter(()))
    try:
        version = find_binaries().version
    except StartupError:
        pytest.skip("this machine has no Postgres but the wheel's")
    server = make()
    server.start()
    assert str(query(server, "show server_version")).startswith(version)
    assert query(server, "select lower('ÉÑ')") == "éñ"


def test_long_path(make: Make, data_dir: Path) -> None:
    where = data_dir.joinpath(*["a-rather-long-directory"] * 6)
    server = make(where)
    server.start()
    sockets = Path(server.connect_arguments()["host"])
    assert not sockets.is_relative_to(where)
    assert sockets.stat().st_mode & 0o777 == 0o700
    server.stop()
    assert not sockets.exists()

    sockets.symlink_to(data_dir)
    try:
        with pytest.raises(StartupError, match="belongs to another user"):
            make(where).start()
    finally:
        sockets.unlink()


def test_interrupted_initdb(make: Make, run: Run, data_dir: Path) -> None:
    for _ in range(2):
        killed = run()
        wait_until(lambda: any(data_dir.glob("postgres/unfinished-*/base/*")))
        killed.kill()
        killed.wait()
        assert not (data_dir / "postgres/data").exists()
    server = make()
    server.start()
    remember(server, 1)


def test_no_room_for_the_database(make: Make, run: Run) -> None:
    full = run("--file-size-limit", "100000")
    _, said = full.communicate()
    assert full.returncode == 1
    assert said.count("\n") == 1
    assert "The database could not be made: " in said
    assert "File too large" in said
    make().start()


def test_a_file_instead_of_a_directory(make: Make, data_dir: Path) -> None:
    data_dir.write_text("")
    with pytest.raises(StartupError, match="is not a directory"):
        make().start()
    with pytest.raises(StartupError, match=r"can't be used: Not a directory"):
        make(data_dir / "below").start()


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_unwritable_directory(make: Make, data_dir: Path) -> None:
    data_dir.mkdir(mode=0o500)
    (data_dir.parent / "closed").mkdir(mode=0)
    for where in (data_dir / "below", data_dir.parent / "closed/below", Path("/proc/below")):
        with pytest.raises(StartupError, match=f"data directory {where} can't be used: "):
            make(where).start()
    (data_dir.parent / "closed").chmod(0o700)


@pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as someone else")
def test_root_needs_a_directory_that_others_may_enter(make: Make, data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(
        StartupError, match=rf"may not enter {closed}: allow it \(chmod o\+x {closed}\)"
    ):
        make(closed / "below").start()
    assert closed.stat().st_mode & 0o777 == 0o700
    (empty := data_dir / "empty").mkdir(mode=0o700)
    make(empty).start()  # with nothing in it, it becomes ours


@pytest.mark.usefixtures("has_run")
@pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as someone else")
def test_root_runs_postgres_as_the_owner_of_the_database(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    server.stop()
    nobody = pwd.getpwnam("nobody")
    for path in ((home := data_dir / "postgres"), *home.rglob("*")):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    server = make()
    server.start()
    assert pid_file(data_dir).stat().st_uid == nobody.pw_uid


@pytest.mark.skipif(not AS_ROOT, reason="only root runs Postgres as someone else")
def test_binaries_out_of_reach_are_copied(
    make: Make, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = data_dir.parent / "closed"
    copied = copy_for_everyone(find_binaries(), closed)
    closed.chmod(0o700)
    monkeypatch.setattr(postgres, "find_binaries", lambda _: copied)
    for _ in range(2):
        server = make()
        server.start()
        server.stop()
    assert [path.name for path in (data_dir / "postgres-binaries").iterdir()] == [copied.version]


@pytest.mark.usefixtures("has_run")
def test_the_log_quotes_no_client(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    query(server, "create table words (word text unique)")
    with pytest.raises(asyncpg.UniqueViolationError):
        query(server, "insert into words values ('hush'), ('hush')")
    assert "hush" not in (data_dir / "postgres.log").read_text()


@pytest.mark.usefixtures("has_run")
def test_the_log_stays_small(make: Make, data_dir: Path) -> None:
    server = make()
    server.start()
    server.stop()
    log = data_dir / "postgres.log"
    log.write_text("x" * 2_000_000)
    make().start()
    assert log.stat().st_size < 10_000


def test_finds_the_wheel_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_binaries().major >= 14
    with pytest.raises(StartupError, match="made by Postgres 12"):
        find_binaries(12)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("messaging_server.postgres_binaries._USUAL_PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StartupError, match="No Postgres was found"):
        find_binaries()


@pytest.mark.skipif(not AS_ROOT, reason="the tests above have run as an ordinary user")
def test_all_again_as_an_ordinary_user() -> None:
    """With the machine's interpreter if need be, since root's is often below /root."""
    packages = Path(pytest.__file__).parent.parent
    account = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{PROJECT}:{packages}"}
    environment |= {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"TMPDIR": tempfile.gettempdir()}

    def as_nobody(python: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(  # type: ignore[call-overload,no-any-return]  # **account
            [python, *arguments],
            **account,
            env=environment,
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )

    def can_test(python: str) -> bool:
        try:
            return as_nobody(python, "-c", "import pytest, asyncpg").returncode == 0
        except OSError:
            return False

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    candidates = [sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"]
    python = next(filter(can_test, candidates), None)
    if python is None:
        pytest.skip("no interpreter that an ordinary user can reach")
    again = as_nobody(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__)
    assert again.returncode == 0, again.stdout
