"""The `openai` analyser: any endpoint that speaks OpenAI's chat completions, by the vendor's SDK.

It asks for structured output and steps down to what the endpoint accepts. This module is
imported only where it is configured.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
import openai
from msgspec import Struct

from messaging_server.analysis import exchange
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.exchange import Dialect, ModelAnalyser, Sdk
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Tokens
from messaging_server.config import AiConfig


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


SDK = Sdk(
    error=openai.OpenAIError,
    status_error=openai.APIStatusError,
    connection_error=openai.APIConnectionError,
    timeout_error=openai.APITimeoutError,
    code="code",
)


class OpenAIAnalyser(ModelAnalyser):
    name = "openai"
    sdk = SDK

    def __init__(self, config: AiConfig) -> None:
        super().__init__(config)
        self._client = openai.AsyncOpenAI(**exchange.client_settings(config))

    async def aclose(self) -> None:
        await self._client.close()

    async def _post(self, request: dict[str, Any]) -> bytes:
        reply = await self._client.chat.completions.with_raw_response.create(**request)
        body: bytes = reply.content
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

    def _text_of(self, body: bytes) -> str:
        try:
            choice = _completions.decode(body).choices[0]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError):
            raise AnalyserFailed("the endpoint's answer is not a chat completion") from None
        if choice.message.refusal or choice.finish_reason == "content_filter":
            raise AnalyserFailed("the model refused")
        if choice.finish_reason == "length" and not choice.message.content:
            raise BadOutput("nothing within ai.max_output_tokens")
        return choice.message.content or ""

    def _tokens_of(self, body: bytes) -> Tokens | None:
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
