"""The rules of the `local` analyser: what is heard in a transcript, and what follows from it.

Cues (`local_lexicon.toml`) are named facts such as `locked_out`. A priority is a sum of points
for them (`local_weights.toml`); tags are points for cues and phrases. Explained, with figures, in
`docs/local-analyser.md`. Works on folded words only and never reads a message itself.
"""

import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

from msgspec import Struct, convert

from messaging_server.analysis.local_phrases import PhraseBook, is_negated, merge_words
from messaging_server.analysis.local_text import Words
from messaging_server.models import Priority

STRONG_POINTS = 3.0
WEAK_POINTS = 1.0
MAX_COUNTED = 3
MIN_TAG_POINTS = 3.0
QUESTION_CUES = ("how_question", "general_question", "wish", "opinion")
NO_PROBLEM = "no_problem"
MERE = "mere_"
COMMAND = "command"


class Cue(Struct, frozen=True, forbid_unknown_fields=True):
    """A fact worth hearing; what the fields mean stands in the lexicon."""

    reason: str
    leans: Priority
    en: tuple[str, ...]
    es: tuple[str, ...]
    problem: bool = False
    negatable: bool = True
    steerable: bool = False


class TagRule(Struct, frozen=True, forbid_unknown_fields=True):
    also: tuple[str, ...]
    cues: dict[str, float]
    strong: tuple[str, ...]
    weak: tuple[str, ...]


class CommandRule(Struct, frozen=True, forbid_unknown_fields=True):
    phrases: tuple[str, ...]


class Lexicon(Struct, frozen=True, forbid_unknown_fields=True):
    merge: dict[str, tuple[str, ...]]
    classes: dict[str, tuple[str, ...]]
    commands: CommandRule
    cue: dict[str, Cue]
    stopwords: dict[str, str]
    tag: dict[str, TagRule]


class Heard(Struct, frozen=True):
    """What the phrases of the lexicon found in one sentence or clause."""

    cues: frozenset[str]
    tag_phrases: tuple[str, ...]
    is_command: bool


NOTHING_HEARD = Heard(cues=frozenset(), tag_phrases=(), is_command=False)


class Verdict(Struct, frozen=True):
    priority: Priority
    reason: str


@cache
def load_lexicon() -> Lexicon:
    return convert(_read_toml("local_lexicon.toml"), Lexicon)


@cache
def load_weights() -> dict[str, dict[Priority, float]]:
    """Points of each feature for each priority, as `benchmarks/local_analyser.py fit` wrote them."""
    return convert(_read_toml("local_weights.toml"), dict[str, dict[Priority, float]])


def _read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath(name).read_text("utf-8"))


@cache
def _load_merging() -> PhraseBook:
    return PhraseBook(load_lexicon().merge, classes={})


@cache
def _load_phrases() -> PhraseBook:
    """Every phrase of the lexicon under one name: `cue locked_out`, `strong bug`, `command`."""
    lexicon = load_lexicon()
    phrases = {f"cue {name}": cue.en + cue.es for name, cue in lexicon.cue.items()}
    phrases |= {f"strong {name}": rule.strong for name, rule in lexicon.tag.items()}
    phrases |= {f"weak {name}": rule.weak for name, rule in lexicon.tag.items()}
    phrases[COMMAND] = lexicon.commands.phrases
    return PhraseBook(phrases, classes=lexicon.classes)


@cache
def _unconditional() -> frozenset[str]:
    """Names that hold also after a negation."""
    cues = load_lexicon().cue.items()
    return frozenset({COMMAND, *(f"cue {name}" for name, cue in cues if not cue.negatable)})


@cache
def load_stopwords() -> frozenset[str]:
    return frozenset(" ".join(load_lexicon().stopwords.values()).split())


def listen(words: Words) -> Heard:
    """What is said in one sentence; what it denies is left out."""
    merged = merge_words(_load_merging(), words)
    unconditional = _unconditional()
    names = [
        found.name
        for found in _load_phrases().find(merged.words)
        if found.name in unconditional or not is_negated(merged, found.start)
    ]
    return Heard(
        cues=frozenset(name.removeprefix("cue ") for name in names if name.startswith("cue ")),
        tag_phrases=tuple(name for name in names if name.startswith(("strong ", "weak "))),
        is_command=COMMAND in names,
    )


def features_of(cues: Iterable[str], *, asks: bool) -> list[str]:
    """What a priority is computed from: the cues, and what is asked when there is no problem."""
    heard = sorted(cues)
    if any(load_lexicon().cue[cue].problem for cue in heard):
        return heard
    mere = [f"{MERE}{cue}" for cue in QUESTION_CUES if cue in heard]
    return [*heard, *mere, *([f"{MERE}question"] if asks else []), NO_PROBLEM]


def judge(features: Sequence[str]) -> Verdict:
    """The priority with most points, and the cue that gave it most over the other two."""
    weights = load_weights()
    known = [weights[feature] for feature in ("always", *features) if feature in weights]
    totals = {p: round(sum(points[p] for points in known), 6) for p in Priority}
    best = max((Priority.MEDIUM, Priority.HIGH, Priority.LOW), key=lambda p: totals[p])
    return Verdict(best, _reason(features, best))


def _reason(features: Sequence[str], priority: Priority) -> str:
    cues, weights = load_lexicon().cue, load_weights()
    named = [f for f in features if f in cues and f in weights and cues[f].leans is priority]
    if not named:
        return _REASONS_WITHOUT_CUE[priority]
    strongest = max(named, key=lambda f: weights[f][priority])
    reason = cues[strongest].reason
    return f"{reason[0].upper()}{reason[1:]} (rule {strongest})."


_REASONS_WITHOUT_CUE = {
    Priority.HIGH: "Several signs together suggest that this is pressing (rule sum_of_cues).",
    Priority.MEDIUM: "A matter for an agent, with no sign that it is pressing (rule sum_of_cues).",
    Priority.LOW: "Nothing in the text shows a problem (rule no_problem).",
}


def tag_points(cues: Iterable[str], phrases: Iterable[str]) -> dict[str, float]:
    """Points of every built-in tag, in the lexicon's order; the best has enough to count."""
    counts = Counter(phrases)
    heard = sorted(cues)
    points = {
        name: sum(rule.cues.get(cue, 0.0) for cue in heard)
        + _phrase_points(counts[f"strong {name}"], counts[f"weak {name}"])
        for name, rule in load_lexicon().tag.items()
    }
    best = max(points, key=lambda name: points[name])
    if heard and points[best] < MIN_TAG_POINTS:
        points[best if points[best] else _plain_tag(heard)] = MIN_TAG_POINTS
    return points


def _plain_tag(cues: Sequence[str]) -> str:
    """What remains to be said of a conversation that no tag rule knows."""
    if any(load_lexicon().cue[cue].problem for cue in cues):
        return "bug"
    if any(cue.endswith("_question") for cue in cues):
        return "how-to"
    return "complaint" if {"frustrated", "opinion"} & set(cues) else "feedback"


def _phrase_points(strong: int, weak: int) -> float:
    """The first strong phrase counts in full, what follows as a weak one; both are capped."""
    points = STRONG_POINTS + min(strong - 1, MAX_COUNTED - 1) * WEAK_POINTS if strong else 0.0
    return points + min(weak, MAX_COUNTED) * WEAK_POINTS
