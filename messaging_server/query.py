"""Query parameters: only known ones, each once, written as its kind is written.

Ids in paths have the same form; `read_id` is what Litestar reads them with.
"""

import re
from enum import StrEnum
from types import NoneType
from typing import Any
from urllib.parse import parse_qsl
from uuid import UUID

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter
from litestar.routes.base import parsers_map
from litestar.typing import FieldDefinition
from msgspec import Struct

from messaging_server.errors import ValidationFailed


class Form(Struct, frozen=True):
    """How the values of a kind are written, and what is said of all others."""

    pattern: re.Pattern[str]
    rule: str


FORMS: dict[Any, Form] = {
    int: Form(re.compile(r"0|[1-9][0-9]{0,18}"), "must be a whole number, in digits"),
    bool: Form(re.compile("true|false"), "must be true or false"),
    UUID: Form(
        re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE),
        "must be an id, like 0f1a4e8f-3fdd-476a-9874-e9107f33340c",
    ),
}
"""Everything else that Litestar would take for one (`1e1`, `on`, `urn:uuid:…`) is refused."""


class QueryField(Struct, frozen=True):
    """A query parameter's name in Python, and its form unless it is any text."""

    name: str
    default: Any
    form: Form | None


_query_parameters: dict[BaseRouteHandler, dict[str, QueryField]] = {}


def checked_query(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> dict[str, str]:
    """An unknown, doubled or unreadable query parameter is an error that names it."""
    query = connection.scope["query_string"]
    if not query:
        return {}
    known = query_parameters(handler)
    found: dict[str, str] = {}
    for name, value in connection.query_params.items():
        if name not in known:
            raise ValidationFailed.of(name, "is not a query parameter of this call")
        if name in found:
            raise ValidationFailed.of(name, "must be given once")
        form = known[name].form
        if form is not None and not form.pattern.fullmatch(value):
            raise ValidationFailed.of(name, form.rule)
        if "\0" in value:
            raise ValidationFailed.of(name, "must not contain a NUL character")
        if "\ufffd" in value:
            _refuse_invalid_utf8(query)
        found[name] = value
    return found


def _refuse_invalid_utf8(query: bytes) -> None:
    """Raise for the first value that is none; a U+FFFD in the text may as well have been sent."""
    for name, value in parse_qsl(query.decode("latin-1"), errors="surrogateescape"):
        if any("\udc80" <= character <= "\udcff" for character in value):
            raise ValidationFailed.of(name, "must be valid UTF-8")


def query_parameters(handler: BaseRouteHandler) -> dict[str, QueryField]:
    """What a handler declares, by the names that clients use."""
    known = _query_parameters.get(handler)
    if known is None:
        known = _query_parameters[handler] = {
            field.kwarg_definition.name or name: QueryField(name, field.default, _form(field))
            for name, field in handler.parsed_fn_signature.parameters.items()
            if isinstance(field.kwarg_definition, QueryParameter)
        }
    return known


def _form(field: FieldDefinition) -> Form | None:
    """That of its kind; an optional one is a union of its kind and None."""
    parts = [part.annotation for part in field.inner_types if part.annotation is not NoneType]
    [kind] = parts or [field.annotation]
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return Form(re.compile("|".join(kind)), f"must be one of {', '.join(kind)}")
    return FORMS.get(kind)


def read_id(text: str) -> UUID:
    """Raises `ValueError` for what is not written as ids are."""
    if not FORMS[UUID].pattern.fullmatch(text):
        raise ValueError(text)
    return UUID(text)


parsers_map[UUID] = read_id  # of Litestar, for paths; to a `ValueError` it answers 404
