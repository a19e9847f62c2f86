"""Measures the `local` analyser on labelled conversations, and fits its priority weights.

    python benchmarks/local_analyser.py measure LABELLED.jsonl [...]
    python benchmarks/local_analyser.py fit LABELLED.jsonl [...] [--write]

A line of a file: `{id, messages: [{sender, text}], labels: {priority: [A, B], tags: [[...], [...]],
keywords: [[...], [...]]}}`, one entry of each label for each reader. `fit` prints the score by
ten-fold cross-validation of the weights; with `--write` it replaces `local_weights.toml`. Pure
Python and without chance: the same files give the same weights.
"""

import json
import math
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from msgspec import Struct

from messaging_server.analysis import local_rules
from messaging_server.analysis.local import analyse_transcript, signs_of_transcript
from messaging_server.analysis.local_rules import Signs, Weights
from messaging_server.models import AnalysisResult, Priority, SenderType, TranscriptMessage

WEIGHTS_FILE = Path(local_rules.__file__).with_name("local_weights.toml")
FOLDS = 10
STEPS = 150
STEP_SIZE = 6.0
MOMENTUM = 0.9
# What a cue weighs before any example: this for the priority it leans to, half against the others.
PRIOR_POINTS = 1.0
# How firmly weights are held to that; a word's prior is nothing.
FEATURE_STRENGTH = 0.005
WORD_STRENGTH = 0.02
MIN_WORD_CONVERSATIONS = 8
MIN_WORD_POINTS = 0.07
# Phrases of unseen texts are often not in the lexicon: each example is also learned from COPIES
# times with that share of its cues unheard, so that the words learn to stand in for them.
COPIES = 2
UNHEARD_SHARE = 0.35
CLASSES = tuple(Priority)


class Example(Struct, frozen=True):
    messages: tuple[TranscriptMessage, ...]
    priorities: tuple[Priority, ...]
    tags: tuple[frozenset[str], ...]
    keywords: tuple[str, ...]
    signs: Signs


def read_examples(paths: Sequence[Path]) -> list[Example]:
    lines = [line for path in paths for line in path.read_text("utf-8").splitlines()]
    return [_example(json.loads(line)) for line in lines if line.strip()]


def _example(row: Mapping[str, object]) -> Example:
    labels = row["labels"]
    messages = tuple(
        TranscriptMessage(sender=SenderType(m["sender"]), text=m["text"] or "")
        for m in row["messages"]
    )
    return Example(
        messages=messages,
        priorities=tuple(map(Priority, labels["priority"])),
        tags=tuple(map(frozenset, labels["tags"])),
        keywords=tuple(word for words in labels["keywords"] for word in words),
        signs=signs_of_transcript(messages),
    )


def fit_weights(examples: Sequence[Example]) -> Weights:
    """Multinomial logistic regression, held to a prior; every priority weighs the same."""
    priors = feature_priors()
    words = frequent_words(examples)
    names = [*priors, *words]
    strengths = [FEATURE_STRENGTH] * len(priors) + [WORD_STRENGTH] * len(words)
    prior = [priors.get(name, (0.0, 0.0, 0.0)) for name in names]
    places = {name: place for place, name in enumerate(names)}
    lessons = list(_lessons(examples, places))
    points = _descend(lessons, prior, strengths)
    table = {
        name: {p: round(v, 2) for p, v in zip(CLASSES, points[place], strict=True)}
        for name, place in places.items()
    }
    return Weights(
        features={name.removeprefix("feature "): table[name] for name in priors},
        words={
            name.removeprefix("word "): table[name]
            for name in words
            if max(map(abs, table[name].values())) >= MIN_WORD_POINTS
        },
    )


def feature_priors() -> dict[str, tuple[float, ...]]:
    """What the lexicon says before any example is seen."""
    priors = {
        f"feature {name}": tuple(
            PRIOR_POINTS if p is cue.leans else -PRIOR_POINTS / 2 for p in CLASSES
        )
        for name, cue in local_rules.load_lexicon().cue.items()
    }
    mere = [f"{local_rules.MERE}{cue}" for cue in (*local_rules.QUESTION_CUES, "question")]
    for name in (local_rules.ALWAYS, *mere, local_rules.NO_PROBLEM):
        priors[f"feature {name}"] = tuple(0.0 for _ in CLASSES)
    return priors


