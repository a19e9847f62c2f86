"""The `anthropic` analyser: Anthropic's messages, by the vendor's SDK.

It asks for output by a schema and steps down to what the endpoint accepts. The SDK retries
nothing: the schedule does. This module is imported only where it is configured.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import anthropic
import msgspec
from msgspec import Struct, structs

from messaging_server.analysis import exchange, prompt
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.exchange import Dialect
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig
from messaging_server.models import AnalysisResult, TranscriptMessage


class _Block(Struct, frozen=True):
    type: str
    text: str | None = None


class _Usage(Struct, frozen=True):
    """`input_tokens` are without those that were written to the cache or read from it."""

    input_tokens: int
    output_tokens: int = 0
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Reply(Struct, frozen=True):
    """What matters of a message; the SDK's own type checks nothing."""

    content: list[_Block]
    stop_reason: str | None = None


class _Bill(Struct, frozen=True):
    """Of the same body, read apart: who answers nonsense may still bill for it."""

    usage: _Usage


_replies = msgspec.json.Decoder(_Reply)
_bills = msgspec.json.Decoder(_Bill)


class AnthropicAnalyser:
    name = "anthropic"
    prompt_version = prompt.VERSION

    def __init__(self, config: AiConfig) -> None:
        self.model = config.model
        self.timeout_seconds = exchange.CALLS * config.timeout_seconds
        self.settings = exchange.settings_of(config)
        self._config = config
        self._dialect = Dialect()
        self._client = anthropic.AsyncAnthropic(
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
        except (TimeoutError, anthropic.APITimeoutError):
            raise exchange.late(self._config.timeout_seconds) from None
        except anthropic.AnthropicError as error:
            raise failure_of(error) from None

    async def _send(self, question: Sequence[ChatMessage], meter: Meter) -> bytes:
        """The body of the answer; what the endpoint accepted is remembered for the next call."""
        dialect = self._dialect
        while True:
            try:
                body = await self._call(self._request(question, dialect), meter)
            except (anthropic.BadRequestError, anthropic.UnprocessableEntityError) as refusal:
                weaker = _weaker(dialect, str(refusal))
                if weaker is None:
                    raise
                dialect = weaker
            else:
                self._dialect = dialect
                return body

    async def _call(self, request: dict[str, Any], meter: Meter) -> bytes:
        meter.begin()
        try:
            reply = await self._client.messages.with_raw_response.create(**request)
        except anthropic.APIStatusError:
            meter.refused()
            raise
        except anthropic.APIConnectionError as error:
            if not exchange.was_sent(error):
                meter.refused()
            raise
        body: bytes = await reply.read()
        if (tokens := _tokens_of(body)) is not None:
            meter.used(tokens)
        return body

    def _request(self, question: Sequence[ChatMessage], dialect: Dialect) -> dict[str, Any]:
        system, *turns = question
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self._config.max_output_tokens,
            "system": system.content,
            "messages": msgspec.to_builtins(turns),
        }
        if dialect.temperature:
            # The SDK has no parameter for it any more; older models take it.
            request["extra_body"] = {"temperature": min(self._config.temperature, 1.0)}
        if dialect.format == "json_schema":
            schema = exchange.schema_of(self._config)
            request["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
        return request


def _weaker(dialect: Dialect, refusal: str) -> Dialect | None:
    """Anthropic has no JSON mode between a schema and plain text."""
    weaker = dialect.weaker(refusal)
    if weaker is not None and weaker.format == "json_object":
        return structs.replace(weaker, format="text")
    return weaker


def _text_of(body: bytes) -> str:
    try:
        reply = _replies.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise AnalyserFailed("the endpoint's answer is not a message") from None
    if reply.stop_reason == "refusal":
        raise AnalyserFailed("the model refused")
    text = "".join(block.text or "" for block in reply.content if block.type == "text")
    if reply.stop_reason == "max_tokens" and not text:
        raise BadOutput("nothing within ai.max_output_tokens")
    return text


def _tokens_of(body: bytes) -> Tokens | None:
    try:
        usage = _bills.decode(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    cached = usage.cache_read_input_tokens or 0
    written = usage.cache_creation_input_tokens or 0
    return Tokens(
        input=usage.input_tokens + cached + written, output=usage.output_tokens, cached=cached
    )


def failure_of(error: anthropic.AnthropicError) -> AnalyserFailed:
    if isinstance(error, anthropic.APIStatusError):
        return exchange.status_failure(
            error.status_code, code=error.type, headers=error.response.headers
        )
    if isinstance(error, anthropic.APIConnectionError):
        return exchange.unreachable()
    return AnalyserFailed(f"the endpoint's answer can't be used ({type(error).__name__})")
