"""Runs the application: Postgres first, then migrations, then uvicorn; stopped in reverse.

Whoever starts a server (the command line, the demo, the tests) does it through here.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Self

import msgspec
import uvicorn
from litestar import Litestar

from messaging_server.app import create_app
from messaging_server.config import Config
from messaging_server.config_sources import is_utf_8
from messaging_server.errors import StartupError
from messaging_server.http_protocol import HttpProtocol
from messaging_server.migrations import migrate
from messaging_server.postgres import EmbeddedPostgres, default_data_dir, make_data_dir
from messaging_server.realtime.wire import WireProtocol
from messaging_server.security import load_or_make_secret

SECRET_FILE = "jwt.secret"  # noqa: S105  # a file name
WATCH_SECONDS = 1.0
FRAME_BYTES = 65_536
BACKLOG = 2_048
STOPPING = (signal.SIGINT, signal.SIGTERM)
CLOSING_SECONDS = 2.0
"""For what a server has to put in order after its last request and analysis."""
POSTGRES_SECONDS = 3.0
"""What Postgres has to stop in at least, after that."""
ALLOCATIONS_A_COLLECTION = 20_000
"""Python's own 700 are a few requests, which leave hardly anything to collect."""


def data_dir(config: Config) -> Path:
    """Where the database and the signing key live."""
    try:
        given = config.server.data_dir
        directory = Path(given).expanduser().resolve() if given else default_data_dir()
    except RuntimeError as error:  # ~ of nobody
        raise StartupError(f"server.data_dir: {given}: {error}") from None
    if not is_utf_8(str(directory)):
        raise StartupError(f"The data directory {directory} must have a name in UTF-8.")
    return directory


class Stopped(SystemExit):
    """The process shall end, with the exit code that shells give to this signal."""


def _stop(number: int) -> None:
    raise Stopped(128 + number)


class StopSignals:
    """Ctrl-C and SIGTERM: the first ends what runs, later ones nothing, for the end takes a moment.

    It raises `Stopped` in the main thread, unless something else is to happen: `reacting`. Python
    swallows an exception in some callbacks, those of imports among them: who starts much asks
    `received`.
    """

    def __init__(self) -> None:
        self.received_at: float | None = None
        self._react: Callable[[int], object] = _stop
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in STOPPING:
            self._previous[number] = signal.signal(number, self._receive)
        self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._explain
        return self

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self._previous_hook
        for number, previous in self._previous.items():  # once received, Python itself ends next
            signal.signal(number, signal.SIG_IGN if self.received else previous)

    @property
    def received(self) -> bool:
        return self.received_at is not None

    def seconds_left(self, seconds: float) -> float:
        """What is left of these, counted from the signal; all of them without one."""
        return (
            seconds if self.received_at is None else self.received_at + seconds - time.monotonic()
        )

    @contextlib.contextmanager
    def reacting(self, react: Callable[[int], object]) -> Iterator[None]:
        """Within, this happens at the first signal; `react` gets its number."""
        previous, self._react = self._react, react
        try:
            yield
        finally:
            self._react = previous

    @contextlib.contextmanager
    def cancelling(self) -> Iterator[None]:
        """Within, the first signal cancels the current task, even if it came before."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        with self.reacting(lambda _number: loop.call_soon_threadsafe(task.cancel)):
            if self.received:
                task.cancel()
            yield

    def _explain(self, swallowed: "sys.UnraisableHookArgs") -> None:
        """Nothing of a `Stopped`, which was no mistake, and is still to be seen in `received`."""
        if not isinstance(swallowed.exc_value, Stopped):
            self._previous_hook(swallowed)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received_at is None:
            self.received_at = time.monotonic()
            self._react(number)


def note_only(_number: int) -> None:
    """For `StopSignals.reacting`: whoever is at work asks `received`."""


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Neither Ctrl-C nor SIGTERM ends this; for the main thread."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def running_database(config: Config, signals: StopSignals) -> Iterator[Config]:
    """The configuration with a database to use; the embedded one runs until the end.

    After a signal it has what is left of `shutdown_seconds` and 5 more to stop in. Call it from
    the main thread, outside the event loop.
    """
    if config.database.url:
        yield with_secret(config)
        return
    postgres = EmbeddedPostgres(data_dir(config))
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(postgres, stopping), daemon=True)
    try:
        postgres.start()
        watcher.start()
        database = msgspec.structs.replace(config.database, url=postgres.dsn)
        yield with_secret(msgspec.structs.replace(config, database=database))
    finally:
        with undisturbed():
            stopping.set()
            if watcher.is_alive():
                watcher.join()
            most = config.server.shutdown_seconds + CLOSING_SECONDS + POSTGRES_SECONDS
            postgres.stop(patience_seconds=max(POSTGRES_SECONDS, signals.seconds_left(most)))


def _watch(postgres: EmbeddedPostgres, stopping: threading.Event) -> None:
    while not stopping.wait(WATCH_SECONDS):
        postgres.ensure_running()


def with_secret(config: Config) -> Config:
    """The configuration with a signing key: the configured one, or the data directory's."""
    if config.auth.secret:
        return config
    directory = data_dir(config)
    try:
        make_data_dir(directory)
    except OSError as error:
        raise StartupError(f"{directory}: can't be made ({error.strerror})") from None
    secret = load_or_make_secret(directory / SECRET_FILE)
    return msgspec.structs.replace(config, auth=msgspec.structs.replace(config.auth, secret=secret))


