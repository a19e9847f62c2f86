"""Suggested replies by Anthropic's messages, by the vendor's SDK.

This module is imported only where it is configured.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import anthropic
import msgspec
from anthropic import AsyncStream
from anthropic.types import RawMessageStreamEvent

from messaging_server.analysis import exchange
from messaging_server.analysis.analysers import AnalyserFailed
from messaging_server.analysis.anthropic_analyser import failure_of
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig

NOT_A_STREAM = (ValueError, TypeError, AttributeError)
"""The SDK checks nothing: garbage shows where it is read."""


class AnthropicSuggester:
    name = "anthropic"

    def __init__(self, config: AiConfig) -> None:
        self.model = config.model
        self._config = config
        self._with_temperature = True
        self._client = anthropic.AsyncAnthropic(
            api_key=config.api_key or exchange.NO_KEY,
            base_url=config.base_url or None,
            timeout=config.timeout_seconds,
            max_retries=0,
        )

    async def write(
        self, question: Sequence[ChatMessage], meter: Meter
    ) -> AsyncGenerator[str, None]:
        read = Tokens()
        ended = False
        try:
            async with await self._open(question, meter) as events:
                async for event in events:
                    if event.type == "message_start":
                        read = _read_tokens(event.message.usage)
                    elif event.type == "message_delta":
                        ended = True
                        meter.used(_with_output(read, event.usage.output_tokens))
                        if event.delta.stop_reason == "refusal":
                            raise AnalyserFailed("the model refused")
                    elif event.type == "content_block_delta" and event.delta.type == "text_delta":
                        yield event.delta.text
        except anthropic.AnthropicError as error:
            raise failure_of(error) from None
        except NOT_A_STREAM:
            raise AnalyserFailed("the endpoint's answer is not a stream of text") from None
        if not ended:
            raise exchange.unreachable()

    async def aclose(self) -> None:
        await self._client.close()

    async def _open(
        self, question: Sequence[ChatMessage], meter: Meter
    ) -> AsyncStream[RawMessageStreamEvent]:
        """A model that refuses `temperature` is asked without it from then on."""
        while True:
            meter.begin()
            try:
                stream: AsyncStream[RawMessageStreamEvent]
                stream = await self._client.messages.create(**self._request(question))
            except anthropic.APIStatusError as refusal:
                meter.refused()
                tells = refusal.status_code == 400 and "temperature" in str(refusal).lower()
                if not (self._with_temperature and tells):
                    raise
                self._with_temperature = False
            except anthropic.APIConnectionError as error:
                if not exchange.was_sent(error):
                    meter.refused()
                raise
            else:
                return stream

    def _request(self, question: Sequence[ChatMessage]) -> dict[str, Any]:
        system, *turns = question
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self._config.max_output_tokens,
            "system": system.content,
            "messages": msgspec.to_builtins(turns),
            "stream": True,
        }
        if self._with_temperature:
            request["extra_body"] = {"temperature": min(self._config.temperature, 1.0)}
        return request


def _read_tokens(usage: anthropic.types.Usage) -> Tokens:
    """`input_tokens` are without those that were written to the cache or read from it."""
    cached = usage.cache_read_input_tokens or 0
    written = usage.cache_creation_input_tokens or 0
    return Tokens(input=usage.input_tokens + cached + written, cached=cached)


def _with_output(read: Tokens, output: int) -> Tokens:
    return Tokens(input=read.input, output=output, cached=read.cached)