def frequent_words(examples: Sequence[Example]) -> list[str]:
    counts = Counter(word for e in examples for word in local_rules.words_of(e.signs))
    weightless = local_rules.load_lexicon().weightless
    return sorted(
        f"word {word}"
        for word, count in counts.items()
        if count >= MIN_WORD_CONVERSATIONS and word.isalpha() and len(word) > 1 and word not in weightless
    )


class Lesson(Struct, frozen=True):
    """Places of what is present in one example, and the share of the loss of each priority."""

    places: tuple[int, ...]
    shares: tuple[float, ...]


def _lessons(examples: Sequence[Example], places: Mapping[str, int]) -> Iterator[Lesson]:
    counts = Counter(p for e in examples for p in e.priorities)
    chance = random.Random(0)  # noqa: S311  (repeatable, not secret)
    for example in examples:
        shares = tuple(
            sum(v is p for v in example.priorities) / (len(CLASSES) * counts[p] * (COPIES + 1))
            for p in CLASSES
        )
        for copy in range(COPIES + 1):
            cues = [c for c in sorted(example.signs.cues) if not copy or chance.random() > UNHEARD_SHARE]
            signs = Signs(cues=frozenset(cues), asks=example.signs.asks, words=example.signs.words)
            yield Lesson(places=tuple(_places(signs, places)), shares=shares)


def _places(signs: Signs, places: Mapping[str, int]) -> list[int]:
    names = [f"feature {name}" for name in local_rules.features_of(signs)]
    names += [f"word {word}" for word in local_rules.words_of(signs)]
    return [places[name] for name in names if name in places]


def _descend(
    lessons: Sequence[Lesson],
    prior: Sequence[Sequence[float]],
    strengths: Sequence[float],
) -> list[list[float]]:
    """The points of least loss, by gradient descent with momentum."""
    points = [list(each) for each in prior]
    speed = [[0.0 for _ in CLASSES] for _ in prior]
    for _ in range(STEPS):
        slope = _slope(lessons, points)
        for place, strength in enumerate(strengths):
            for k in range(len(CLASSES)):
                pull = slope[place][k] + strength * (points[place][k] - prior[place][k])
                speed[place][k] = MOMENTUM * speed[place][k] - STEP_SIZE * (1 - MOMENTUM) * pull
                points[place][k] += speed[place][k]
    return points


def _slope(lessons: Sequence[Lesson], points: Sequence[Sequence[float]]) -> list[list[float]]:
    slope = [[0.0 for _ in CLASSES] for _ in points]
    for lesson in lessons:
        present = [points[place] for place in lesson.places]
        exps = [math.exp(sum(each)) for each in zip(*present, strict=True)]
        scale = sum(lesson.shares) / sum(exps)
        errors = [e * scale - share for e, share in zip(exps, lesson.shares, strict=True)]
        for place in lesson.places:
            row = slope[place]
            for k, error in enumerate(errors):
                row[k] += error
    return slope


def predict(weights: Weights, signs: Signs) -> Priority:
    present = [weights.features[f] for f in local_rules.features_of(signs) if f in weights.features]
    present += [weights.words[w] for w in local_rules.words_of(signs) if w in weights.words]
    return max(CLASSES, key=lambda p: sum(each[p] for each in present))


def macro_f1(verdicts: Sequence[Priority], examples: Sequence[Example]) -> float:
    """Against each reader, averaged."""
    readers = range(len(examples[0].priorities))
    scores = [_f1(verdicts, [e.priorities[r] for e in examples], p) for r in readers for p in CLASSES]
    return sum(scores) / len(scores)


def _f1(verdicts: Sequence[Priority], truth: Sequence[Priority], p: Priority) -> float:
    both = sum(v is p and t is p for v, t in zip(verdicts, truth, strict=True))
    either = sum((v is p) + (t is p) for v, t in zip(verdicts, truth, strict=True))
    return 2 * both / either if either else 0.0


