"""Puts the demo together: a server of its own in a throwaway directory, the play, the verdict."""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from messaging_server.config import (
    AnalysisConfig,
    Config,
    LimitsConfig,
    LogConfig,
    ServerConfig,
    WebhooksConfig,
)
from messaging_server.demo.client import Api, OutOfOrder, PromiseBroken
from messaging_server.demo.player import Player
from messaging_server.demo.receiver import receiving
from messaging_server.demo.screen import new_console, print_summary, print_welcome, showing
from messaging_server.demo.scripts import BUNDLED, Script, read_scripts
from messaging_server.demo.stage import DELIVERY_TIMEOUT_SECONDS, Stage, is_analysed
from messaging_server.demo.tally import Tally
from messaging_server.demo.team import Person, Team, gather_team, new_people
from messaging_server.demo.website import CHAT, visit
from messaging_server.logs import configure_logging
from messaging_server.models import Conversation, Page
from messaging_server.serving import (
    Stopped,
    StopSignals,
    note_only,
    running_database,
    running_server,
    undisturbed,
)

GENEROUS = 1_000_000
INTERRUPTED = 130


def run_demo(
    *,
    source: Path | None = None,
    speed: float = 1.0,
    keep: bool = False,
    exit_when_done: bool = False,
) -> int:
    """Play `source` (None: the bundled conversations); returns the process's exit code.

    `speed` divides the pauses between messages, 0 leaves them out. `keep` leaves the data
    directory behind. On a terminal the server stays up until Ctrl-C unless `exit_when_done`.
    Raises `StartupError` for a bad `source`, before anything is started.
    """
    scripts = read_scripts(source or BUNDLED)
    console = new_console()
    try:
        with StopSignals() as signals, data_directory(console, keep=keep) as directory:
            console.print(f"Starting a server of its own in {directory}", soft_wrap=True)
            config = demo_config(directory)
            configure_logging(config.log)
            with running_database(config, signals) as complete, signals.reacting(note_only):
                demo = Demo(complete, scripts, console, speed=speed)
                stay = console.is_terminal and not exit_when_done
                return asyncio.run(demo.run(signals, stay=stay))
    except (Stopped, asyncio.CancelledError):
        console.print("Stopped.")
        return INTERRUPTED


@contextlib.contextmanager
def data_directory(console: Console, *, keep: bool) -> Iterator[Path]:
    """A new one, gone at the end unless it is to be kept."""
    directory = Path(tempfile.mkdtemp(prefix="messaging-demo-"))
    try:
        yield directory
    finally:
        with undisturbed():
            if keep:
                console.print(f"The data stays in {directory}", soft_wrap=True)
            else:
                shutil.rmtree(directory, ignore_errors=True)


def demo_config(directory: Path) -> Config:
    """Independent of config.toml and the environment: the demo touches nothing that is yours."""
    return Config(
        server=ServerConfig(port=0, data_dir=str(directory)),
        limits=LimitsConfig(
            logins_per_minute_per_address=GENEROUS,
            logins_per_minute_per_account=GENEROUS,
            writes_per_minute_per_user=GENEROUS,
            inbound_per_minute_per_key=GENEROUS,
        ),
        analysis=AnalysisConfig(quiet_seconds=2, max_wait_seconds=10),
        webhooks=WebhooksConfig(allowed_networks=("127.0.0.0/8", "::1/128")),
        log=LogConfig(level="WARNING"),
    )


class Demo:
    """One run: the server's life around the play, and the verdict."""

    def __init__(
        self, config: Config, scripts: Sequence[Script], console: Console, *, speed: float
    ) -> None:
        self._config = config
        self._scripts = scripts
        self._console = console
        self._speed = speed
        [self._chat] = read_scripts(CHAT)
        self._tally = Tally(conversations=len(scripts) + 1)

    async def run(self, signals: StopSignals, *, stay: bool) -> int:
        """0 when everything held that was promised, else 1; a signal cancels the play."""
        async with running_server(self._config) as url:
            with signals.cancelling():
                failure = await self._show(url)
                if stay:
                    await self._stay(url)
        return 0 if failure is None else 1

    async def _show(self, url: str) -> str | None:
        """The play and its summary; what did not hold, if anything."""
        people = new_people()
        print_welcome(self._console, url, people)
        conversations: list[Conversation] = []
        failure: str | None = None
        try:
            conversations = await self._play(url, people)
        except* PromiseBroken as broken:
            failure = self._reason(broken)
        print_summary(self._console, self._tally, conversations, failure)
        return failure

    async def _play(self, url: str, people: Sequence[Person]) -> list[Conversation]:
        async with gather_team(url, people) as team:
            started_at = time.perf_counter()
            try:
                await self._perform(url, team)
            finally:
                self._tally.seconds = time.perf_counter() - started_at
            conversations = await fetch_conversations(team.admin.api)
        self._check(conversations)
        return conversations

    async def _perform(self, url: str, team: Team) -> None:
        """Raises `PromiseBroken`, in an exception group, as soon as something does not hold."""
        tally = self._tally
        with showing(self._console, tally) as screen:
            async with receiving(team.admin.api, tally=tally, watcher=screen) as receiver:
                stage = Stage(
                    url, team, speed=self._speed, tally=tally, watcher=screen, receiver=receiver
                )
                async with stage.listening():
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(visit(stage, self._chat, index=len(self._scripts)))
                        tasks.create_task(Player(stage, self._scripts).play())
                    await receiver.wait_for_expected(timeout_seconds=DELIVERY_TIMEOUT_SECONDS)

    def _check(self, conversations: Sequence[Conversation]) -> None:
        """The lists agree with what was played."""
        played = self._tally.conversations
        if len(conversations) != played:
            raise PromiseBroken(
                f"{played} conversations were played, {len(conversations)} are listed"
            )
        for conversation in conversations:
            if not is_analysed(conversation):
                raise PromiseBroken(f"{conversation.lead.name} is listed as not analysed")

    def _reason(self, broken: BaseException) -> str:
        """The first of the failures, which may be wrapped in groups."""
        while isinstance(broken, BaseExceptionGroup):
            broken = broken.exceptions[0]
        if isinstance(broken, OutOfOrder):
            self._tally.in_order = False
        return str(broken)

    async def _stay(self, url: str) -> None:
        """Until Ctrl-C, which then is the ordinary end."""
        self._console.print(f"\nThe server stays up: {url} (Ctrl-C stops it)", soft_wrap=True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


async def fetch_conversations(api: Api) -> list[Conversation]:
    """All of them, page after page."""
    conversations: list[Conversation] = []
    path: str | None = "/conversations?limit=100"
    while path is not None:
        page = await api.get(path, Page[Conversation])
        conversations += page.items
        path = page.next_cursor and f"/conversations?limit=100&cursor={page.next_cursor}"
    return conversations
