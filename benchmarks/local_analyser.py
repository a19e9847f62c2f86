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
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from msgspec import Struct

from messaging_server.analysis import local_rules
from messaging_server.analysis.local import analyse_transcript, features_of_transcript
from messaging_server.models import AnalysisResult, Priority, SenderType, TranscriptMessage

WEIGHTS_FILE = Path(local_rules.__file__).with_name("local_weights.toml")
FOLDS = 10
STEPS = 400
STEP_SIZE = 2.0
MOMENTUM = 0.9
# How firmly a weight is held to what the lexicon says that its cue leans to.
PRIOR_POINTS = 1.0
PRIOR_STRENGTH = 0.01
CLASSES = tuple(Priority)

Weights = dict[str, dict[Priority, float]]


class Example(Struct, frozen=True):
    messages: tuple[TranscriptMessage, ...]
    priorities: tuple[Priority, ...]
    tags: tuple[frozenset[str], ...]
    keywords: tuple[str, ...]
    features: tuple[str, ...]


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
        features=("always", *features_of_transcript(messages)),
    )


def prior_weights() -> Weights:
    """What the lexicon says before any example is seen."""
    weights: Weights = {"always": dict.fromkeys(CLASSES, 0.0)}
    for name, cue in local_rules.load_lexicon().cue.items():
        weights[name] = {p: PRIOR_POINTS if p is cue.leans else -PRIOR_POINTS / 2 for p in CLASSES}
    names = [f"{local_rules.MERE}{cue}" for cue in local_rules.QUESTION_CUES]
    for name in (*names, f"{local_rules.MERE}question", local_rules.NO_PROBLEM):
        weights[name] = dict.fromkeys(CLASSES, 0.0)
    return weights


def fit_weights(examples: Sequence[Example]) -> Weights:
    """Multinomial logistic regression, held to the prior; every class weighs the same."""
    prior = prior_weights()
    weights = {name: dict(points) for name, points in prior.items()}
    velocity = {name: dict.fromkeys(CLASSES, 0.0) for name in prior}
    targets = _targets(examples)
    for _ in range(STEPS):
        slope = _slope(weights, targets)
        for name, points in weights.items():
            for p in CLASSES:
                pull = slope[name][p] + PRIOR_STRENGTH * (points[p] - prior[name][p])
                velocity[name][p] = MOMENTUM * velocity[name][p] - STEP_SIZE * (1 - MOMENTUM) * pull
                points[p] += velocity[name][p]
    return weights


def _targets(examples: Sequence[Example]) -> list[tuple[tuple[str, ...], Priority, float]]:
    """Each reader's verdict on each example, with its weight."""
    verdicts = [(e.features, p) for e in examples for p in e.priorities]
    counts = {p: sum(verdict is p for _, verdict in verdicts) for p in CLASSES}
    return [(features, p, 1 / (len(CLASSES) * counts[p])) for features, p in verdicts]


def _slope(weights: Weights, targets: list[tuple[tuple[str, ...], Priority, float]]) -> Weights:
    slope = {name: dict.fromkeys(CLASSES, 0.0) for name in weights}
    for features, verdict, share in targets:
        exps = {p: math.exp(sum(weights[f][p] for f in features)) for p in CLASSES}
        total = sum(exps.values())
        for p in CLASSES:
            error = share * (exps[p] / total - (p is verdict))
            for feature in features:
                slope[feature][p] += error
    return slope


def predict(weights: Weights, features: Sequence[str]) -> Priority:
    return max(CLASSES, key=lambda p: sum(weights[f][p] for f in features))


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
            verdicts[i] = predict(weights, examples[i].features)
    return [verdicts[i] for i in range(len(examples))]


def write_weights(weights: Weights) -> None:
    lines = [
        "# Points of each cue for each priority; the priority with most points wins.",
        "# Written by `benchmarks/local_analyser.py fit`; explained in docs/local-analyser.md.",
    ]
    for name, points in weights.items():
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
            notes.append(f"{'/'.join(example.priorities)} but {result.priority}: {result.priority_reason} {example.features[1:]}")
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
    fitted = [predict(weights, e.features) for e in examples]
    click.echo(f"macro-F1 on what it was fitted on  {macro_f1(fitted, examples):.3f}")
    click.echo(f"macro-F1 by {FOLDS}-fold cross-validation {macro_f1(cross_validated(examples), examples):.3f}")
    if write:
        write_weights(weights)
        click.echo(f"wrote {WEIGHTS_FILE}")


if __name__ == "__main__":
    sys.exit(cli())
