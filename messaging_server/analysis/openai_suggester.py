"""Suggested replies of any endpoint that speaks OpenAI's chat completions, by the vendor's SDK.

This module is imported only where it is configured.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
import openai
from openai import AsyncStream
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from messaging_server.analysis import exchange
from messaging_server.analysis.analysers import AnalyserFailed
from messaging_server.analysis.exchange import Dialect, ModelSuggester
from messaging_server.analysis.openai_analyser import SDK
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Meter, Tokens
from messaging_server.config import AiConfig

Chunks = AsyncStream[ChatCompletionChunk]


class OpenAISuggester(ModelSuggester[Chunks]):
    name = "openai"
    sdk = SDK

    def __init__(self, config: AiConfig) -> None:
        super().__init__(config)
        self._dialect = Dialect(format="text")
        self._counts_tokens = True
        self._client = openai.AsyncOpenAI(**exchange.client_settings(config))

    async def aclose(self) -> None:
        await self._client.close()

    async def _start(self, request: dict[str, Any]) -> Chunks:
        stream: Chunks = await self._client.chat.completions.create(**request)
        return stream

    async def _read(self, stream: Chunks, meter: Meter) -> AsyncGenerator[str, None]:
        ended = False
        async with stream as chunks:
            async for chunk in chunks:
                ended = ended or any(choice.finish_reason for choice in chunk.choices or ())
                if chunk.usage:
                    meter.used(_tokens_of(chunk.usage))
                for piece in _texts_of(chunk):
                    yield piece
        if not ended:
            raise exchange.unreachable()

    def _step_down(self, refusal: str) -> bool:
        if self._counts_tokens and "stream_options" in refusal:
            self._counts_tokens = False
            return True
        weaker = self._dialect.weaker(refusal)
        self._dialect = weaker or self._dialect
        return weaker is not None

    def _request(self, question: Sequence[ChatMessage]) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": msgspec.to_builtins(question),
            "stream": True,
            self._dialect.limit: self._config.max_output_tokens,
        }
        if self._dialect.temperature:
            request["temperature"] = self._config.temperature
        if self._counts_tokens:
            request["stream_options"] = {"include_usage": True}
        return request


def _texts_of(chunk: ChatCompletionChunk) -> list[str]:
    """The SDK checks nothing: what is not there is None, whatever its types say."""
    choices = chunk.choices or []
    if any(c.finish_reason == "content_filter" or (c.delta and c.delta.refusal) for c in choices):
        raise AnalyserFailed("the model refused")
    return [choice.delta.content for choice in choices if choice.delta and choice.delta.content]


def _tokens_of(usage: CompletionUsage) -> Tokens:
    details = usage.prompt_tokens_details
    return Tokens(
        input=usage.prompt_tokens,
        output=usage.completion_tokens,
        cached=(details.cached_tokens or 0) if details else 0,
    )
