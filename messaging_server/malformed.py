"""What is wrong with a body or frame: msgspec's errors in the contract's words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import inspect

from messaging_server.errors import ValidationFailed
from messaging_server.models import VISIBLE

_REQUIRED = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")
_STEPS = re.compile(r"[^.\[\]]+|\[[^\]]*\]")
"""Of a path such as `message.contentType` or `events[2]`."""


def validation_failed(error: msgspec.ValidationError, kind: Any = None) -> ValidationFailed:
    """msgspec's error with the field that it names; a missing field names its parent first.

    Where it is known of what `kind` the whole should be, the values of an enum are named.
    """
    rule, _, where = str(error).partition(" - at ")
    in_key, _, where = where.rpartition("` in `")  # "`key` in `$.attributes`"
    path = where.strip("`").removeprefix("$").lstrip(".")
    if in_key:
        rule = f"a key is wrong: {rule[:1].lower()}{rule[1:]}"
    for pattern, text in ((_REQUIRED, "is required"), (_UNKNOWN, "is not a known field")):
        if match := pattern.match(rule):
            return ValidationFailed.of(".".join(filter(None, (path, match[1]))), text)
    if kind is not None and rule.startswith("Invalid enum value"):
        allowed = _allowed_values(inspect.type_info(kind), _STEPS.findall(path))
        rule = f"must be one of {', '.join(allowed)}"
    elif repr(VISIBLE) in rule:
        rule = "must not be blank"
    elif "matching regex" in rule:
        rule = "does not have the right form"
    return ValidationFailed.of(path or "body", rule[:1].lower() + rule[1:])


def _allowed_values(kind: inspect.Type, steps: Sequence[str]) -> list[str]:
    """Of the enum where `steps` lead: fields by their names, members of a list by anything."""
    match kind:
        case inspect.Metadata():
            return _allowed_values(kind.type, steps)
        case inspect.UnionType():
            return [value for each in kind.types for value in _allowed_values(each, steps)]
        case inspect.StructType() if steps:
            types = [field.type for field in kind.fields if field.encode_name == steps[0]]
            return _allowed_values(types[0], steps[1:]) if types else []
        case inspect.CollectionType() if steps:
            return _allowed_values(kind.item_type, steps[1:])
        case inspect.EnumType() if not steps:
            return [str(member.value) for member in kind.cls]
    return []


def unreadable(what: str, error: Exception) -> ValidationFailed:
    """What was raised by decoding a `body` or `frame` that is no JSON at all."""
    if isinstance(error, UnicodeError):
        return ValidationFailed(f"The {what} is not valid UTF-8")
    if isinstance(error, RecursionError):
        return ValidationFailed(f"The {what} is nested too deeply")
    reason = f"The {what} is not valid JSON: {error}"
    if "truncated" in reason:
        reason += r", or half of a surrogate pair (such as \ud83d) stands alone"
    return ValidationFailed(reason)


def refuse_nul(value: Any, *, path: str) -> None:
    """Raise for the first text with a NUL, which Postgres can't store; `path` is where it is."""
    if isinstance(value, str) and "\0" in value:
        raise ValidationFailed.of(path or "body", "must not contain a NUL character")
    if isinstance(value, Mapping):
        for key, item in value.items():
            refuse_nul(key, path=path)
            refuse_nul(item, path=f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_nul(item, path=f"{path}[{index}]")
