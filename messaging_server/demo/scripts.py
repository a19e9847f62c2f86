"""The conversations that the demo plays: JSON, one to a line, checked before anything starts."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from messaging_server.errors import StartupError

BUNDLED = Path(__file__).with_name("conversations.jsonl")


class ScriptedMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`at` is when it was once written; the demo has a pace of its own."""

    sender: Literal["LEAD", "AGENT"]
    text: Annotated[str, Meta(min_length=1, max_length=10_000)]
    at: Annotated[datetime, Meta(tz=True)] | None = None


class Script(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One conversation; its `id` becomes the lead's and the conversation's external id."""

    id: Annotated[str, Meta(min_length=1, max_length=150)]
    company: str
    messages: Annotated[tuple[ScriptedMessage, ...], Meta(min_length=1)]

    @property
    def lead_name(self) -> str:
        """`marta-vidal` is Marta Vidal."""
        return self.id.replace("-", " ").title()

    @property
    def said(self) -> list[tuple[str, str]]:
        """Who said what, oldest first."""
        return [(message.sender, message.text) for message in self.messages]


_decoder = msgspec.json.Decoder(Script)


def read_scripts(path: Path) -> list[Script]:
    """Raises `StartupError` with one line that names the file, the line and the field."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise StartupError(f"{path}: can't be read ({error.strerror})") from None
    scripts: dict[str, Script] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        script = _read_script(line, where=f"{path}, line {number}")
        if script.id in scripts:
            raise StartupError(f"{path}, line {number}: id: {script.id!r} has come before")
        scripts[script.id] = script
    if not scripts:
        raise StartupError(f"{path}: has no conversations")
    return list(scripts.values())


def _read_script(line: bytes, *, where: str) -> Script:
    try:
        script = _decoder.decode(line)
    except msgspec.ValidationError as error:
        rule, _, at = str(error).partition(" - at ")
        field = at.strip("`").removeprefix("$").lstrip(".")
        raise StartupError(f"{where}: {f'{field}: ' if field else ''}{rule}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise StartupError(f"{where}: not valid JSON: {error}") from None
    if "\0" in script.id:
        raise StartupError(f"{where}: id: has a NUL character")
    _check_messages(script.messages, where=where)
    return script


def _check_messages(messages: Sequence[ScriptedMessage], *, where: str) -> None:
    if messages[0].sender != "LEAD":
        raise StartupError(f"{where}: messages[0].sender: the first message must be a LEAD's")
    for index, message in enumerate(messages):
        if "\0" in message.text or not message.text.strip():
            raise StartupError(f"{where}: messages[{index}].text: is blank or has a NUL character")
