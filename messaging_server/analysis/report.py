"""What an evaluation found, in words and on a terminal.

Texts come from customers and models: they are shown as text, never as markup or control sequences.
"""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from messaging_server.analysis.analysers import shortened
from messaging_server.analysis.evaluation import Change, Evaluation, changes, percentile
from messaging_server.analysis.labelled import LabelledConversation, readers_of
from messaging_server.analysis.scoring import Verdict
from messaging_server.models import AnalysisResult, Priority, SenderType

CHANGES_SHOWN = 20
TEXT_CHARACTERS = 60
NOT_MEASURED = "-"
FAILED = "failed"
MICRO_DOLLARS = 1_000_000

SCORE_TITLES = {
    "macro_f1": "priority macro-F1",
    "accuracy": "priority accuracy",
    "first_tag": "first tag right",
    "tag_precision": "tag precision",
    "coverage": "summary has a keyword",
}


def figures(evaluation: Evaluation) -> dict[str, str]:
    """Every figure under its title, in the order in which it is shown."""
    outcomes = evaluation.outcomes
    seconds = [outcome.seconds for outcome in outcomes]
    tokens_in = sum(outcome.tokens_in for outcome in outcomes)
    tokens_out = sum(outcome.tokens_out for outcome in outcomes)
    cost = sum(outcome.cost_micro_dollars for outcome in outcomes)
    shown = {title: share(getattr(evaluation.scores, name)) for name, title in SCORE_TITLES.items()}
    return shown | {
        "failed": str(sum(evaluation.errors.values())),
        "latency, median": milliseconds(percentile(seconds, 0.5)),
        "latency, 95 %": milliseconds(percentile(seconds, 0.95)),
        "tokens in / out": f"{tokens_in:,} / {tokens_out:,}",
        "cost": f"${cost / MICRO_DOLLARS:,.4f}",
    }


def share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms" if seconds < 0.1 else f"{seconds * 1000:,.0f} ms"


def subject(conversations: Sequence[LabelledConversation]) -> str:
    readers = readers_of(conversations)
    return f"{_count(len(conversations), 'conversation')}, {_count(readers, 'reader')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def verdict_columns(evaluation: Evaluation) -> list[Verdict]:
    """The priorities, and None when an analysis failed."""
    return [*Priority, *([None] if evaluation.errors else [])]


def brief(result: AnalysisResult | None) -> str:
    """`HIGH billing`: what changes are judged by."""
    return " ".join([result.priority, *result.tags[:1]]) if result else FAILED


def readers_say(conversation: LabelledConversation) -> str:
    """`HIGH/MEDIUM billing/refund`: each reader's priority and first tag, the same ones once."""
    labels = conversation.labels
    priorities = "/".join(dict.fromkeys(labels.priority))
    tags = "/".join(dict.fromkeys(tag for names in labels.tags for tag in names[:1]))
    return f"{priorities} {shortened(tags, TEXT_CHARACTERS)}".strip()


def opening(conversation: LabelledConversation, limit: int) -> str:
    """What the customer says, from its start, on one line."""
    said = " ".join(m.text for m in conversation.messages if m.sender is SenderType.LEAD)
    return shortened(said, limit)


def print_report(console: Console, evaluations: Sequence[Evaluation]) -> None:
    """The figures side by side, a confusion table each, the failures, and what changed."""
    console.print(_figures_table(evaluations))
    for evaluation in evaluations:
        console.print(_confusion_table(evaluation))
        for line in _failures(evaluation):
            console.print(line)
    if len(evaluations) > 1:
        found = changes(*evaluations[:2])
        console.print(_changes_table(evaluations, found) if found else _changed(found))
        if len(found) > CHANGES_SHOWN:
            console.print(f"… and {len(found) - CHANGES_SHOWN} more; --html FILE has all.")


def _figures_table(evaluations: Sequence[Evaluation]) -> Table:
    table = Table(title=subject(evaluations[0].conversations), title_justify="left")
    table.add_column()
    for evaluation in evaluations:
        table.add_column(Text(evaluation.name), justify="right")
    columns = [figures(evaluation) for evaluation in evaluations]
    for title in columns[0]:
        table.add_row(title, *(column[title] for column in columns))
    return table


def _confusion_table(evaluation: Evaluation) -> Table:
    columns = verdict_columns(evaluation)
    counts = evaluation.confusion
    table = Table(title=Text(f"Priority by {evaluation.name}"), title_justify="left")
    table.add_column("a reader said")
    for verdict in columns:
        table.add_column(verdict or FAILED, justify="right")
    for truth in Priority:
        shown = [Text(str(counts[truth, v]), "bold" if v is truth else "") for v in columns]
        table.add_row(truth, *shown)
    return table


def _failures(evaluation: Evaluation) -> Iterator[Text]:
    for error, count in evaluation.errors.most_common():
        yield Text(f"{evaluation.name} failed {count} times: {error}", "red")


def _changed(found: Sequence[Change]) -> str:
    return f"{_count(len(found), 'conversation')} with another priority or first tag"


def _changes_table(evaluations: Sequence[Evaluation], found: Sequence[Change]) -> Table:
    table = Table(title=_changed(found), title_justify="left")
    names = [evaluation.name for evaluation in evaluations]
    for heading in ("conversation", "readers", *names, "the customer"):
        table.add_column(Text(heading), no_wrap=True, overflow="ellipsis")
    for change in found[:CHANGES_SHOWN]:
        cells = [
            shortened(change.conversation.id, TEXT_CHARACTERS),
            readers_say(change.conversation),
            brief(change.before),
            brief(change.after),
            opening(change.conversation, TEXT_CHARACTERS),
        ]
        table.add_row(*map(Text, cells))
    return table
