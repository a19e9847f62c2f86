"""The embedded Postgres: a private database server that lives and dies with this process.

Owns the data directory's lock, the making of the database, and the postmaster's life:
start, adoption after a crash, revival, stop. Synchronous, for use outside the event loop.
It never knows a table, and never signals a process that is not of the Postgres of this very
data directory.

    DATA_DIR/server.lock         flock, with the pid of the server that holds it
    DATA_DIR/postgres.log        what Postgres reports: no statements, no data
    DATA_DIR/postgres/           data (the database) and run (its socket)
    DATA_DIR/postgres-binaries/  only where root's Postgres account can't reach the wheel
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypedDict
from urllib.parse import quote

import asyncpg
import platformdirs

from messaging_server.errors import DataDirectoryInUse, StartupError
from messaging_server.postgres_account import (
    Account,
    check_access,
    first_obstacle,
    is_root,
    make_private,
    postgres_account,
)
from messaging_server.postgres_binaries import Binaries, copy_for_everyone, find_binaries

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_NAME = "messaging"  # of the role and of the database
_PORT = 5432  # a part of the socket's name; nothing listens on TCP
_SOCKET_PATH_LIMIT = 103  # macOS; Linux allows 107

_POLL_SECONDS = 0.02
_RETRY_SECONDS = 0.1
_REVIVAL_PAUSE_SECONDS = 5.0
_ABRUPT_SECONDS = 0.5
_START_TIMEOUT_SECONDS = 120.0  # crash recovery replays up to max_wal_size
_LOG_SIZE_BYTES = 1_000_000

# An idle Postgres with these: 5 processes and 18 MB; with the defaults 9 and 22.
_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "log",  # above `error`, which would quote what clients sent
    "log_checkpoints": "off",
    "max_connections": "64",
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "jit": "off",  # compiling costs more than our short queries
    "max_worker_processes": "0",  # no parallel queries: they need a large /dev/shm
    "max_parallel_workers_per_gather": "0",
    "wal_level": "minimal",  # nobody replicates from an embedded server
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    "random_page_cost": "1.1",
    "autovacuum_naptime": "15s",  # each message updates its conversation's row
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
}

# A new Postgres refuses to start while the old one's last processes end.
_PASSING = re.compile(r"is still in use|lock file .* already exists")
_LOGGED_ERROR = re.compile(r"(?:FATAL|PANIC|ERROR|[Ee]rror): +(?!the database system is )(.+)")

# Runs in an interpreter of its own, because `preexec_fn` is unsafe with threads. The signal
# comes when the *thread* that started the process ends: see `EmbeddedPostgres._supervisor`.
_LAUNCHER = """\
import ctypes, os, signal, sys
uid, gid, parent = map(int, sys.argv[1:4])
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
if os.getppid() != parent:
    sys.exit("error: the server has ended")
