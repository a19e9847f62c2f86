"""Conversations that people have labelled: what they say, and the file that they are kept in.

One JSON object a line, explained in `docs/evaluate.md`. Knows nothing of analysers and scores.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from messaging_server.errors import StartupError
from messaging_server.models import Priority, TranscriptMessage


class Labels(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of each for each reader; tags have the most important first."""

    priority: Annotated[tuple[Priority, ...], Meta(min_length=1)]
    tags: tuple[tuple[str, ...], ...] = ()
    keywords: tuple[tuple[str, ...], ...] = ()


class LabelledConversation(Struct, frozen=True, kw_only=True):
    """`messages` are the oldest first, as the analyser reads them."""

    id: Annotated[str, Meta(min_length=1, max_length=150)]
    messages: Annotated[tuple[TranscriptMessage, ...], Meta(min_length=1)]
    labels: Labels


_decoder = msgspec.json.Decoder(LabelledConversation)


def read_labelled(path: Path) -> list[LabelledConversation]:
    """Raises `StartupError` with one line that names the file, the line and the field."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartupError(f"{path}: can't be read ({error.strerror})") from None
    places: dict[str, int] = {}
    conversations: list[LabelledConversation] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        conversation = _read_line(line, where=f"{path}, line {number}")
        first = places.setdefault(conversation.id, number)
        if first != number:
            raise StartupError(f"{path}, line {number}: id: is that of line {first} already")
        conversations.append(conversation)
    if not conversations:
        raise StartupError(f"{path}: has no conversations")
    return conversations


def _read_line(line: bytes, *, where: str) -> LabelledConversation:
    try:
        return _decoder.decode(line)
    except msgspec.ValidationError as error:
        rule, _, at = str(error).partition(" - at ")
        field = at.strip("`").removeprefix("$").lstrip(".")
        raise StartupError(f"{where}: {f'{field}: ' if field else ''}{rule}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StartupError(f"{where}: not valid JSON: {error}") from None


def readers_of(conversations: Sequence[LabelledConversation]) -> int:
    """The most readers that one conversation has."""
    return max(len(each.labels.priority) for each in conversations)
