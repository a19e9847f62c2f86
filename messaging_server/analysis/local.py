"""The `local` analyser: summary, priority and tags of a conversation, by rules, in this process.

No network, no key, no model. The same transcript always gives the same result, and no text makes
it fail. The customer's messages decide; the agents' only tell whether thanks close the matter.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

from msgspec import Struct

from messaging_server.analysis.local_commands import Believed, read_believable
from messaging_server.analysis.local_rules import (
    Signs,
    Verdict,
    judge,
    load_lexicon,
    tag_points,
)
from messaging_server.analysis.local_summary import Sentence, key_stems, summarise
from messaging_server.analysis.local_tags import choose_tags
from messaging_server.analysis.local_text import clean, guess_language, split_words
from messaging_server.config import TagConfig
from messaging_server.models import (
    SUMMARY_CHARACTERS,
    TRANSCRIPT_MESSAGES,
    AnalysisResult,
    Priority,
    SenderType,
    TranscriptMessage,
)

CLOSING_WORDS = 10
TRANSCRIPT_CHARACTERS = 5_000
MIN_MESSAGE_CHARACTERS = 60
ANSWER_CHARACTERS = 400
NOTHING_TO_READ = {
    "en": "The customer sent nothing that can be summarised.",
    "es": "El cliente no envió nada que se pueda resumir.",
}

_ONE_LESS = {Priority.HIGH: Priority.MEDIUM, Priority.MEDIUM: Priority.LOW}


class Reading(Struct, frozen=True):
    """One message as read: its believable sentences, and what is heard in them."""

    sentences: tuple[Believed, ...]
    cues: frozenset[str]

    @property
    def asks(self) -> bool:
        return any("?" in sentence.text for sentence in self.sentences)


def analyse_transcript(
    messages: Sequence[TranscriptMessage], *, tags: Sequence[TagConfig] = ()
) -> AnalysisResult:
    """The newest TRANSCRIPT_MESSAGES of `messages` (oldest first) judged; never raises.

    With `tags`, the team's own list, only names of that list come out.
    """
    recent = messages[-TRANSCRIPT_MESSAGES:]
    lead = _read(recent, sender=SenderType.LEAD)
    spoken = lead or _read(recent, sender=SenderType.AGENT)
    words = [word for reading in spoken for s in reading.sentences for word in s.words]
    language = guess_language(words)
    summary = summarise(
        _summary_sentences(spoken), answers=_answer_stems(recent), limit=SUMMARY_CHARACTERS
    )
    verdict = _decide(lead, answered=_is_answered(recent))
    return AnalysisResult(
        summary=summary or NOTHING_TO_READ["es" if language == "es" else "en"],
        priority=verdict.priority,
        priority_reason=verdict.reason,
        tags=choose_tags(_tag_points(spoken), said=key_stems(words), team=tags),
        language=language,
    )


def signs_of_transcript(messages: Sequence[TranscriptMessage]) -> Signs:
    """What a priority is judged by; for `benchmarks/local_analyser.py`, which fits the weights."""
    return _signs(_read(messages[-TRANSCRIPT_MESSAGES:], sender=SenderType.LEAD))


def _read(messages: Sequence[TranscriptMessage], *, sender: SenderType) -> list[Reading]:
    """The messages of one side, oldest first, as far as TRANSCRIPT_CHARACTERS reach back."""
    readings: list[Reading] = []
    room = TRANSCRIPT_CHARACTERS
    for message in reversed([m for m in messages if m.sender is sender]):
        text = clean(message.text, limit=max(room, MIN_MESSAGE_CHARACTERS))
        room -= len(text)
        readings.append(_read_message(text))
    return readings[::-1]


def _read_message(text: str) -> Reading:
    believed, commanded = read_believable(text)
    heard = _all(sentence.heard.cues for sentence in believed)
    cues = load_lexicon().cue
    if commanded:
        heard = frozenset(cue for cue in heard if not cues[cue].steerable)
    return Reading(sentences=tuple(believed), cues=heard)


def _all(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(chain.from_iterable(sets))


def _summary_sentences(readings: Sequence[Reading]) -> list[Sentence]:
    cues = load_lexicon().cue
    return [
        Sentence(
            text=sentence.text,
            stems=key_stems(sentence.words),
            names_problem=any(cues[cue].problem for cue in sentence.heard.cues),
            in_first_message=position == 0,
        )
        for position, reading in enumerate(readings)
        for sentence in reading.sentences
    ]


def _answer_stems(messages: Sequence[TranscriptMessage]) -> frozenset[str]:
    answers = [m.text[:ANSWER_CHARACTERS] for m in messages if m.sender is SenderType.AGENT]
    return frozenset(chain.from_iterable(key_stems(split_words(text).words) for text in answers))


def _is_answered(messages: Sequence[TranscriptMessage]) -> bool:
    """Whether an agent wrote before the customer's last message."""
    senders = [message.sender for message in messages]
    while senders and senders[-1] is not SenderType.LEAD:
        senders.pop()
    return SenderType.AGENT in senders


def _decide(lead: Sequence[Reading], *, answered: bool) -> Verdict:
    if not lead:
        return Verdict(Priority.LOW, "The customer has not written yet (rule no_customer_message).")
    if not any(reading.sentences for reading in lead):
        return Verdict(
            Priority.MEDIUM,
            "The customer's message holds nothing to judge by (rule nothing_to_read).",
        )
    if _is_solved(lead):
        return Verdict(Priority.LOW, "The customer says that it is solved (rule solved).")
    verdict = judge(_signs(lead))
    if answered and verdict.priority in _ONE_LESS and _is_closing(lead[-1]):
        lowered = _ONE_LESS[verdict.priority]
        return Verdict(
            lowered, "The customer ended with thanks for an answer (rule closing_thanks)."
        )
    return verdict


def _signs(lead: Sequence[Reading]) -> Signs:
    sentences = [sentence for reading in lead for sentence in reading.sentences]
    return Signs(
        cues=_all(reading.cues for reading in lead),
        asks=any(reading.asks for reading in lead),
        words=_all(frozenset(sentence.heard.words) for sentence in sentences),
    )


def _is_solved(lead: Sequence[Reading]) -> bool:
    """The last message says so; alone, it must name no problem, since then it is no news."""
    last = lead[-1].cues
    if "solved" not in last or "still_wrong" in last:
        return False
    return len(lead) > 1 or not any(load_lexicon().cue[cue].problem for cue in last)


def _is_closing(last: Reading) -> bool:
    words = sum(len(sentence.words) for sentence in last.sentences)
    calm = last.cues <= {"thanks", "praise", "help_request"}
    return "thanks" in last.cues and calm and not last.asks and words <= CLOSING_WORDS


def _tag_points(readings: Sequence[Reading]) -> dict[str, float]:
    sentences = [sentence for reading in readings for sentence in reading.sentences]
    phrases = chain.from_iterable(sentence.heard.tag_phrases for sentence in sentences)
    return tag_points(_all(reading.cues for reading in readings), phrases)