os.execv(sys.argv[4], sys.argv[4:])
"""


class ConnectArguments(TypedDict):
    """What `asyncpg.connect` needs."""

    host: str
    port: int
    user: str
    database: str


def default_data_dir() -> Path:
    """Root's is not below /root, where the account that runs Postgres can't go."""
    if is_root():
        return Path("/var/lib/messaging_server")
    return Path(platformdirs.user_data_dir("messaging_server", appauthor=False))


class EmbeddedPostgres:
    """One Postgres on one data directory; `start`, then `stop` last of all."""

    def __init__(self, data_dir: Path) -> None:
        self._base = Path(os.path.realpath(data_dir))
        self._home = self._base / "postgres"
        self._cluster = self._home / "data"
        self._log = self._base / "postgres.log"
        self._log_start = 0
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._revival: Future[None] | None = None
        self._stopping = threading.Event()
        # One thread for as long as Postgres runs, since Linux stops Postgres with it.
        self._supervisor = ThreadPoolExecutor(1, thread_name_prefix="postgres")

    def connect_arguments(self) -> ConnectArguments:
        host = str(_socket_directory(self._home))
        return {"host": host, "port": _PORT, "user": _NAME, "database": _NAME}

    @property
    def dsn(self) -> str:
        """The same as a libpq URL, for tools such as `pg_dump` and `psql`."""
        host = quote(str(_socket_directory(self._home)), safe="")
        return f"postgresql://{_NAME}@/{_NAME}?host={host}&port={_PORT}"

    def start(self) -> None:
        """Returns once Postgres answers; a StartupError leaves nothing running or locked."""
        if sys.platform == "win32":
            raise StartupError("The embedded Postgres needs Linux or macOS: set DATABASE_URL.")
        try:
            self._lock = _lock_directory(self._base)
            self._supervisor.submit(self._bring_up).result()
        except OSError as error:
            self.stop()
            raise StartupError(_unusable(self._base, error)) from error
        except BaseException:
            self.stop()
            raise

    def ensure_running(self) -> None:
        """Start a Postgres that has died again; never waits and never raises.

        From any thread, about once a second. Until it is back, connecting fails.
        """
        if self._stopping.is_set() or self._running_pid() is not None:
            return
        if self._revival is None or self._revival.done():
            with contextlib.suppress(RuntimeError):  # `stop` came in between
                self._revival = self._supervisor.submit(self._revive)

    def stop(self, *, patience_seconds: float = 10.0) -> None:
        """End Postgres and give the directory back; harmless when nothing runs.

        Most of the patience is for an orderly end; after an abrupt one the next start recovers.
        """
        self._stopping.set()
        if self._lock is not None:
            self._supervisor.submit(self._shut_down, patience_seconds).result()
            os.close(self._lock)
            self._lock = None
        self._supervisor.shutdown()

    def _bring_up(self) -> None:
        account = postgres_account(self._cluster)
        for directory in (self._home, _socket_directory(self._home)):
            make_private(directory, account)
        check_access(self._home, account)
        binaries = find_binaries(_made_by(self._cluster))
        if first_obstacle(binaries.folder, account):
            binaries = copy_for_everyone(binaries, self._base / "postgres-binaries")
        if _made_by(self._cluster) is None:
            self._initialise(binaries, account)
        asyncio.run(self._settle(binaries, account))

    def _revive(self) -> None:
        if self._running_pid() is not None:  # meanwhile another call has done it
            return
        self._process = None
        logger.warning("Postgres has ended unexpectedly and is being started again")
        try:
            if _made_by(self._cluster) is None:  # an unmounted volume: never start afresh there
                raise StartupError(f"The database is gone from {self._cluster}.")
            self._bring_up()
        except Exception:
            logger.exception("Postgres could not be started again")
            self._stopping.wait(_REVIVAL_PAUSE_SECONDS)
        else:
            logger.warning("Postgres is running again")

    def _initialise(self, binaries: Binaries, account: Account) -> None:
        """Aside, then renamed: after an interruption there is no database rather than half."""
        for leftover in self._home.glob("unfinished-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=self._home))
        make_private(unfinished, account)
        process = self._spawn([*_initdb_command(binaries), "-D", str(unfinished)], account)
        if process.wait() != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise StartupError(f"The database could not be made: {self._reason(process)}")
        unfinished.rename(self._cluster)

    async def _settle(self, binaries: Binaries, account: Account) -> None:
        """Until Postgres answers: one left by a killed server, or else a new one."""
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while not await self._answers():
            if self._stopping.is_set() or time.monotonic() > deadline:
                raise StartupError(f"Postgres is not ready; see {self._log}.")
            if self._running_pid() is None:
                await self._launch(binaries, account)
            await asyncio.sleep(_POLL_SECONDS)

    async def _launch(self, binaries: Binaries, account: Account) -> None:
        if self._process is not None:
            reason = self._reason(self._process)
            if not _PASSING.search(reason):
                raise StartupError(f"Postgres did not start: {reason} (see {self._log})")
            await asyncio.sleep(_RETRY_SECONDS)
        command = [str(binaries.folder / "postgres"), "-D", str(self._cluster)]
        command += ["-p", str(_PORT), "-k", str(_socket_directory(self._home))]
        self._process = self._spawn([*command, *_setting_arguments(binaries)], account)

    def _spawn(self, command: list[str], account: Account) -> "subprocess.Popen[bytes]":
        """In a session of its own, so that Ctrl-C reaches only us; it ends when we do."""
        kept = {"PATH", "LD_LIBRARY_PATH"} & os.environ.keys()  # no keys, no PG* variables
        environment = {name: os.environ[name] for name in kept} | {"LC_ALL": "C", "TZ": "UTC"}
        if stale := self._recorded_pid():  # by now someone else's: Postgres shall not mind
            environment["PG_GRANDPARENT_PID"] = str(stale)
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER]
        whose = [str(account.uid), str(account.gid), str(os.getpid())]
        with _open_log(self._log) as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                [*launcher, *whose, *command],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(**self.connect_arguments(), timeout=5)
        except asyncpg.InvalidCatalogNameError:
            return await self._create_database()
        except (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
            return False
        await connection.close()
        return True

    async def _create_database(self) -> bool:
        connection = await asyncpg.connect(**self.connect_arguments() | {"database": "postgres"})
        try:
            await connection.execute(f"create database {_NAME}")
        finally:
            await connection.close()
        return True

    def _running_pid(self) -> int | None:
        """The live postmaster of our data directory: our child, or one that was adopted."""
        process = self._process
        if process is not None and process.poll() is None:
            return process.pid
        pid = self._recorded_pid()
        return pid if pid is not None and _works_in(pid, self._cluster) else None

    def _recorded_pid(self) -> int | None:
        """From postmaster.pid, which a crash leaves behind: perhaps another process by now."""
        try:
            first_line = (self._cluster / "postmaster.pid").read_text().partition("\n")[0]
            return abs(int(first_line))
        except (OSError, ValueError):
            return None

    def _shut_down(self, patience_seconds: float) -> None:
        orderly_seconds = patience_seconds - 2 * _ABRUPT_SECONDS
        for end, seconds in (
            (_end_orderly, orderly_seconds),
            (_end_at_once, _ABRUPT_SECONDS),
            (_kill, _ABRUPT_SECONDS),
        ):
            if (pid := self._running_pid()) is not None:
                with contextlib.suppress(ProcessLookupError):
                    end(pid)
            deadline = time.monotonic() + seconds
            while self._running_pid() is not None and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        if (directory := _socket_directory(self._home)).parent != self._home:
            with contextlib.suppress(OSError):
                directory.rmdir()

    def _reason(self, process: "subprocess.Popen[bytes]") -> str:
        """The last thing that the process complained about."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").strip().splitlines()
        complaints = _LOGGED_ERROR.findall("\n".join(lines))
        return (complaints or lines or [f"it ended with status {process.returncode}"])[-1]


