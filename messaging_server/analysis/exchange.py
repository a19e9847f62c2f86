"""What the analysers of all vendors have in common: one exchange with a model.

The question, at most one repair, the steps down to what an endpoint accepts, and failures in
words of our own: what a vendor's SDK says quotes keys and bodies.
"""

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec
from msgspec import Struct, structs

from messaging_server.analysis import prompt
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Tokens
from messaging_server.config import AiConfig
from messaging_server.models import AnalysisResult, TranscriptMessage

CALLS = 2
"""The question and its repair; each may take `ai.timeout_seconds`."""

OVERHEAD_TOKENS = 200
"""What the vendor puts around a question."""

NO_KEY = "none"
"""The SDKs insist on a key; endpoints that need none ignore it."""

NOT_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""The names that httpx and httpx2, on which the SDKs stand, both have for it."""

OUR_FAULT = frozenset({400, 413, 422})
"""These say something of one question; any other status says that the provider can't be used."""


class Dialect(Struct, frozen=True):
    """What an endpoint accepts of what is asked of it."""

    format: Literal["json_schema", "json_object", "text"] = "json_schema"
    temperature: bool = True
    limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"

    def weaker(self, refusal: str) -> "Dialect | None":
        """What to ask after a refusal in these words; None when nothing is left to leave out."""
        if self.temperature and "temperature" in refusal.lower():
            return structs.replace(self, temperature=False)
        if self.limit != "max_tokens" and "max_completion_tokens" in refusal:
            return structs.replace(self, limit="max_tokens")
        if self.format == "json_schema":
            return structs.replace(self, format="json_object")
        if self.format == "json_object":
            return structs.replace(self, format="text")
        return None


Complete = Callable[[Sequence[ChatMessage]], Awaitable[str]]
"""One call: the model's text; raises `AnalyserFailed`."""


def question_of(
    transcript: Sequence[TranscriptMessage], config: AiConfig
) -> tuple[ChatMessage, ...]:
    return prompt.ask(
        transcript,
        tags=config.tags,
        language=config.language,
        with_reply=config.suggested_replies,
    )


def schema_of(config: AiConfig) -> dict[str, Any]:
    return prompt.answer_schema(config.tags, with_reply=config.suggested_replies)


def settings_of(config: AiConfig) -> tuple[object, ...]:
    """What of the configuration changes a result, besides the model."""
    return (config.tags, config.language, config.suggested_replies, config.temperature)


async def converse(
    complete: Complete, transcript: Sequence[TranscriptMessage], config: AiConfig
) -> AnalysisResult:
    """Ask, and once more if what comes back can't be read."""
    question = question_of(transcript, config)
    answer = await complete(question)
    try:
        return prompt.read_answer(answer, tags=config.tags)
    except BadOutput as error:
        question += prompt.ask_again(answer, error)
    return prompt.read_answer(await complete(question), tags=config.tags)


def most_tokens(transcript: Sequence[TranscriptMessage], config: AiConfig) -> Tokens:
    """What `converse` can use at most: no tokenizer makes more tokens than there are bytes."""
    question = msgspec.json.encode(question_of(transcript, config))
    asked = len(question) + len(msgspec.json.encode(schema_of(config))) + OVERHEAD_TOKENS
    repair = 4 * prompt.REPAIR_CHARACTERS + OVERHEAD_TOKENS
    return Tokens(input=CALLS * asked + repair, output=CALLS * config.max_output_tokens)


def status_failure(status: int, *, code: object, headers: Mapping[str, str]) -> AnalyserFailed:
    """What an endpoint's error means; `code` is its name for it."""
    named = f" ({code})" if isinstance(code, str) and re.fullmatch("[a-z_]{1,64}", code) else ""
    return AnalyserFailed(
        f"the endpoint answered {status}{named}",
        retry_after_seconds=retry_after_seconds(headers.get("retry-after")),
        provider_down=status not in OUR_FAULT,
    )


def unreachable() -> AnalyserFailed:
    return AnalyserFailed("the endpoint can't be reached or cut the connection", provider_down=True)


def was_sent(error: Exception) -> bool:
    """False where there was no connection, so that nothing can be billed."""
    return type(error.__cause__).__name__ not in NOT_CONNECTED


def late(seconds: float) -> AnalyserFailed:
    return AnalyserFailed(f"no answer within {seconds:g} s", provider_down=True)


def retry_after_seconds(header: str | None) -> float | None:
    """`Retry-After` as seconds or as a date (RFC 9110, 10.2.3); None for anything else."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", header):
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