def listen(config: Config) -> socket.socket:
    """The server's socket; taken before anything else starts, so that a clash shows at once."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except (socket.gaierror, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not the name of a host"
        raise StartupError(
            f"Can't listen on {host}:{port} ({reason}); choose another address with --host"
        ) from None
    except OSError as error:
        raise StartupError(
            f"Can't listen on {host}:{port} ({error.strerror}); choose another port with --port"
        ) from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104  # compared, not bound
    return f"http://{shown}:{port}"


def with_places(config: Config, listener: socket.socket) -> Config:
    """The configuration with what is known only now: the data directory and the address."""
    server = msgspec.structs.replace(
        config.server,
        data_dir=str(data_dir(config)),
        public_url=config.server.public_url or url_of(listener),
    )
    return msgspec.structs.replace(config, server=server)


def uvicorn_config(config: Config, app: Litestar) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=HttpProtocol,
        ws=WireProtocol,
        ws_max_size=FRAME_BYTES,
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=bool(config.server.behind_proxy),
        forwarded_allow_ips=list(config.server.behind_proxy),
        timeout_graceful_shutdown=max(1, round(config.server.shutdown_seconds)),
    )


class Server(uvicorn.Server):
    """uvicorn's server; says when it is up, and leaves signals to whoever runs it.

    It has `shutdown_seconds` and `CLOSING_SECONDS` to stop in.
    """

    def __init__(self, config: Config, listener: socket.socket) -> None:
        self._app = create_app(with_places(config, listener))
        super().__init__(uvicorn_config(config, self._app))
        self._stop_seconds = config.server.shutdown_seconds + CLOSING_SECONDS
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.freeze()  # what exists now lives as long as the process
        gc.set_threshold(ALLOCATIONS_A_COLLECTION)
        self.up.set()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """In a loop that is not closed: that would wait for whatever thread still hangs."""
        make_loop = self.config.get_loop_factory() or asyncio.new_event_loop
        make_loop().run_until_complete(self.serve(sockets))

    def stop(self) -> None:
        """At the next tenth of a second."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state["stop_by"] = asyncio.get_running_loop().time() + self._stop_seconds
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(
    config: Config,
    listener: socket.socket,
    signals: StopSignals,
    *,
    announce: Callable[[], None],
) -> None:
    """Serve until a signal; `config` comes from `running_database`. The process must end next.

    `announce` is called once the database can be used.
    """
    asyncio.run(migrate(config.database.url))
    with signals.reacting(note_only):  # the application is put together by imports
        if signals.received:
            return
        announce()
        server = Server(config, listener)
        with signals.reacting(lambda _number: server.stop()):
            if signals.received:
                server.stop()
            server.run(sockets=[listener])
    if not server.started and not signals.received:
        raise StartupError("The server could not start; the log above says why")


@contextlib.asynccontextmanager
async def running_server(config: Config) -> AsyncIterator[str]:
    """A server in this event loop, until the end; yields its address, `http://127.0.0.1:…`.

    `config` comes from `running_database`.
    """
    await migrate(config.database.url)
    listener = listen(config)
    server = Server(config, listener)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        up = asyncio.create_task(server.up.wait())
        await asyncio.wait({task, up}, return_when=asyncio.FIRST_COMPLETED)
        if not server.up.is_set():
            up.cancel()
            await task
            raise StartupError("The server could not start; the log above says why")
        yield url_of(listener)
    finally:
        server.stop()
        await task
        listener.close()