def _end_orderly(postmaster: int) -> None:
    os.kill(postmaster, signal.SIGINT)


def _end_at_once(postmaster: int) -> None:
    os.kill(postmaster, signal.SIGQUIT)


def _kill(postmaster: int) -> None:
    """Together with its processes: one that hangs would not notice, and keep the next one out."""
    for pid in (postmaster, *_children(postmaster)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    try:
        if sys.platform == "linux":
            shown = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        else:
            command = ["pgrep", "-P", str(pid)]
            shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [int(child) for child in shown.split()]


def make_data_dir(base: Path) -> None:
    """A new one is private, but for root's account of Postgres, who must pass through.

    An empty one of somebody else is theirs to protect.
    """
    base.mkdir(parents=True, exist_ok=True)
    if not any(base.iterdir()):
        with contextlib.suppress(PermissionError):
            base.chmod(0o711 if is_root() else 0o700)


def _lock_directory(base: Path) -> int:
    """The open lock; the kernel lets go of it when this process ends, however it ends."""
    if base.exists() and not base.is_dir():
        raise StartupError(f"The data directory {base} is not a directory.")
    make_data_dir(base)
    lock = os.open(base / "server.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 20).decode().strip() or "unknown"
        os.close(lock)
        raise DataDirectoryInUse(
            f"The data directory {base} is in use by another messaging_server (pid {holder})."
        ) from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def _socket_directory(home: Path) -> Path:
    """Inside, unless the socket's path gets too long; then always the same short one."""
    inside = home / "run"
    if len(os.fsencode(inside / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_LIMIT:
        return inside
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path("/tmp") / f"messaging_server-{digest}"  # noqa: S108  make_private checks whose it is


def _made_by(cluster: Path) -> int | None:
    """The major version of the Postgres that made the database, if there is one."""
    try:
        return int((cluster / "PG_VERSION").read_text().partition(".")[0])
    except FileNotFoundError:
        return None
    except ValueError:
        raise StartupError(f"The database in {cluster} is damaged: bad PG_VERSION.") from None


def _initdb_command(binaries: Binaries) -> list[str]:
    """Ordering by code point, characters by Unicode: alike on every machine.

    `--lc-ctype` matters even with the builtin provider: full text search splits words by it,
    and in the C locale "¿Cómo" would be one word (measured, 18.4).
    """
    command = [str(binaries.folder / "initdb"), "-U", _NAME, "-E", "UTF8", "--auth=trust"]
    command += ["--no-instructions", "--locale=C"]
    command += ["--lc-ctype", "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"]
    if binaries.major >= 17:
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return command


def _setting_arguments(binaries: Binaries) -> Iterator[str]:
    # Three processes less; with everything in memory they win nothing.
    io_method = {"io_method": "sync"} if binaries.major >= 18 else {}
    for name, value in (_SETTINGS | io_method).items():
        yield from ("-c", f"{name}={value}")


def _works_in(pid: int, cluster: Path) -> bool:
    """Whether this process is a Postgres of ours: they all work in their data directory."""
    try:
        if sys.platform == "linux":
            return cluster.samefile(f"/proc/{pid}/cwd")
        command = ["ps", "-o", "command=", "-p", str(pid)]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return "postgres" in shown and str(cluster) in shown
    except OSError:
        return False


def _open_log(path: Path) -> BinaryIO:
    """For appending; once it is large, the previous one is kept beside it."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _LOG_SIZE_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    return os.fdopen(os.open(path, flags, 0o600), "ab")


def _unusable(base: Path, error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"The data directory {base} can't be used: {error.strerror or error}{where}."
