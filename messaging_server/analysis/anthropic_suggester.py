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
from messaging_server.analysis.anthropic_analyser import SDK
from messaging_server.analysis.exchange import ModelSuggester
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig

Events = AsyncStream[RawMessageStreamEvent]


class AnthropicSuggester(ModelSuggester[Events]):
    name = "anthropic"
    sdk = SDK

    def __init__(self, config: AiConfig) -> None:
        super().__init__(config)
        self._with_temperature = True
        self._client = anthropic.AsyncAnthropic(**exchange.client_settings(config))

    async def aclose(self) -> None:
        await self._client.close()

    async def _start(self, request: dict[str, Any]) -> Events:
        stream: Events = await self._client.messages.create(**request)
        return stream

    async def _read(self, stream: Events, meter: Meter) -> AsyncGenerator[str, None]:
        read = Tokens()
        ended = False
        async with stream as events:
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
        if not ended:
            raise exchange.unreachable()

    def _step_down(self, refusal: str) -> bool:
        """A model that refuses `temperature` is asked without it from then on."""
        steps = self._with_temperature and "temperature" in refusal.lower()
        self._with_temperature = self._with_temperature and not steps
        return steps

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
