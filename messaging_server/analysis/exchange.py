"""What the analysers and suggesters of all vendors have in common: one exchange with a model.

The question, at most one repair, the steps down to what an endpoint accepts, and failures in
words of our own: what a vendor's SDK says quotes keys and bodies.
"""

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct, structs

from messaging_server.analysis import prompt
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig
from messaging_server.models import AnalysisResult, TranscriptMessage

CALLS = 2
"""The question and its repair; each may take `ai.timeout_seconds`."""

OVERHEAD_TOKENS = 200
"""What the vendor puts around a question."""

S = TypeVar("S")

NO_KEY = "none"
"""The SDKs insist on a key; endpoints that need none ignore it."""

NOT_CONNECTED = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""The names that httpx and httpx2, on which the SDKs stand, both have for it."""

OUR_FAULT = frozenset({400, 413, 422})
"""These say something of one question; any other status says that the provider can't be used."""

REFUSALS = frozenset({400, 422})
"""How an endpoint says that it does not know a part of the request."""

NOT_A_STREAM = (ValueError, TypeError, AttributeError)
"""The SDKs check nothing: garbage shows where it is read."""


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


# --- The SDKs ---------------------------------------------------------------------------------


class Sdk(Struct, frozen=True):
    """A vendor's SDK: its errors, and where one has the endpoint's name for it."""

    error: type[Exception]
    status_error: type[Any]
    connection_error: type[Exception]
    timeout_error: type[Exception]
    code: str

    def failure_of(self, error: Exception) -> AnalyserFailed:
        if isinstance(error, self.status_error):
            return status_failure(
                error.status_code, code=getattr(error, self.code), headers=error.response.headers
            )
        if isinstance(error, self.connection_error):
            return unreachable()
        return AnalyserFailed(f"the endpoint's answer can't be used ({type(error).__name__})")

    @contextmanager
    def metered(self, meter: Meter) -> Iterator[None]:
        """One call, which `meter` counts; what was refused or never sent costs nothing."""
        meter.begin()
        try:
            yield
        except self.status_error:
            meter.refused()
            raise
        except self.connection_error as error:
            if not was_sent(error):
                meter.refused()
            raise


def client_settings(config: AiConfig) -> dict[str, Any]:
    """Of every SDK's client. It retries nothing: the schedule does."""
    return {
        "api_key": config.api_key or NO_KEY,
        "base_url": config.base_url or None,
        "timeout": config.timeout_seconds,
        "max_retries": 0,
    }


class ModelAnalyser(ABC):
    """An analyser that asks a model; a vendor's module says in which words."""

    name: ClassVar[str]
    sdk: ClassVar[Sdk]
    prompt_version = prompt.VERSION

    def __init__(self, config: AiConfig) -> None:
        self.model = config.model
        self.timeout_seconds = CALLS * config.timeout_seconds
        self.settings = settings_of(config)
        self._config = config
        self._dialect = Dialect()

    def most_tokens(self, transcript: Sequence[TranscriptMessage]) -> Tokens:
        return most_tokens(transcript, self._config)

    async def analyse(
        self, transcript: Sequence[TranscriptMessage], meter: Meter | None = None
    ) -> AnalysisResult:
        counter = meter or Meter()

        async def complete(question: Sequence[ChatMessage]) -> str:
            return await self._complete(question, counter)

        return await converse(complete, transcript, self._config)

    async def _complete(self, question: Sequence[ChatMessage], meter: Meter) -> str:
        """The model's text. The SDK's timeout is one of silence; this one is of the whole call."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                return self._text_of(await self._send(question, meter))
        except (TimeoutError, self.sdk.timeout_error):
            raise late(self._config.timeout_seconds) from None
        except self.sdk.error as error:
            raise self.sdk.failure_of(error) from None

    async def _send(self, question: Sequence[ChatMessage], meter: Meter) -> bytes:
        """The body of the answer; what the endpoint accepted is remembered for the next call."""
        dialect = self._dialect
        while True:
            try:
                with self.sdk.metered(meter):
                    body = await self._post(self._request(question, dialect))
            except self.sdk.status_error as refusal:
                weaker = self._weaker(dialect, str(refusal))
                if refusal.status_code not in REFUSALS or weaker is None:
                    raise
                dialect = weaker
            else:
                self._dialect = dialect
                if (tokens := self._tokens_of(body)) is not None:
                    meter.used(tokens)
                return body

    def _weaker(self, dialect: Dialect, refusal: str) -> Dialect | None:
        return dialect.weaker(refusal)

    @abstractmethod
    def _request(self, question: Sequence[ChatMessage], dialect: Dialect) -> dict[str, Any]: ...

    @abstractmethod
    async def _post(self, request: dict[str, Any]) -> bytes:
        """The body of the answer, whatever it is; raises the SDK's errors."""

    @abstractmethod
    def _text_of(self, body: bytes) -> str:
        """What the model said; raises `AnalyserFailed`."""

    @abstractmethod
    def _tokens_of(self, body: bytes) -> Tokens | None:
        """What the vendor bills, read apart: who answers nonsense may still bill for it."""

    @abstractmethod
    async def aclose(self) -> None: ...


class ModelSuggester(ABC, Generic[S]):
    """A suggester that streams what a model writes; `S` is the SDK's stream."""

    name: ClassVar[str]
    sdk: ClassVar[Sdk]

    def __init__(self, config: AiConfig) -> None:
        self.model = config.model
        self._config = config

    async def write(
        self, question: Sequence[ChatMessage], meter: Meter
    ) -> AsyncGenerator[str, None]:
        try:
            async with aclosing(self._read(await self._open(question, meter), meter)) as pieces:
                async for piece in pieces:
                    yield piece
        except self.sdk.error as error:
            raise self.sdk.failure_of(error) from None
        except NOT_A_STREAM:
            raise AnalyserFailed("the endpoint's answer is not a stream of text") from None

    async def _open(self, question: Sequence[ChatMessage], meter: Meter) -> S:
        """What the endpoint refuses it is not asked for again."""
        while True:
            try:
                with self.sdk.metered(meter):
                    return await self._start(self._request(question))
            except self.sdk.status_error as refusal:
                if refusal.status_code not in REFUSALS or not self._step_down(str(refusal)):
                    raise

    @abstractmethod
    def _request(self, question: Sequence[ChatMessage]) -> dict[str, Any]: ...

    @abstractmethod
    async def _start(self, request: dict[str, Any]) -> S: ...

    @abstractmethod
    def _step_down(self, refusal: str) -> bool:
        """Whether there was something left to leave out."""

    @abstractmethod
    def _read(self, stream: S, meter: Meter) -> AsyncGenerator[str, None]:
        """The pieces of the text; raises `AnalyserFailed` when it ends too early."""

    @abstractmethod
    async def aclose(self) -> None: ...
