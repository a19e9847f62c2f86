"""How good results are, measured against what people said of the same conversations.

The definitions stand in `docs/evaluate.md`. A result that is missing (None), because its analyser
failed, counts as wrong. What can't be measured, such as coverage without keywords, is None.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from msgspec import Struct

from messaging_server.analysis.labelled import Labels
from messaging_server.models import AnalysisResult, Priority

Verdict = Priority | None
Judged = tuple[AnalysisResult | None, Labels]
"""What an analyser found beside what the readers said."""


class Scores(Struct, frozen=True, kw_only=True):
    """Shares from 0 to 1; priority is measured against each reader, and averaged."""

    accuracy: float | None
    macro_f1: float | None
    first_tag: float | None
    tag_precision: float | None
    coverage: float | None


def score(judged: Sequence[Judged]) -> Scores:
    verdicts = [result.priority if result else None for result, _ in judged]
    readings = [labels.priority for _, labels in judged]
    return Scores(
        accuracy=accuracy(verdicts, readings),
        macro_f1=macro_f1(verdicts, readings),
        first_tag=_share(
            has_right_first_tag(r, labels) for r, labels in judged if any(labels.tags)
        ),
        tag_precision=tag_precision(judged),
        coverage=_share(
            result is not None and covers(result.summary, labels.keywords)
            for result, labels in judged
            if any(labels.keywords)
        ),
    )


def accuracy(verdicts: Sequence[Verdict], readings: Sequence[Sequence[Priority]]) -> float | None:
    return _mean(_share(v is t for v, t in pairs) for pairs in _by_reader(verdicts, readings))


def macro_f1(verdicts: Sequence[Verdict], readings: Sequence[Sequence[Priority]]) -> float | None:
    """A priority that neither a reader nor the verdicts ever name doesn't count."""
    return _mean(
        _f1(pairs, priority) for pairs in _by_reader(verdicts, readings) for priority in Priority
    )


def confusion(
    verdicts: Sequence[Verdict], readings: Sequence[Sequence[Priority]]
) -> Counter[tuple[Priority, Verdict]]:
    """How often a reader said the first and the analyser the second, over all readers."""
    return Counter(
        (truth, verdict)
        for verdict, reading in zip(verdicts, readings, strict=True)
        for truth in reading
    )


def has_right_first_tag(result: AnalysisResult | None, labels: Labels) -> bool:
    """Whether the first tag is on any reader's list."""
    return result is not None and any(_is_named(tag, labels) for tag in result.tags[:1])


def tag_precision(judged: Sequence[Judged]) -> float | None:
    """The share of all tags given that are on any reader's list, where there are lists."""
    return _share(
        _is_named(tag, labels)
        for result, labels in judged
        if labels.tags
        for tag in (result.tags if result else ())
    )


def covers(summary: str, keywords: Iterable[Iterable[str]]) -> bool:
    """Whether any reader's keyword, or an inflection of it, stands in the summary as a word."""
    text = summary.casefold()
    return any(
        re.search(rf"(?<!\w){re.escape(keyword.casefold())}\w{{0,3}}(?!\w)", text)
        for words in keywords
        for keyword in words
    )


def _is_named(tag: str, labels: Labels) -> bool:
    return any(tag in tags for tags in labels.tags)


def _by_reader(
    verdicts: Sequence[Verdict], readings: Sequence[Sequence[Priority]]
) -> list[list[tuple[Verdict, Priority]]]:
    """For each reader the verdicts beside what that reader said; not all read everything."""
    pairs = list(zip(verdicts, readings, strict=True))
    readers = max(map(len, readings), default=0)
    return [[(v, said[r]) for v, said in pairs if len(said) > r] for r in range(readers)]


def _f1(pairs: Sequence[tuple[Verdict, Priority]], priority: Priority) -> float | None:
    both = sum(v is priority and t is priority for v, t in pairs)
    either = sum((v is priority) + (t is priority) for v, t in pairs)
    return 2 * both / either if either else None


def _share(outcomes: Iterable[bool]) -> float | None:
    return _mean(float(outcome) for outcome in outcomes)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
