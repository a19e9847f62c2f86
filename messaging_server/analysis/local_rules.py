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
ALWAYS = "always"
NO_PROBLEM = "no_problem"
PLAIN_STATEMENT = "plain_statement"
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


class PhraseList(Struct, frozen=True, forbid_unknown_fields=True):
    phrases: tuple[str, ...]


class Lexicon(Struct, frozen=True, forbid_unknown_fields=True):
    merge: dict[str, tuple[str, ...]]
    classes: dict[str, tuple[str, ...]]
    commands: PhraseList
    cue: dict[str, Cue]
    stopwords: dict[str, str]
    weightless: tuple[str, ...]
    equals: dict[str, str]
    tag: dict[str, TagRule]


class Heard(Struct, frozen=True):
    """What the phrases of the lexicon found in one sentence or clause."""

    words: tuple[str, ...]
    cues: frozenset[str]
    tag_phrases: tuple[str, ...]
    is_command: bool


class Signs(Struct, frozen=True):
    """What a priority is judged by: the cues, whether a question is asked, the merged words."""

    cues: frozenset[str]
    asks: bool
    words: frozenset[str]


class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """Points for each priority, of each feature and of each frequent word."""

    features: dict[str, dict[Priority, float]]
    words: dict[str, dict[Priority, float]]


class Verdict(Struct, frozen=True):
    priority: Priority
    reason: str


@cache
def load_lexicon() -> Lexicon:
    return convert(_read_toml("local_lexicon.toml"), Lexicon)


@cache
def load_weights() -> Weights:
    """As `benchmarks/local_analyser.py fit` wrote them."""
    return convert(_read_toml("local_weights.toml"), Weights)


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
        words=merged.words,
        cues=frozenset(name.removeprefix("cue ") for name in names if name.startswith("cue ")),
        tag_phrases=tuple(name for name in names if name.startswith(("strong ", "weak "))),
        is_command=COMMAND in names,
    )


def features_of(signs: Signs) -> list[str]:
    """The cues, and what a question or a statement is when no problem stands beside it."""
    heard = sorted(signs.cues)
    if any(load_lexicon().cue[cue].problem for cue in heard):
        return [ALWAYS, *heard]
    if not signs.asks and not any(load_lexicon().cue[cue].leans is Priority.LOW for cue in heard):
        return [ALWAYS, *heard, PLAIN_STATEMENT]
    mere = [f"{MERE}{cue}" for cue in QUESTION_CUES if cue in heard]
    return [ALWAYS, *heard, *mere, *([f"{MERE}question"] if signs.asks else []), NO_PROBLEM]


def words_of(signs: Signs) -> list[str]:
    """The words that may have weight, Spanish ones by their English equal in the lexicon."""
    equals = load_lexicon().equals
    return sorted({equals.get(word, word) for word in signs.words})


def judge(signs: Signs) -> Verdict:
    """The priority with most points, and what gave it most."""
    weights = load_weights()
    features = [f for f in features_of(signs) if f in weights.features]
    words = [word for word in words_of(signs) if word in weights.words]
    points = [weights.features[f] for f in features] + [weights.words[word] for word in words]
    totals = {p: round(sum(each[p] for each in points), 6) for p in Priority}
    best = max((Priority.MEDIUM, Priority.HIGH, Priority.LOW), key=lambda p: totals[p])
    return Verdict(best, _reason(features, words, best))


def _reason(features: Sequence[str], words: Sequence[str], priority: Priority) -> str:
    """Names the strongest cue that speaks for `priority`; without one, the strongest word."""
    cues, weights = load_lexicon().cue, load_weights()
    named = [f for f in features if f in cues and cues[f].leans is priority]
    if named:
        strongest = max(named, key=lambda f: weights.features[f][priority])
        reason = cues[strongest].reason
        return f"{reason[0].upper()}{reason[1:]} (rule {strongest})."
    if NO_PROBLEM in features and priority is Priority.LOW:
        return f"Nothing in the text shows a problem (rule {NO_PROBLEM})."
    said = max(words, key=lambda word: weights.words[word][priority], default=None)
    example = f', above all "{said}"' if said else ""
    return f"The wording is that of {_KINDS[priority]}{example} (rule wording)."


_KINDS = {
    Priority.HIGH: "pressing matters",
    Priority.MEDIUM: "ordinary problems and requests",
    Priority.LOW: "questions and comments",
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
