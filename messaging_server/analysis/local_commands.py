"""Removal of what a customer writes in order to command the analyser.

Three kinds: lines that pretend to be another speaker's turn, clauses that say what to answer
(`[commands]` in the lexicon), and around those the words that could steer (`steerable` cues).
"""

import re

from msgspec import Struct

from messaging_server.analysis.local_rules import Heard, listen
from messaging_server.analysis.local_text import split_clauses, split_sentences, split_words

MIN_CLAUSE_WORDS = 4

_SPEAKERS = (
    "system|sistema|assistant|asistente|developer|admin|agent|agente"
    "|instructions?|instrucci[oó]n(?:es)?"
)
_MARKUP = r"<\s*/?\s*\w*[|>]|<\|[^>]*\|>|\[/?(?:INST|SYS)[^\]]*\]"
_FAKE_TURN = re.compile(
    rf"^\W*(?:{_SPEAKERS})(?:\s+(?:prompt|message|note|override|mensaje|nota))?\s*[:\]>|]"
    rf"|^\s*(?:{_MARKUP}|#{{2,}}\s*(?:system|instruc))",
    re.IGNORECASE,
)
_TURN_END = re.compile(r"/|end", re.IGNORECASE)
_TURN_WITHIN_LINE = re.compile(rf"(?={_MARKUP}|\b(?:SYSTEM|SISTEMA|ASSISTANT|ASISTENTE)\s*:)")


class Believed(Struct, frozen=True):
    """A sentence, or what is left of one, with what is heard in it."""

    text: str
    words: tuple[str, ...]
    heard: Heard


def read_believable(text: str) -> tuple[list[Believed], bool]:
    """The sentences of a cleaned text that may be believed, and whether a command was dropped."""
    lines = _TURN_WITHIN_LINE.sub("\n", text).split("\n")
    honest = _without_fake_turns(lines)
    sentences = [sentence for line in honest for sentence in split_sentences(line)]
    believed = [part for sentence in sentences for part in _believable_parts(sentence)]
    commanded = len(honest) < len(lines) or [part.text for part in believed] != sentences
    return believed, commanded


def _without_fake_turns(lines: list[str]) -> list[str]:
    """A turn that is only announced (`SYSTEM:` alone on its line) lasts until an empty line."""
    honest: list[str] = []
    muted = False
    for line in lines:
        turn = _FAKE_TURN.search(line)
        if turn:
            announced = not any(c.isalnum() for c in line[turn.end() :])
            muted = announced and not _TURN_END.search(turn.group())
        elif not line.strip():
            muted = False
        if not turn and not muted:
            honest.append(line)
    return honest


def _believable_parts(sentence: str) -> list[Believed]:
    """`sentence`, or of one with a command the longer clauses without it."""
    whole = _listen(sentence)
    if not whole.heard.is_command:
        return [whole]
    clauses = split_clauses(sentence)
    parts = [_listen(clause) for clause in clauses] if len(clauses) > 1 else []
    return [p for p in parts if len(p.words) >= MIN_CLAUSE_WORDS and not p.heard.is_command]


def _listen(text: str) -> Believed:
    words = split_words(text)
    return Believed(text=text, words=words.words, heard=listen(words))
