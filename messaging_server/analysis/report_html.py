"""An evaluation as one HTML page: charts as inline SVG, no scripts, nothing from elsewhere.

Texts come from customers and models and are escaped where they enter the page.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from messaging_server.analysis.evaluation import Change, Evaluation, changes
from messaging_server.analysis.labelled import LabelledConversation
from messaging_server.analysis.report import (
    FAILED,
    SCORE_TITLES,
    brief,
    figures,
    milliseconds,
    opening,
    readers_say,
    share,
    subject,
    verdict_columns,
)
from messaging_server.models import AnalysisResult, Priority

TEXT_CHARACTERS = 280
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

BAR_LEFT, BAR_WIDTH, BAR_HEIGHT = 190, 400, 16
CURVE_WIDTH, CURVE_HEIGHT, CURVE_MARGIN = 560, 200, 44
CELL_WIDTH, CELL_HEIGHT = 92, 44


def render_html(evaluations: Sequence[Evaluation]) -> str:
    """The whole page; with two evaluations also what changed from the first to the second."""
    names = " and ".join(evaluation.name for evaluation in evaluations)
    sections = [
        _section("Figures", _legend(evaluations), _bars(evaluations), _figures(evaluations)),
        _section(
            "Priority: readers and analyser",
            "<p>Rows: what a reader said. Columns: what the analyser said. "
            "Every reader counts.</p>",
            f'<div class="side">{"".join(map(_confusion, evaluations))}</div>',
        ),
        _section("Latency", _legend(evaluations), _latency(evaluations)),
        *(_section("Failures", _failures(each)) for each in evaluations if each.errors),
        *([_changed(evaluations)] if len(evaluations) > 1 else []),
        *map(_mistaken, evaluations),
    ]
    style = resources.files(__package__).joinpath("report.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Evaluation of {escape(names)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<h1>Evaluation of {escape(names)}</h1>\n"
        f"<p>{escape(subject(evaluations[0].conversations))}</p>\n"
        f"{''.join(sections)}</body>\n</html>\n"
    )


def _section(title: str, *parts: str) -> str:
    body = "\n".join(parts)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, kind: str) -> str:
    """Every cell is escaped here."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>" for cells in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _legend(evaluations: Sequence[Evaluation]) -> str:
    if len(evaluations) == 1:
        return ""
    items = (
        f'<span><i class="series{n}"></i>{escape(evaluation.name)}</span>'
        for n, evaluation in enumerate(evaluations)
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _figures(evaluations: Sequence[Evaluation]) -> str:
    columns = [figures(evaluation) for evaluation in evaluations]
    rows = [[title, *(column[title] for column in columns)] for title in columns[0]]
    return _table(["", *(each.name for each in evaluations)], rows, kind="figures")


def _svg(width: int, height: int, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _bars(evaluations: Sequence[Evaluation]) -> str:
    """A group of bars for each score, a bar for each analyser."""
    group = BAR_HEIGHT * len(evaluations) + 16
    parts = []
    for place, (name, title) in enumerate(SCORE_TITLES.items()):
        top = place * group + 8
        middle = top + BAR_HEIGHT * len(evaluations) / 2
        parts.append(_label(BAR_LEFT - 12, middle, title, anchor="end"))
        for n, evaluation in enumerate(evaluations):
            value = getattr(evaluation.scores, name)
            width = round(BAR_WIDTH * (value or 0.0), 1)
            y = top + n * BAR_HEIGHT
            parts.append(
                f'<rect class="series{n}" x="{BAR_LEFT}" y="{y + 1}" width="{width}" '
                f'height="{BAR_HEIGHT - 2}" rx="2"/>'
            )
            parts.append(_label(BAR_LEFT + width + 8, y + BAR_HEIGHT / 2, share(value)))
    height = group * len(SCORE_TITLES)
    parts.append(f'<path class="axis" d="M{BAR_LEFT} 0V{height}"/>')
    return _svg(BAR_LEFT + BAR_WIDTH + 60, height, "Scores", parts)


def _label(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    """A text that is centred on `y`."""
    return (
        f'<text x="{x:g}" y="{y:g}" dy="0.35em" text-anchor="{anchor}" class="{kind}">'
        f"{escape(text)}</text>"
    )


def _confusion(evaluation: Evaluation) -> str:
    columns = verdict_columns(evaluation)
    counts = evaluation.confusion
    parts = [
        _label(CELL_WIDTH * (x + 1.5), CELL_HEIGHT / 2, verdict or FAILED, anchor="middle")
        for x, verdict in enumerate(columns)
    ]
    for y, truth in enumerate(Priority, start=1):
        said = sum(counts[truth, verdict] for verdict in columns)
        middle = CELL_HEIGHT * (y + 0.5)
        parts.append(_label(CELL_WIDTH - 12, middle, truth, anchor="end"))
        for x, verdict in enumerate(columns, start=1):
            count = counts[truth, verdict]
            depth = count / said if said else 0.0
            kind = "right" if verdict is truth else "wrong"
            parts.append(
                f'<rect class="{kind}" x="{x * CELL_WIDTH + 1}" y="{y * CELL_HEIGHT + 1}" '
                f'width="{CELL_WIDTH - 2}" height="{CELL_HEIGHT - 2}" rx="3" '
                f'fill-opacity="{0.06 + 0.6 * depth:.2f}"/>'
            )
            parts.append(_label(CELL_WIDTH * (x + 0.5), middle, str(count), anchor="middle"))
    svg = _svg(
        CELL_WIDTH * (len(columns) + 1),
        CELL_HEIGHT * (len(Priority) + 1),
        f"Confusion of {evaluation.name}",
        parts,
    )
    return f"<figure><figcaption>{escape(evaluation.name)}</figcaption>{svg}</figure>"


def _latency(evaluations: Sequence[Evaluation]) -> str:
    """For each analyser the share of conversations that were done within a time."""
    lowest, highest = _decades(evaluations)
    left, right, bottom = CURVE_MARGIN, CURVE_WIDTH - CURVE_MARGIN, CURVE_HEIGHT - CURVE_MARGIN

    def x_of(seconds: float) -> float:
        place = (math.log10(max(seconds, 1e-9)) - lowest) / (highest - lowest)
        return left + (right - left) * min(1.0, max(0.0, place))

    def y_of(done: float) -> float:
        return bottom - (bottom - 10) * done

    parts = []
    for decade in range(lowest, highest + 1):
        x = x_of(10.0**decade)
        parts.append(f'<path class="grid" d="M{x:.1f} 10V{bottom}"/>')
        parts.append(_label(x, bottom + 16, _round_time(decade), anchor="middle"))
    for done in (0.0, 0.5, 0.95):
        y = y_of(done)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_label(left - 8, y, f"{done:.0%}", anchor="end"))
    for n, evaluation in enumerate(evaluations):
        times = sorted(outcome.seconds for outcome in evaluation.outcomes)
        steps = "".join(
            f"H{x_of(seconds):.1f}V{y_of(place / len(times)):.1f}"
            for place, seconds in enumerate(times, start=1)
        )
        parts.append(f'<path class="line{n}" d="M{left} {bottom}{steps}H{right}"/>')
    caption = "<p>Share of conversations done within a time (logarithmic).</p>"
    return caption + _svg(CURVE_WIDTH, CURVE_HEIGHT, "Latency", parts)


def _decades(evaluations: Sequence[Evaluation]) -> tuple[int, int]:
    """The powers of ten around all times."""
    times = [max(o.seconds, 1e-6) for each in evaluations for o in each.outcomes]
    lowest = math.floor(math.log10(min(times)))
    return lowest, max(lowest + 1, math.ceil(math.log10(max(times))))


def _round_time(decade: int) -> str:
    return f"{10.0**decade:g} s" if decade >= 0 else f"{10.0 ** (decade + 3):g} ms"


def _failures(evaluation: Evaluation) -> str:
    rows = [[str(count), error] for error, count in evaluation.errors.most_common()]
    return f"<p>{escape(evaluation.name)}</p>" + _table(["times", "why"], rows, kind="texts")


def _changed(evaluations: Sequence[Evaluation]) -> str:
    found = changes(evaluations[0], evaluations[1])
    headings = ["", "conversation", "readers", *(each.name for each in evaluations), "the customer"]
    rows = [_change_row(change) for change in found]
    title = f"What changed: {len(found)} with another priority or first tag"
    return _section(title, _table(headings, rows, kind="texts"))


def _change_row(change: Change) -> list[str]:
    said = change.conversation.labels.priority
    old, new = (r is not None and r.priority in said for r in (change.before, change.after))
    return [
        "better" if new > old else "worse" if new < old else "",
        change.conversation.id,
        readers_say(change.conversation),
        brief(change.before),
        brief(change.after),
        opening(change.conversation, TEXT_CHARACTERS),
    ]


def _mistaken(evaluation: Evaluation) -> str:
    """The conversations whose priority no reader gave, to read and to learn from."""
    rows = [
        _mistake_row(conversation, outcome.result, outcome.seconds)
        for conversation, outcome in zip(evaluation.conversations, evaluation.outcomes, strict=True)
        if outcome.result and _is_mistaken(outcome.result, conversation)
    ]
    headings = ["conversation", "readers", "analyser", "reason", "summary", "time", "the customer"]
    title = f"{evaluation.name}: {len(rows)} with a priority that no reader gave"
    table = _table(headings, rows, kind="texts")
    return _section(title, f"<details><summary>Show them</summary>{table}</details>")


def _is_mistaken(result: AnalysisResult, conversation: LabelledConversation) -> bool:
    said = conversation.labels.priority
    return bool(said) and result.priority not in said


def _mistake_row(
    conversation: LabelledConversation, result: AnalysisResult, seconds: float
) -> list[str]:
    return [
        conversation.id,
        readers_say(conversation),
        brief(result),
        result.priority_reason or "",
        result.summary,
        milliseconds(seconds),
        opening(conversation, TEXT_CHARACTERS),
    ]
