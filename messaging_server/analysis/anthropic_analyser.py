"""The `anthropic` analyser: Anthropic's messages, by the vendor's SDK.

It asks for output by a schema and steps down to what the endpoint accepts. This module is
imported only where it is configured.
"""

from collections.abc import Sequence
from typing import Any

import anthropic
import msgspec
from msgspec import Struct, structs

from messaging_server.analysis import exchange
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.exchange import Dialect, ModelAnalyser, Sdk
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.analysis.spending import Tokens
from messaging_server.config import AiConfig


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


SDK = Sdk(
    error=anthropic.AnthropicError,
    status_error=anthropic.APIStatusError,
    connection_error=anthropic.APIConnectionError,
    timeout_error=anthropic.APITimeoutError,
    code="type",
)


class AnthropicAnalyser(ModelAnalyser):
    name = "anthropic"
    sdk = SDK

    def __init__(self, config: AiConfig) -> None:
        super().__init__(config)
        self._client = anthropic.AsyncAnthropic(**exchange.client_settings(config))

    async def aclose(self) -> None:
        await self._client.close()

    async def _post(self, request: dict[str, Any]) -> bytes:
        reply = await self._client.messages.with_raw_response.create(**request)
        body: bytes = await reply.read()
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

    def _weaker(self, dialect: Dialect, refusal: str) -> Dialect | None:
        """Anthropic has no JSON mode between a schema and plain text."""
        weaker = dialect.weaker(refusal)
        if weaker is not None and weaker.format == "json_object":
            return structs.replace(weaker, format="text")
        return weaker

    def _text_of(self, body: bytes) -> str:
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

    def _tokens_of(self, body: bytes) -> Tokens | None:
        try:
            usage = _bills.decode(body).usage
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        cached = usage.cache_read_input_tokens or 0
        written = usage.cache_creation_input_tokens or 0
        return Tokens(
            input=usage.input_tokens + cached + written, output=usage.output_tokens, cached=cached
        )