def cross_validated(examples: Sequence[Example]) -> list[Priority]:
    """For each example the verdict of weights that were fitted without it."""
    verdicts: dict[int, Priority] = {}
    for fold in range(FOLDS):
        rest = [e for i, e in enumerate(examples) if i % FOLDS != fold]
        weights = fit_weights(rest)
        for i in range(fold, len(examples), FOLDS):
            verdicts[i] = predict(weights, examples[i].signs)
    return [verdicts[i] for i in range(len(examples))]


def write_weights(weights: Weights) -> None:
    lines = [
        "# Points for each priority; the priority with most points wins.",
        "# Written by `benchmarks/local_analyser.py fit`; explained in docs/local-analyser.md.",
    ]
    for title, table in (("features", weights.features), ("words", weights.words)):
        lines += ["", f"[{title}]"]
        for name, points in table.items():
            values = ", ".join(f"{p.value} = {points[p]:.2f}" for p in CLASSES)
            lines.append(f"{name} = {{ {values} }}")
    WEIGHTS_FILE.write_text("\n".join(lines) + "\n", "utf-8")


def covers(summary: str, keywords: Sequence[str]) -> bool:
    """Whether a keyword or an inflection of it stands in the summary as a whole word."""
    text = summary.casefold().replace("’", "'")
    return any(re.search(rf"(?<!\w){re.escape(k.casefold())}(?:\w{{0,3}})(?!\w)", text) for k in keywords)


def right_first_tag(result: AnalysisResult, example: Example) -> bool:
    return bool(result.tags) and any(result.tags[0] in tags for tags in example.tags)


def mean(values: Iterator[bool | float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


@click.group()
def cli() -> None:
    """Measure or fit the `local` analyser."""


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--verbose", is_flag=True, help="Print what differs from both readers.")
def measure(paths: tuple[Path, ...], verbose: bool) -> None:
    """Score the analyser as it ships."""
    examples = read_examples(paths)
    started = time.process_time()
    results = [analyse_transcript(e.messages) for e in examples]
    milliseconds = (time.process_time() - started) * 1000 / len(examples)
    verdicts = [r.priority for r in results]
    pairs = list(zip(results, examples, strict=True))
    click.echo(f"conversations         {len(examples)}")
    click.echo(f"priority macro-F1     {macro_f1(verdicts, examples):.3f}")
    click.echo(f"priority accuracy     {mean(r.priority in e.priorities for r, e in pairs):.3f}")
    click.echo(f"first tag right       {mean(right_first_tag(r, e) for r, e in pairs):.3f}")
    click.echo(f"keyword coverage      {mean(covers(r.summary, e.keywords) for r, e in pairs if e.keywords) if any(e.keywords for e in examples) else 0:.3f}")
    click.echo(f"CPU per conversation  {milliseconds:.2f} ms")
    if verbose:
        _print_differences(pairs)


def _print_differences(pairs: Sequence[tuple[AnalysisResult, Example]]) -> None:
    for result, example in pairs:
        said = " // ".join(m.text for m in example.messages if m.sender is SenderType.LEAD)
        notes = []
        if result.priority not in example.priorities:
            notes.append(f"{'/'.join(example.priorities)} but {result.priority}: {result.priority_reason} {sorted(example.signs.cues)}")
        if not right_first_tag(result, example):
            notes.append(f"{sorted(example.tags[0])} but {result.tags}")
        if example.keywords and not covers(result.summary, example.keywords):
            notes.append(f"{example.keywords} not in {result.summary!r}")
        if notes:
            click.echo(f"\n{said[:400]!r}\n  " + "\n  ".join(notes))


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--write", is_flag=True, help="Replace local_weights.toml.")
def fit(paths: tuple[Path, ...], write: bool) -> None:
    """Fit the weights, and score them by cross-validation."""
    examples = read_examples(paths)
    weights = fit_weights(examples)
    fitted = [predict(weights, e.signs) for e in examples]
    click.echo(f"macro-F1 on what it was fitted on  {macro_f1(fitted, examples):.3f}")
    click.echo(f"macro-F1 by {FOLDS}-fold cross-validation {macro_f1(cross_validated(examples), examples):.3f}")
    if write:
        write_weights(weights)
        click.echo(f"wrote {WEIGHTS_FILE}")


if __name__ == "__main__":
    sys.exit(cli())
