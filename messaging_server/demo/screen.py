"""What the demo shows: a live screen on a terminal, plain lines elsewhere.

Texts come from leads: they are shown as text, never as markup or control sequences.
"""

import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from messaging_server.demo.client import AiData
from messaging_server.demo.tally import Tally, Watcher
from messaging_server.demo.team import Person
from messaging_server.models import Conversation

EVENTS_SHOWN = 12
FRAMES_PER_SECOND = 8
NAME_CHARACTERS = 18
PRIORITY_STYLES = {"HIGH": "bold red", "MEDIUM": "yellow", "LOW": "green"}
KIND_STYLES = {
    "LEAD": "cyan",
    "WEBSITE": "bold cyan",
    "AGENT": "blue",
    "NOTE": "yellow",
    "ANALYSIS": "magenta",
    "WEBHOOK": "green",
}
VERDICT = (
    "OK: every message arrived once and in order, over sockets and by webhook, a visitor's chat "
    "went both ways, every conversation is analysed"
)


def new_console() -> Console:
    """Standard output; a character that its encoding lacks becomes a question mark."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


@contextmanager
def showing(console: Console, tally: Tally) -> Iterator[Watcher]:
    """The screen that suits where the output goes."""
    if not console.is_terminal:
        yield Lines(console)
        return
    screen = LiveScreen(tally)
    with Live(get_renderable=screen.render, console=console, refresh_per_second=FRAMES_PER_SECOND):
        yield screen


class Lines:
    """One line for each thing that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def happened(self, kind: str, name: str, text: str) -> None:
        self._print(f"{kind} {name}: {text}")

    def analysis_arrived(self, name: str, ai: AiData) -> None:
        self.happened("ANALYSIS", name, f"{ai.priority} [{', '.join(ai.tags)}] {ai.summary}")

    def _print(self, line: str) -> None:
        self._console.print(one_line(line), markup=False, emoji=False, soft_wrap=True)


class LiveScreen:
    """A progress bar, the counters and the last things that happened."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._events: deque[tuple[Text, Text, Text]] = deque(maxlen=EVENTS_SHOWN)
        self._progress = Progress(
            TextColumn("Conversations analysed"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            expand=True,
        )
        self._task = self._progress.add_task("", total=tally.conversations)

    def happened(self, kind: str, name: str, text: str) -> None:
        self._add(kind, name, Text(one_line(text)))

    def analysis_arrived(self, name: str, ai: AiData) -> None:
        priority = Text(one_line(ai.priority), PRIORITY_STYLES.get(ai.priority, ""))
        tags = Text(one_line(f"[{', '.join(ai.tags)}]"), "dim")
        self._add("ANALYSIS", name, Text(" ").join([priority, tags, Text(one_line(ai.summary))]))

    def render(self) -> RenderableType:
        self._progress.update(self._task, completed=self._tally.finished)
        return Group(self._progress, self._counters(), self._recent())

    def _add(self, kind: str, name: str, text: Text) -> None:
        self._events.append(
            (Text(kind, KIND_STYLES[kind]), Text(one_line(name)[:NAME_CHARACTERS], "bold"), text)
        )

    def _counters(self) -> RenderableType:
        tally = self._tally
        grid = Table.grid(padding=(0, 2))
        grid.add_row(
            f"[bold]{tally.sent:,}[/] sent",
            f"[bold]{tally.received:,}[/] received",
            f"[bold]{tally.analyses:,}[/] analyses",
            f"[bold]{tally.deliveries:,}[/] deliveries verified",
            "[green]in order[/]" if tally.in_order else "[bold red]OUT OF ORDER[/]",
        )
        return grid

    def _recent(self) -> RenderableType:
        table = Table(box=None, show_header=False, padding=(0, 1), expand=True)
        table.add_column(width=8)
        table.add_column(width=NAME_CHARACTERS)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for event in self._events:
            table.add_row(*event)
        return Panel(table, height=EVENTS_SHOWN + 2, border_style="dim")


def one_line(text: str) -> str:
    """`text` without line breaks and without anything that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def print_welcome(console: Console, url: str, people: Sequence[Person]) -> None:
    """Where the server is and who may log in."""
    grid = Table.grid(padding=(0, 3))
    grid.add_row("Server", url)
    grid.add_row("API", f"{url}/docs")
    for person in people:
        grid.add_row(person.name, person.email, person.password, person.role.value)
    if console.is_terminal:
        console.print(Panel(grid, title="messaging_server demo", expand=False))
    else:
        console.print(grid, soft_wrap=True)


def print_summary(
    console: Console, tally: Tally, conversations: Sequence[Conversation], failure: str | None
) -> None:
    """What was played, what came back, and the verdict."""
    priorities = Counter(
        conversation.priority.value if conversation.priority else "none"
        for conversation in conversations
    )
    events = tally.events
    grid = Table.grid(padding=(0, 3))
    for name, value in (
        ("Conversations", f"{tally.finished:,} of {tally.conversations:,} analysed"),
        ("Messages sent", f"{tally.sent:,}"),
        ("Received over sockets", f"{tally.received:,}"),
        ("Analyses pushed", f"{tally.analyses:,}"),
        ("Webhook deliveries", f"{tally.deliveries:,} verified, {sum(events.values()):,} events"),
        ("Events", ", ".join(f"{name} {count:,}" for name, count in events.most_common())),
        (
            "Website visitor",
            f"wrote {tally.visitor_wrote} messages, read {tally.visitor_read} answers",
        ),
        ("Priorities", ", ".join(f"{name} {count}" for name, count in priorities.most_common())),
        ("In order", "yes" if tally.in_order else "NO"),
        ("Time", f"{tally.seconds:.1f} s, {tally.sent / max(tally.seconds, 0.001):.0f} messages/s"),
    ):
        grid.add_row(name, value)
    console.print()
    console.print(grid)
    if failure is None:
        console.print(Text(VERDICT, "bold green"), soft_wrap=True)
    else:
        console.print(Text(f"FAILED: {one_line(failure)}", "bold red"), soft_wrap=True)
