"""Measures the `local` analyser on labelled conversations, and fits its priority weights.

    python benchmarks/local_analyser.py measure LABELLED.jsonl [...]
    python benchmarks/local_analyser.py fit LABELLED.jsonl [...] [--write]

The files are those of `python -m messaging_server evaluate` (docs/evaluate.md). `fit` prints the
score by ten-fold cross-validation of the weights; with `--write` it replaces `local_weights.toml`.
Pure Python and without chance: the same files give the same weights.
"""

import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
import msgspec
from msgspec import Struct

from messaging_server.analysis import local_rules, scoring
from messaging_server.analysis.labelled import LabelledConversation, Labels, read_labelled
from messaging_server.analysis.local import analyse_transcript, signs_of_transcript
from messaging_server.analysis.local_rules import Signs, Weights
from messaging_server.models import AnalysisResult, Priority, SenderType, TranscriptMessage

WEIGHTS_FILE = Path(local_rules.__file__).with_name("local_weights.toml")
FOLDS = 10
STEPS = 150
STEP_SIZE = 6.0
MOMENTUM = 0.9
# What a cue weighs before any example: this for the priority it leans to, half against the others.
# More for HIGH, since its causes are few in the examples but given by definition.
PRIOR_POINTS = {Priority.HIGH: 1.6, Priority.MEDIUM: 0.5, Priority.LOW: 0.7}
# How firmly weights are held to that; a word's prior is nothing.
FEATURE_STRENGTH = 0.01
WORD_STRENGTH = 0.01
MIN_WORD_CONVERSATIONS = 6
MIN_WORD_POINTS = 0.1
# Phrases of unseen texts are often not in the lexicon: each example is also learned from COPIES
# times with that share of its cues unheard, so that the words learn to stand in for them.
COPIES = 3
UNHEARD_SHARE = 0.5
CLASSES = tuple(Priority)


class Example(Struct, frozen=True):
    messages: tuple[TranscriptMessage, ...]
    labels: Labels
    signs: Signs


def read_examples(paths: Sequence[Path]) -> list[Example]:
    return [_example(conversation) for path in paths for conversation in read_labelled(path)]


def _example(conversation: LabelledConversation) -> Example:
    return Example(
        messages=conversation.messages,
        labels=conversation.labels,
        signs=signs_of_transcript(conversation.messages),
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
        f"feature {name}": _prior(cue.leans) for name, cue in local_rules.load_lexicon().cue.items()
    }
    mere = [f"{local_rules.MERE}{cue}" for cue in (*local_rules.QUESTION_CUES, "question")]
    for name in (local_rules.ALWAYS, *mere, local_rules.NO_PROBLEM):
        priors[f"feature {name}"] = tuple(0.0 for _ in CLASSES)
    priors[f"feature {local_rules.PLAIN_STATEMENT}"] = _prior(Priority.MEDIUM)
    return priors


def _prior(leans: Priority) -> tuple[float, ...]:
    return tuple(PRIOR_POINTS[leans] * (1.0 if p is leans else -0.5) for p in CLASSES)


def frequent_words(examples: Sequence[Example]) -> list[str]:
    counts = Counter(word for e in examples for word in local_rules.words_of(e.signs))
    weightless = local_rules.load_lexicon().weightless
    return sorted(
        f"word {word}"
        for word, count in counts.items()
        if count >= MIN_WORD_CONVERSATIONS
        and word.isalpha()
        and len(word) > 1
        and word not in weightless
    )


class Lesson(Struct, frozen=True):
    """Places of what is present in one example, and the share of the loss of each priority."""

    places: tuple[int, ...]
    shares: tuple[float, ...]


def _lessons(examples: Sequence[Example], places: Mapping[str, int]) -> Iterator[Lesson]:
    counts = Counter(p for e in examples for p in e.labels.priority)
    chance = random.Random(0)  # noqa: S311  (repeatable, not secret)
    for example in examples:
        shares = tuple(
            sum(v is p for v in example.labels.priority) / (len(CLASSES) * counts[p] * (COPIES + 1))
            for p in CLASSES
        )
        for copy in range(COPIES + 1):
            signs = _partly_heard(example.signs, UNHEARD_SHARE if copy else 0.0, chance)
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
    return scoring.macro_f1(verdicts, [e.labels.priority for e in examples]) or 0.0


def cross_validated(examples: Sequence[Example], *, unheard: Sequence[float]) -> list[float]:
    """Macro-F1 of weights fitted without the example they judge, for each share in `unheard`.

    The lexicon has read these examples, so with every cue heard the figure flatters; with a third
    of the cues unheard it is nearer to what texts get that nobody has read.
    """
    fitted = [
        fit_weights([e for i, e in enumerate(examples) if i % FOLDS != fold])
        for fold in range(FOLDS)
    ]
    figures: list[float] = []
    for share in unheard:
        chance = random.Random(1)  # noqa: S311  (repeatable, not secret)
        verdicts = [
            predict(fitted[i % FOLDS], _partly_heard(e.signs, share, chance))
            for i, e in enumerate(examples)
        ]
        figures.append(macro_f1(verdicts, examples))
    return figures


def _partly_heard(signs: Signs, unheard: float, chance: random.Random) -> Signs:
    heard = frozenset(cue for cue in sorted(signs.cues) if chance.random() >= unheard)
    return Signs(cues=heard, asks=signs.asks, words=signs.words)


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
    pairs = list(zip(results, examples, strict=True))
    scores = scoring.score([(result, example.labels) for result, example in pairs])
    click.echo(f"{'conversations':22} {len(examples)}")
    for name, figure in msgspec.structs.asdict(scores).items():
        click.echo(f"{name.replace('_', ' '):22} {figure:.4g}")
    click.echo(f"{'CPU milliseconds each':22} {milliseconds:.4g}")
    if verbose:
        _print_differences(pairs)


def _print_differences(pairs: Sequence[tuple[AnalysisResult, Example]]) -> None:
    for result, example in pairs:
        notes = list(_differences(result, example))
        if notes:
            said = " // ".join(m.text for m in example.messages if m.sender is SenderType.LEAD)
            click.echo("\n  ".join([f"\n{said[:400]!r}", *notes]))


def _differences(result: AnalysisResult, example: Example) -> Iterator[str]:
    if result.priority not in example.labels.priority:
        cues = " ".join(sorted(example.signs.cues))
        readers = "/".join(example.labels.priority)
        yield f"{readers} but {result.priority}: {result.priority_reason} {cues}"
    if not scoring.has_right_first_tag(result, example.labels):
        yield f"{example.labels.tags} but {result.tags}"
    if any(example.labels.keywords) and not scoring.covers(result.summary, example.labels.keywords):
        yield f"{example.labels.keywords} not in {result.summary!r}"


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--write", is_flag=True, help="Replace local_weights.toml.")
def fit(paths: tuple[Path, ...], write: bool) -> None:
    """Fit the weights, and score them by cross-validation."""
    examples = read_examples(paths)
    weights = fit_weights(examples)
    fitted = [predict(weights, e.signs) for e in examples]
    whole, partly = cross_validated(examples, unheard=(0.0, 0.35))
    click.echo(f"macro-F1 on what it was fitted on             {macro_f1(fitted, examples):.3f}")
    click.echo(f"macro-F1 by {FOLDS}-fold cross-validation          {whole:.3f}")
    click.echo(f"... with 35 % of the cues unheard              {partly:.3f}")
    if write:
        write_weights(weights)
        click.echo(f"wrote {WEIGHTS_FILE}")


if __name__ == "__main__":
    sys.exit(cli())
