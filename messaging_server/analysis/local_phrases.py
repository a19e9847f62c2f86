"""Phrases of the lexicon, compiled, and found in text by a look-up on their first word.

A phrase is a list of elements: words (exact or by their beginning) or a gap.
The grammar is explained at the top of `local_lexicon.toml`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from messaging_server.analysis.local_text import Words

NEGATION_WORDS = 3

_GAPS = {"..": 3, "...": 8}
_NEGATIONS = frozenset(
    [
        *("not", "no", "never", "without", "dont", "didnt", "doesnt", "isnt", "wasnt", "arent"),
        *("hasnt", "havent", "hadnt", "wont", "nunca", "jamas", "sin", "tampoco", "ni"),
    ]
)


class Element(Struct, frozen=True):
    """The words that may stand here, at most `gap` words after the element before."""

    words: frozenset[str]
    beginnings: tuple[str, ...]
    gap: int

    def accepts(self, word: str) -> bool:
        return word in self.words or word.startswith(self.beginnings)


class Found(Struct, frozen=True):
    """A phrase of `name` in the words from `start` to before `end`."""

    name: str
    start: int
    end: int


class PhraseBook:
    """Finds which of many named phrases stand in a text; a few look-ups a word."""

    def __init__(
        self, phrases: Mapping[str, Iterable[str]], *, classes: Mapping[str, Sequence[str]]
    ) -> None:
        self._by_word: dict[str, list[tuple[str, tuple[Element, ...]]]] = {}
        self._by_beginning: dict[str, list[tuple[str, tuple[Element, ...]]]] = {}
        for name, texts in phrases.items():
            for text in texts:
                self._add(name, _compile(text, classes=classes))
        self._lengths = sorted({len(beginning) for beginning in self._by_beginning})

    def _add(self, name: str, elements: tuple[Element, ...]) -> None:
        for word in elements[0].words:
            self._by_word.setdefault(word, []).append((name, elements[1:]))
        for beginning in elements[0].beginnings:
            self._by_beginning.setdefault(beginning, []).append((name, elements[1:]))

    def find(self, words: Sequence[str]) -> Iterator[Found]:
        """All matches from left to right; of the same phrase at the same place the shortest."""
        starting = {word: self._starting_with(word) for word in words}
        for start, word in enumerate(words):
            for name, rest in starting[word]:
                end = _match_end(rest, words, start + 1) if rest else start + 1
                if end:
                    yield Found(name, start, end)

    def _starting_with(self, word: str) -> list[tuple[str, tuple[Element, ...]]]:
        phrases = list(self._by_word.get(word, ()))
        for length in self._lengths:
            if length <= len(word):
                phrases += self._by_beginning.get(word[:length], ())
        return phrases


def _compile(phrase: str, *, classes: Mapping[str, Sequence[str]]) -> tuple[Element, ...]:
    elements: list[Element] = []
    gap = 0
    for part in phrase.split():
        if part not in _GAPS:
            elements.append(_element(part, gap=gap, classes=classes))
        gap = _GAPS.get(part, 0)
    return tuple(elements)


def _element(part: str, *, gap: int, classes: Mapping[str, Sequence[str]]) -> Element:
    options: list[str] = []
    for option in part.split("|"):
        options += classes[option[1:-1]] if option.startswith("<") else [option]
    return Element(
        words=frozenset(option for option in options if not option.endswith("*")),
        beginnings=tuple(sorted({option[:-1] for option in options if option.endswith("*")})),
        gap=gap,
    )


def _match_end(elements: Sequence[Element], words: Sequence[str], position: int) -> int:
    """The position after the match, 0 when there is none."""
    element = elements[0]
    for here in range(position, min(position + element.gap + 1, len(words))):
        if element.accepts(words[here]):
            end = _match_end(elements[1:], words, here + 1) if len(elements) > 1 else here + 1
            if end:
                return end
    return 0


def merge_words(book: PhraseBook, words: Words) -> Words:
    """`words` with every group that the book knows as one word: `is not able to` as `is cant`."""
    longest: dict[int, Found] = {}
    for found in book.find(words.words):
        if found.start not in longest or found.end > longest[found.start].end:
            longest[found.start] = found
    merged: list[str] = []
    breaks: list[bool] = []
    position = 0
    while position < len(words.words):
        group = longest.get(position)
        merged.append(group.name if group else words.words[position])
        breaks.append(words.breaks[position])
        position = group.end if group else position + 1
    return Words(tuple(merged), tuple(breaks))


def is_negated(words: Words, start: int) -> bool:
    """Whether one of the few words before `start`, in the same clause, is a negation."""
    for position in range(start, max(start - NEGATION_WORDS, 0), -1):
        if words.breaks[position]:
            return False
        if words.words[position - 1] in _NEGATIONS:
            return True
    return False
