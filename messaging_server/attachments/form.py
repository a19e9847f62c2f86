"""A file out of a multipart form (RFC 7578), as it comes: nothing is kept but the current part.

It knows neither HTTP nor where the file goes. Whatever is wrong with a form that has not come to
its end refuses the rest of the body.
"""

import re
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable

from multipart import MultipartError, MultipartSegment, PushMultipartParser

from messaging_server.errors import BodyRefused, TooLarge, ValidationFailed
from messaging_server.models import VISIBLE

FIELD = "file"
FORM_BYTES = 65_536
"""What a form may have around its file."""

MAX_NAME_CHARACTERS = 255
NAMELESS = "file"
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_REMOVED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})


async def receive_file(
    body: AsyncIterator[bytes],
    *,
    boundary: str,
    max_bytes: int,
    write: Callable[[bytes], Awaitable[None]],
) -> str:
    """Write the one file of the form; its name, cleaned. Raises `ValidationFailed`, `TooLarge`."""
    form = _Form(boundary, max_bytes)
    received = 0
    async for chunk in body:
        received += len(chunk)
        if received > max_bytes + FORM_BYTES:
            raise TooLarge(f"The form is larger than a file of {max_bytes} bytes may make it")
        for part in form.feed(chunk):
            await write(part)
    return form.end()


class _Form:
    """The parser, and what has been seen of the one file."""

    def __init__(self, boundary: str, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._name: str | None = None
        try:
            self._parser = PushMultipartParser(boundary)
        except MultipartError as error:
            raise _unreadable(error) from None

    def feed(self, chunk: bytes) -> list[bytes]:
        """The parts of the file in this chunk."""
        parts = []
        try:
            for event in self._parser.parse(chunk) if chunk else ():
                if isinstance(event, MultipartSegment):
                    self._begin(event)
                elif event:
                    parts.append(self._counted(event))
        except MultipartError as error:
            raise _unreadable(error) from None
        return parts

    def end(self) -> str:
        try:
            self._parser.close()
        except MultipartError as error:
            raise _unreadable(error) from None
        if self._name is None:
            raise ValidationFailed.of(FIELD, "is required")
        if not self._size_bytes:
            raise ValidationFailed.of(FIELD, "must not be empty")
        return self._name

    def _begin(self, segment: MultipartSegment) -> None:
        if segment.name != FIELD:
            raise BodyRefused.of(_shown(segment.name), "is not a field of this form")
        if self._name is not None:
            raise BodyRefused.of(FIELD, "must be one file")
        if not segment.filename:
            raise BodyRefused.of(FIELD, "must be a file with a name")
        self._name = clean_name(segment.filename)

    def _counted(self, part: bytes) -> bytes:
        self._size_bytes += len(part)
        if self._size_bytes > self._max_bytes:
            raise TooLarge(f"The file is larger than {self._max_bytes} bytes")
        return part


def _unreadable(error: MultipartError) -> BodyRefused:
    reason = _shown(str(error.args[0]))  # beside it there may be an exception
    return BodyRefused.of("body", f"is not a readable multipart form: {reason}")


def _shown(text: str) -> str:
    """A sender's text, for an error message."""
    return "".join(filter(str.isprintable, text))[:100]


def clean_name(name: str) -> str:
    """The last part of a path, without what can't be seen or turns the writing round.

    It is only shown and offered for saving, never used to store anything.
    """
    name = unicodedata.normalize("NFC", re.split(r"[/\\]", name)[-1])
    name = "".join(
        character
        for character in name
        if character not in _BIDI and unicodedata.category(character) not in _REMOVED_CATEGORIES
    )
    name = name.strip().lstrip(".").strip()
    if len(name) > MAX_NAME_CHARACTERS:
        stem, dot, extension = name.rpartition(".")
        extension = f"{dot}{extension}" if stem and len(extension) <= 20 else ""
        name = name[: MAX_NAME_CHARACTERS - len(extension)] + extension
    return name if re.search(VISIBLE, name) else NAMELESS
