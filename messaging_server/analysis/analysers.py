"""What an analyser is, how it fails, and which one the configuration asks for.

An analyser turns a transcript into a result; it knows neither the database nor the schedule.
Nothing that it returns or raises is trusted: `bounded` cuts the result to what may be stored, and
an error's message holds neither keys nor anything that was sent or received.
"""

import asyncio
import hashlib
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec
from msgspec import Struct, structs

from messaging_server.analysis.breaker import Breaker
from messaging_server.analysis.local import analyse_transcript
from messaging_server.analysis.spending import Budget, Meter, Tokens, budget_of
from messaging_server.config import AiConfig, PriceConfig, TagConfig
from messaging_server.models import MAX_TAGS, SUMMARY_CHARACTERS, AnalysisResult, TranscriptMessage

REASON_CHARACTERS = 200
TAG_CHARACTERS = 50
REPLY_CHARACTERS = 1_000
SLACK = 10
"""So many times its limit is looked at of a text: all the rest may be white space or unseen."""

SELECTORS = ("\U000e0100", "\U000e01ef")

LOCAL_MODEL = "local-1"
LOCAL_TIMEOUT_SECONDS = 10.0


class AnalyserFailed(Exception):
    """There is no result this time; `retry_after_seconds` is what the provider asked for."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        provider_down: bool = False,
    ) -> None:
        """`provider_down`: the next call of any conversation would most likely fail too."""
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.provider_down = provider_down


class BadOutput(AnalyserFailed):
    """The model answered, but not with a result."""


class Analyser(Protocol):
    """`name`, `model` and `prompt_version` are stored; a run is cut off at `timeout_seconds`."""

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def prompt_version(self) -> str | None: ...

    @property
    def settings(self) -> Sequence[object]:
        """What else changes a result, as JSON can hold it: tags, language…"""
        ...

    @property
    def timeout_seconds(self) -> float: ...

    def most_tokens(self, transcript: Sequence[TranscriptMessage]) -> Tokens:
        """What one run can use at most."""
        ...

    async def analyse(
        self, transcript: Sequence[TranscriptMessage], meter: Meter | None = None
    ) -> AnalysisResult:
        """Raises `AnalyserFailed`; may be called again while a call is under way.

        `meter` counts what it uses, whether it succeeds, fails or is cancelled.
        """
        ...

    async def aclose(self) -> None: ...


class LocalAnalyser:
    """The rules of `local`, in one thread of their own so that the event loop goes on."""

    name = "local"
    model = LOCAL_MODEL
    prompt_version = None
    timeout_seconds = LOCAL_TIMEOUT_SECONDS

    def __init__(self, tags: Sequence[TagConfig]) -> None:
        self._tags = tags
        self.settings = (tags,)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="analysis")

    def most_tokens(self, transcript: Sequence[TranscriptMessage]) -> Tokens:  # noqa: ARG002  # none
        return Tokens()

    async def analyse(
        self, transcript: Sequence[TranscriptMessage], meter: Meter | None = None
    ) -> AnalysisResult:
        if meter is not None:
            meter.begin()
            meter.used(Tokens())
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._analyse, transcript)

    async def aclose(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _analyse(self, transcript: Sequence[TranscriptMessage]) -> AnalysisResult:
        return analyse_transcript(transcript, tags=self._tags)


class Analysers(Struct, frozen=True, kw_only=True):
    """Who analyses, what that may cost, and who stands in where it can't."""

    primary: Analyser
    stand_in: Analyser | None = None
    breaker: Breaker
    price: PriceConfig | None = None
    budget: Budget = Budget()

    @property
    def timeout_seconds(self) -> float:
        """How long a run may take with both."""
        both = (analyser for analyser in (self.primary, self.stand_in) if analyser)
        return sum(analyser.timeout_seconds for analyser in both)

    async def aclose(self) -> None:
        await self.primary.aclose()
        if self.stand_in:
            await self.stand_in.aclose()


def make_analysers(config: AiConfig) -> Analysers:
    needs_stand_in = config.provider != "local" and config.fallback == "local"
    return Analysers(
        primary=make_analyser(config),
        stand_in=LocalAnalyser(config.tags) if needs_stand_in else None,
        breaker=Breaker(),
        price=config.price,
        budget=budget_of(config),
    )


def make_analyser(config: AiConfig) -> Analyser:
    # A vendor's SDK takes a second to import: only when it is chosen.
    if config.provider == "openai":
        from messaging_server.analysis.openai_analyser import OpenAIAnalyser

        return OpenAIAnalyser(config)
    if config.provider == "anthropic":
        from messaging_server.analysis.anthropic_analyser import AnthropicAnalyser

        return AnthropicAnalyser(config)
    return LocalAnalyser(config.tags)


def fingerprint(analyser: Analyser, transcript: Sequence[TranscriptMessage]) -> bytes:
    """Equal for runs that would ask the same of the same; the tags are part of `settings`."""
    asked = (
        analyser.name,
        analyser.model,
        analyser.prompt_version,
        analyser.settings,
        [(message.sender, message.text) for message in transcript],
    )
    return hashlib.sha256(msgspec.json.encode(asked)).digest()


def bounded(result: AnalysisResult) -> AnalysisResult:
    """`result` within the lengths that clients rely on, and without what Postgres can't store."""
    tags = (shortened(tag, TAG_CHARACTERS) for tag in result.tags)
    reply = result.suggested_reply and shortened(result.suggested_reply, REPLY_CHARACTERS)
    reason = result.priority_reason and shortened(result.priority_reason, REASON_CHARACTERS)
    return structs.replace(
        result,
        summary=shortened(result.summary, SUMMARY_CHARACTERS),
        priority_reason=reason or None,
        suggested_reply=reply or None,
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
