"""An extractive summary: the customer's own sentences, ranked, in their order.

A sentence is worth the key words in it that are not yet said, more so when it is in the first
message or names a problem. Writes no words of its own.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from messaging_server.analysis.local_rules import load_stopwords
from messaging_server.analysis.local_text import split_words

STEM_CHARACTERS = 6
FIRST_MESSAGE_FACTOR = 1.5
PROBLEM_FACTOR = 1.5
NAME_FACTOR = 1.2
ANSWER_FACTOR = 1.5
REPETITION_FACTOR = 0.5
MAX_REPETITIONS = 4
MIN_GAIN = 2.0
ELLIPSIS = "…"


class Sentence(Struct, frozen=True):
    """A sentence as written, the stems that say something, and whether it names a problem."""

    text: str
    stems: tuple[str, ...]
    names_problem: bool
    in_first_message: bool


def summarise(
    sentences: Sequence[Sentence], *, answers: frozenset[str] = frozenset(), limit: int
) -> str:
    """At most `limit` characters, cut between words; empty only when there are no sentences.

    `answers` are the stems of the agents' messages: what they take up is likely the matter.
    """
    if not sentences:
        return ""
    chosen = _choose(sentences, _stem_weights(sentences, answers), limit=limit)
    text = " ".join(_ended(sentences[position].text) for position in sorted(chosen))
    return cut(text[0].upper() + text[1:], limit=limit)


def _ended(text: str) -> str:
    return f"{text}." if text[-1].isalnum() else text


def _choose(
    sentences: Sequence[Sentence], weights: Mapping[str, float], *, limit: int
) -> list[int]:
    """Greedily the sentence that adds most and fits; the first one in any case."""
    left = dict(enumerate(sentences))
    chosen: list[int] = []
    said: set[str] = set()
    room = limit
    while left:
        gains = {p: _gain(sentence, weights, said=said) for p, sentence in left.items()}
        best = max(gains, key=lambda p: (gains[p], -p))
        if chosen and gains[best] < MIN_GAIN:
            break
        chosen.append(best)
        said.update(sentences[best].stems)
        room -= len(sentences[best].text) + 2
        left = {p: s for p, s in left.items() if p != best and len(s.text) <= room}
    return chosen


def _gain(sentence: Sentence, weights: Mapping[str, float], *, said: set[str]) -> float:
    new = sum(weights[stem] for stem in dict.fromkeys(sentence.stems) if stem not in said)
    factor = PROBLEM_FACTOR if sentence.names_problem else 1.0
    factor *= FIRST_MESSAGE_FACTOR if sentence.in_first_message else 1.0
    return round(new * factor, 6)


def _stem_weights(sentences: Sequence[Sentence], answers: frozenset[str]) -> dict[str, float]:
    """How much a stem is worth: more when repeated, a name or code, or taken up by an agent."""
    counts = Counter(stem for sentence in sentences for stem in sentence.stems)
    names = {stem for sentence in sentences for stem in _name_stems(sentence.text)}
    return {
        stem: (1.0 + REPETITION_FACTOR * min(count - 1, MAX_REPETITIONS))
        * (NAME_FACTOR if stem in names else 1.0)
        * (ANSWER_FACTOR if stem in answers else 1.0)
        for stem, count in counts.items()
    }


def key_stems(words: Iterable[str]) -> tuple[str, ...]:
    """The words that say something, cut to stems: `flights` and `flight` are the same."""
    stopwords = load_stopwords()
    return tuple(
        word.removesuffix("s")[:STEM_CHARACTERS]
        for word in words
        if word not in stopwords and (len(word) > 2 or not word.isalpha())
    )


def _name_stems(text: str) -> tuple[str, ...]:
    """Stems of words with a capital inside a sentence, or a digit."""
    named = [word for word in text.split()[1:] if word[0].isupper() and not word.isupper()]
    named += [word for word in text.split() if any(c.isdigit() for c in word)]
    return key_stems([w for word in named for w in split_words(word).words])


def cut(text: str, *, limit: int) -> str:
    """`text` within `limit` characters, ended between words with an ellipsis when it is longer."""
    if len(text) <= limit:
        return text
    head = text[: limit - len(ELLIPSIS)]
    between = head.rfind(" ")
    head = head[:between] if between > limit // 2 else head
    return head.rstrip(" ,;:-") + ELLIPSIS
