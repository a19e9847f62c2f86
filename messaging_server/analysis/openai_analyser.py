"""The `openai` analyser: any endpoint that speaks OpenAI's chat completions, by the vendor's SDK.

It asks for structured output and steps down to what the endpoint accepts. The SDK retries
nothing: the schedule does. This module is imported only where it is configured.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import openai
from msgspec import Struct

from messaging_server.analysis import exchange, prompt
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.exchange import Dialect
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig
from messaging_server.models import AnalysisResult, TranscriptMessage


class _ReplyMessage(Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct, frozen=True):
    message: _ReplyMessage
    finish_reason: str | None = None


class _PromptDetails(Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Completion(Struct, frozen=True):
    """What matters of a chat completion; the SDK's own type checks nothing."""

    choices: list[_Choice]


class _Bill(Struct, frozen=True):
    """Of the same body, read apart: who answers nonsense may still bill for it."""

    usage: _Usage


_completions = msgspec.json.Decoder(_Completion)
_bills = msgspec.json.Decoder(_Bill)


class OpenAIAnalyser:
    name = "openai"
    prompt_version = prompt.VERSION

    def __init__(self, config: AiConfig) -> None:
        self.model = config.model
        self.timeout_seconds = exchange.CALLS * config.timeout_seconds
        self.settings = exchange.settings_of(config)
        self._config = config
        self._dialect = Dialect()
        self._client = openai.AsyncOpenAI(
            api_key=config.api_key or exchange.NO_KEY,
            base_url=config.base_url or None,
            timeout=config.timeout_seconds,
            max_retries=0,
        )

    def most_tokens(self, transcript: Sequence[TranscriptMessage]) -> Tokens:
        return exchange.most_tokens(transcript, self._config)

    async def analyse(
        self, transcript: Sequence[TranscriptMessage], meter: Meter | None = None
    ) -> AnalysisResult:
        counter = meter or Meter()

        async def complete(question: Sequence[ChatMessage]) -> str:
            return await self._complete(question, counter)

        return await exchange.converse(complete, transcript, self._config)

    async def aclose(self) -> None:
        await self._client.close()

    async def _complete(self, question: Sequence[ChatMessage], meter: Meter) -> str:
        """The model's text. The SDK's timeout is one of silence; this one is of the whole call."""
        try:
            async with asyncio.timeout(self._config.timeout_seconds):
                return _text_of(await self._send(question, meter))
        except (TimeoutError, openai.APITimeoutError):
            raise exchange.late(self._config.timeout_seconds) from None
        except openai.OpenAIError as error:
            raise failure_of(error) from None

    async def _send(self, question: Sequence[ChatMessage], meter: Meter) -> bytes:
        """The body of the answer; what the endpoint accepted is remembered for the next call."""
        dialect = self._dialect
        while True:
            try:
                body = await self._call(self._request(question, dialect), meter)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
                weaker = dialect.weaker(str(refusal))
                if weaker is None:
                    raise
                dialect = weaker
            else:
                self._dialect = dialect
                return body

    async def _call(self, request: dict[str, Any], meter: Meter) -> bytes:
        meter.begin()
        try:
            reply = await self._client.chat.completions.with_raw_response.create(**request)
        except openai.APIStatusError:
            meter.refused()
            raise
        except openai.APIConnectionError as error:
            if not exchange.was_sent(error):
                meter.refused()
            raise
        body: bytes = reply.content
        if (tokens := _tokens_of(body)) is not None:
            meter.used(tokens)
        return body

    def _request(self, question: Sequence[ChatMessage], dialect: Dialect) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": msgspec.to_builtins(question),
            dialect.limit: self._config.max_output_tokens,
        }
        if dialect.temperature:
            request["temperature"] = self._config.temperature
        if dialect.format == "json_schema":
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": "analysis",
                    "strict": True,
                    "schema": exchange.schema_of(self._config),
                },
            }
        elif dialect.format == "json_object":
            request["response_format"] = {"type": "json_object"}
        return request


def _text_of(body: bytes) -> str:
    try:
        choice = _completions.decode(body).choices[0]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
        raise AnalyserFailed("the endpoint's answer is not a chat completion") from None
    if choice.message.refusal or choice.finish_reason == "content_filter":
        raise AnalyserFailed("the model refused")
    if choice.finish_reason == "length" and not choice.message.content:
        raise BadOutput("nothing within ai.max_output_tokens")
    return choice.message.content or ""


def _tokens_of(body: bytes) -> Tokens | None:
    try:
        usage = _bills.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    details = usage.prompt_tokens_details
    return Tokens(
        input=usage.prompt_tokens,
        output=usage.completion_tokens,
        cached=(details.cached_tokens or 0) if details else 0,
    )


def failure_of(error: openai.OpenAIError) -> AnalyserFailed:
    if isinstance(error, openai.APIStatusError):
        return exchange.status_failure(
            error.status_code, code=error.code, headers=error.response.headers
        )
    if isinstance(error, openai.APIConnectionError):
        return exchange.unreachable()
    return AnalyserFailed(f"the endpoint's answer can't be used ({type(error).__name__})")
