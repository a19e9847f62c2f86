"""What an analyser is, how it fails, and which one the configuration asks for.

An analyser turns a transcript into a result; it knows neither the database nor the schedule.
Nothing that it returns or raises is trusted: `bounded` cuts the result to what may be stored, and
an error's message holds neither keys nor anything that was sent or received.
"""

import asyncio
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from msgspec import structs

from messaging_server.analysis.local import analyse_transcript
from messaging_server.config import AiConfig, TagConfig
from messaging_server.models import MAX_TAGS, SUMMARY_CHARACTERS, AnalysisResult, TranscriptMessage

REASON_CHARACTERS = 200
TAG_CHARACTERS = 50
SLACK = 10
"""So many times its limit is looked at of a text: all the rest may be white space or unseen."""

SELECTORS = ("\U000e0100", "\U000e01ef")

LOCAL_MODEL = "local-1"
LOCAL_TIMEOUT_SECONDS = 10.0


class AnalyserFailed(Exception):
    """There is no result this time; `retry_after_seconds` is what the provider asked for."""

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class BadOutput(AnalyserFailed):
    """The model answered, but not with a result."""


class Analyser(Protocol):
    """`name` and `model` are stored with each result; a run is cut off at `timeout_seconds`."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def timeout_seconds(self) -> float: ...

    async def analyse(self, transcript: Sequence[TranscriptMessage]) -> AnalysisResult:
        """Raises `AnalyserFailed`; may be called again while a call is under way."""
        ...

    async def aclose(self) -> None: ...


class LocalAnalyser:
    """The rules of `local`, in one thread of their own so that the event loop goes on."""

    name = "local"
    model = LOCAL_MODEL
    timeout_seconds = LOCAL_TIMEOUT_SECONDS

    def __init__(self, tags: Sequence[TagConfig]) -> None:
        self._tags = tags
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="analysis")

    async def analyse(self, transcript: Sequence[TranscriptMessage]) -> AnalysisResult:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._analyse, transcript)

    async def aclose(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _analyse(self, transcript: Sequence[TranscriptMessage]) -> AnalysisResult:
        return analyse_transcript(transcript, tags=self._tags)


def make_analyser(config: AiConfig) -> Analyser:
    if config.provider == "openai":
        # The vendor's SDK takes a second to import: only when it is chosen.
        from messaging_server.analysis.openai_analyser import OpenAIAnalyser

        return OpenAIAnalyser(config)
    return LocalAnalyser(config.tags)


def bounded(result: AnalysisResult) -> AnalysisResult:
    """`result` within the lengths that clients rely on, and without what Postgres can't store."""
    tags = (shortened(tag, TAG_CHARACTERS) for tag in result.tags)
    reason = result.priority_reason and shortened(result.priority_reason, REASON_CHARACTERS)
    return structs.replace(
        result,
        summary=shortened(result.summary, SUMMARY_CHARACTERS),
        priority_reason=reason or None,
        tags=tuple(dict.fromkeys(tag for tag in tags if tag))[:MAX_TAGS],
    )


def shortened(text: str, limit: int) -> str:
    """`text` on one line, visible characters only, cut between words where it is too long."""
    line = " ".join(visible(text[: SLACK * limit]).split())
    if len(line) <= limit:
        return line
    head = line[: limit - 1]
    at_word, _, rest = head.rpartition(" ")
    return (at_word if len(rest) < limit // 2 and at_word else head).rstrip() + "…"


def visible(text: str) -> str:
    """`text` without control, format, private and unassigned characters and lone surrogates.

    They can carry what people don't see: zero-width and bidirectional marks, tag characters,
    variation selectors of the supplement (Unicode TR 36).
    """
    if text.replace("\n", "").isprintable() and max(text, default="") < SELECTORS[0]:
        return text
    return "".join(c for c in text if _is_visible(c))


def _is_visible(character: str) -> bool:
    if SELECTORS[0] <= character <= SELECTORS[1]:
        return False
    return character in "\n\t" or unicodedata.category(character)[0] != "C"
