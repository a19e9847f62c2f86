"""The `openai` analyser: any endpoint that speaks OpenAI's chat completions, by the vendor's SDK.

It asks for structured output and steps down to what the endpoint accepts. The SDK retries
nothing: the schedule does. This module is imported only where it is configured.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import msgspec
import openai
from msgspec import Struct, structs

from messaging_server.analysis import prompt
from messaging_server.analysis.analysers import AnalyserFailed, BadOutput
from messaging_server.analysis.prompt import ChatMessage
from messaging_server.config import AiConfig
from messaging_server.models import AnalysisResult, TranscriptMessage

CALLS = 2
"""The question and its repair; each may take `ai.timeout_seconds`."""

NO_KEY = "none"
"""The SDK insists on a key; endpoints that need none ignore it."""


class Dialect(Struct, frozen=True):
    """What an endpoint accepts of what is asked of it."""

    format: Literal["json_schema", "json_object", "text"] = "json_schema"
    temperature: bool = True

    def weaker(self, refusal: openai.APIStatusError) -> "Dialect | None":
        """What to ask after this refusal; None when nothing is left to leave out."""
        if self.temperature and "temperature" in str(refusal).lower():
            return structs.replace(self, temperature=False)
        if self.format == "json_schema":
            return structs.replace(self, format="json_object")
        if self.format == "json_object":
            return structs.replace(self, format="text")
        return None


class _ReplyMessage(Struct, frozen=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(Struct, frozen=True):
    message: _ReplyMessage
    finish_reason: str | None = None


class _Completion(Struct, frozen=True):
    """What matters of a chat completion; the SDK's own type checks nothing."""

    choices: list[_Choice]


_completions = msgspec.json.Decoder(_Completion)


class OpenAIAnalyser:
    name = "openai"

    def __init__(self, config: AiConfig) -> None:
        self.model = config.model
        self.timeout_seconds = CALLS * config.timeout_seconds
        self._call_seconds = config.timeout_seconds
        self._temperature = config.temperature
        self._tags = config.tags
        self._dialect = Dialect()
        self._client = openai.AsyncOpenAI(
            api_key=config.api_key or NO_KEY,
            base_url=config.base_url or None,
            timeout=config.timeout_seconds,
            max_retries=0,
        )

    async def analyse(self, transcript: Sequence[TranscriptMessage]) -> AnalysisResult:
        question = prompt.ask(transcript, tags=self._tags)
        answer = await self._complete(question)
        try:
            return prompt.read_answer(answer, tags=self._tags)
        except BadOutput as error:
            question += prompt.ask_again(answer, error)
        return prompt.read_answer(await self._complete(question), tags=self._tags)

    async def aclose(self) -> None:
        await self._client.close()

    async def _complete(self, question: Sequence[ChatMessage]) -> str:
        """The model's text. The SDK's timeout is one of silence; this one is of the whole call."""
        try:
            async with asyncio.timeout(self._call_seconds):
                return _text_of(await self._send(question))
        except (TimeoutError, openai.APITimeoutError):
            raise AnalyserFailed(f"no answer within {self._call_seconds:g} s") from None
        except openai.OpenAIError as error:
            raise _failure(error) from None

    async def _send(self, question: Sequence[ChatMessage]) -> bytes:
        """The body of the answer; what the endpoint accepted is remembered for the next call."""
        dialect = self._dialect
        while True:
            try:
                reply = await self._client.chat.completions.with_raw_response.create(
                    **self._request(question, dialect)
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as refusal:
                weaker = dialect.weaker(refusal)
                if weaker is None:
                    raise
                dialect = weaker
            else:
                self._dialect = dialect
                body: bytes = reply.content
                return body

    def _request(self, question: Sequence[ChatMessage], dialect: Dialect) -> dict[str, Any]:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": msgspec.to_builtins(question),
        }
        if dialect.temperature:
            request["temperature"] = self._temperature
        if dialect.format == "json_schema":
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": "analysis",
                    "strict": True,
                    "schema": prompt.answer_schema(self._tags),
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
    return choice.message.content or ""


def _failure(error: openai.OpenAIError) -> AnalyserFailed:
    """The SDK's error in words of our own: its message quotes keys and bodies."""
    if isinstance(error, openai.APIStatusError):
        code = getattr(error, "code", None)
        named = f" ({code})" if isinstance(code, str) and re.fullmatch("[a-z_]{1,64}", code) else ""
        return AnalyserFailed(
            f"the endpoint answered {error.status_code}{named}",
            retry_after_seconds=retry_after_seconds(error.response.headers.get("retry-after")),
        )
    if isinstance(error, openai.APIConnectionError):
        return AnalyserFailed("the endpoint can't be reached or cut the connection")
    return AnalyserFailed(f"the endpoint's answer can't be used ({type(error).__name__})")


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
