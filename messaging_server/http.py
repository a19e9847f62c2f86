"""The HTTP edge: who is calling, strict bodies and queries, errors as JSON, limits, pagination.

A route declares `opt` keys to loosen the defaults: everything needs a user's token unless
`PUBLIC`, `API_KEY` or `VISITOR`, and `ADMIN_ONLY` refuses agents. What a caller may *see* is never
decided here but in the SQL of each query.
"""

import asyncio
import base64
import binascii
import ipaddress
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Generic, Literal, TypeVar

import litestar
import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.enums import MediaType, ScopeType
from litestar.exceptions import HTTPException, InternalServerException, ValidationException
from litestar.handlers import BaseRouteHandler
from litestar.params import QueryParameter
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Empty, Receive, Scope, Send
from litestar.types import Message as AsgiMessage
from loguru import logger
from msgspec import Struct
from prometheus_client import Counter, Histogram

from messaging_server import errors, metrics
from messaging_server.config import Config
from messaging_server.database import Database
from messaging_server.errors import DomainError, FieldError, ValidationFailed
from messaging_server.limiter import Limiter
from messaging_server.logs import logged_request_id
from messaging_server.models import Caller, KeyIdentity, Page, Visitor

T = TypeVar("T")
Headers = Iterable[tuple[bytes, bytes]]

PREFIX = "/api/v1"
PUBLIC = {"public": True}
ADMIN_ONLY = {"admin_only": True}
API_KEY = {"api_key": True}
VISITOR = {"visitor": True}

BODY_SECONDS = 30
IDLE_SECONDS = 15
LINGER_SECONDS = 2
LINGER_BYTES = 8_388_608
BODY_TOO_LARGE = "The body is too large"
CLIENT_GONE = "client disconnected prematurely"
"""Litestar's words for a body that its sender gave up: nobody's defect, and nobody hears of it."""

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
RESOURCE_POLICY = (b"cross-origin-resource-policy", b"same-origin")
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
API_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

PageLimit = Annotated[int, QueryParameter(ge=1, le=100, description="Items a page.")]
PageCursor = Annotated[
    str | None,
    QueryParameter(max_length=500, description="`nextCursor` of the page before."),
]


class Success(Struct, Generic[T], frozen=True, kw_only=True):
    """The envelope of every answer that is not an error."""

    status: Literal["success"] = "success"
    data: T


class ErrorBody(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What went wrong; `missed` comes only with a stale `expectedLastSeq`."""

    code: str
    message: str
    details: tuple[FieldError, ...]
    request_id: str
    missed: Any = None


class Failure(Struct, frozen=True, kw_only=True):
    """The envelope of every error."""

    status: Literal["error"] = "error"
    error: ErrorBody


class Authenticator:
    """How the edge learns who is calling; `app` provides the functions of `users` and `inboxes`."""

    def __init__(
        self,
        *,
        user: Callable[[str], Awaitable[Caller]],
        api_key: Callable[[str], Awaitable[KeyIdentity]],
        visitor: Callable[[str, Headers], Awaitable[Visitor]],
    ) -> None:
        self.user = user
        self.api_key = api_key
        self.visitor = visitor


class AppState(State):
    """What the composition root gives to the routes."""

    config: Config
    database: Database
    authenticator: Authenticator
    limiter: Limiter


class Request(litestar.Request[Caller, str, AppState]):
    """A request whose JSON body is decoded strictly into the type its handler declares."""

    @property
    def database(self) -> Database:
        database: Database = self.app.state.database
        return database

    @property
    def caller(self) -> Caller:
        caller: Caller = self.scope["user"]
        return caller

    @property
    def api_key(self) -> KeyIdentity:
        key: KeyIdentity = self.scope["auth"]
        return key

    @property
    def visitor(self) -> Visitor:
        visitor: Visitor = self.scope["auth"]
        return visitor

    @property
    def address(self) -> str:
        return self.client.host if self.client else "unknown"

    @property
    def network(self) -> str:
        """The address, or of IPv6 the /64 of which one subscriber has all addresses."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            return self.address
        if address.version == 4:
            return self.address
        return str(address.ipv4_mapped or ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))

    async def json(self) -> Any:
        media_type = header(self.scope, b"content-type").partition(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise errors.UnsupportedMediaType("Content-Type must be application/json")
        body = await self.body()
        value = _decoder(self.route_handler).decode(body)
        if b"\\u0000" in body:
            refuse_nul(msgspec.to_builtins(value), path="")
        return value

    async def body(self) -> bytes:
        """Read once, up to the limit; Litestar's own way costs more than the decoding."""
        body = self._body
        if body is Empty:
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    body = self._body = await self._read_body()
            except TimeoutError:
                raise ValidationFailed("The body did not arrive in time") from None
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, for what is too large for memory; whoever reads sets the limit.

        Raises `BodyRefused` when nothing came for `IDLE_SECONDS`, or the sender is gone.
        """
        more = True
        while more:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message: Any = await self.receive()
            except TimeoutError:
                raise errors.BodyRefused("The body did not arrive in time") from None
            if message["type"] == "http.disconnect":
                raise errors.BodyRefused("The body ended too early")
            yield message["body"]
            more = message.get("more_body", False)

    async def _read_body(self) -> bytes:
        limit = self.app.state.config.server.max_body_bytes
        announced = header(self.scope, b"content-length")
        if announced.isdigit() and int(announced) > limit:
            raise errors.TooLarge(BODY_TOO_LARGE)
        body: bytes = b""
        while True:
            message: Any = await self.receive()
            if message["type"] == "http.disconnect":
                raise InternalServerException(CLIENT_GONE)
            body = body + message["body"] if body else message["body"]
            if len(body) > limit:
                raise errors.TooLarge(BODY_TOO_LARGE)
            if not message.get("more_body", False):
                return body


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of this (lower case) name, empty when there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


_decoders: dict[BaseRouteHandler, msgspec.json.Decoder[Any]] = {}


def _decoder(handler: Any) -> msgspec.json.Decoder[Any]:
    decoder = _decoders.get(handler)
    if decoder is None:
        decoder = _decoders[handler] = msgspec.json.Decoder(handler.parsed_data_field.annotation)
    return decoder


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


# --- Who is calling ---------------------------------------------------------------------------


async def authorize(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """The guard of every route: a known query, a valid token, the right role, not too often."""
    if connection.scope["query_string"] and connection.scope["type"] == ScopeType.HTTP:
        refuse_unknown_query(connection, handler)
    options = handler.opt
    if options.get("public"):
        return
    state = connection.app.state
    if options.get("api_key"):
        key = connection.scope["auth"] = await state.authenticator.api_key(bearer(connection))
        state.limiter.check(state.config.limits.inbound_per_minute_per_key, "inbound", str(key.id))
        return
    if options.get("visitor"):
        await authorize_visitor(connection)
        return
    caller = connection.scope["user"] = await state.authenticator.user(bearer(connection))
    if options.get("admin_only") and not caller.is_admin:
        raise errors.Forbidden("Only an ADMIN may do this")
    if connection.scope.get("method") != "GET":
        state.limiter.check(
            state.config.limits.writes_per_minute_per_user, "writes", str(caller.id)
        )


async def authorize_visitor(connection: ASGIConnection[Any, Any, Any, Any]) -> None:
    """A session's token, from a page of its inbox, not too often."""
    state = connection.app.state
    visitor = connection.scope["auth"] = await state.authenticator.visitor(
        bearer(connection), connection.scope["headers"]
    )
    state.limiter.check(
        state.config.limits.calls_per_minute_per_visitor, "visitor", str(visitor.lead_id)
    )


def bearer(connection: ASGIConnection[Any, Any, Any, Any]) -> str:
    """The token of `Authorization: Bearer …` (RFC 6750)."""
    for name, value in connection.scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token:
                return str(token.strip(), "latin-1")
            break
    raise errors.Unauthenticated("A token is needed: Authorization: Bearer …")


def origin_allowed(headers: Headers, allowed_origins: Sequence[str]) -> bool:
    """No origin, the server's own, or a configured one: browsers send it, others needn't."""
    origins = [value for name, value in headers if name == b"origin"]
    hosts = [value for name, value in headers if name == b"host"]
    if not origins:
        return True
    if "*" in allowed_origins:
        return True
    if len(origins) > 1 or len(hosts) != 1:
        return False
    origin = origins[0].decode("latin-1").lower()
    if origin in {allowed.lower() for allowed in allowed_origins}:
        return True
    scheme, separator, host = origin.partition("://")
    if not separator or scheme not in DEFAULT_PORTS:
        return False
    port = DEFAULT_PORTS[scheme]
    own = hosts[0].decode("latin-1").lower()
    return host.removesuffix(port) == own.removesuffix(port)


class QueryField(Struct, frozen=True):
    """A query parameter's name in Python; any text is a value of its own where `is_text`."""

    name: str
    is_text: bool


_query_parameters: dict[BaseRouteHandler, dict[str, QueryField]] = {}


def refuse_unknown_query(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """An unknown, doubled or unreadable query parameter is an error that names it."""
    known = query_parameters(handler)
    query = connection.scope["query_string"]
    if b"%00" in query or b"\0" in query:
        raise ValidationFailed("The query must not contain a NUL character")
    seen = set()
    for name, value in connection.query_params.multi_items():
        if name not in known:
            raise ValidationFailed.of(name, "is not a query parameter of this call")
        if name in seen:
            raise ValidationFailed.of(name, "must be given once")
        if "\ufffd" in value:
            raise ValidationFailed.of(name, "must be valid UTF-8")
        if value.lower() == "null" and not known[name].is_text:
            raise ValidationFailed.of(name, "must not be null; leave it out")
        seen.add(name)


def query_parameters(handler: BaseRouteHandler) -> dict[str, QueryField]:
    """What a handler declares, by the names that clients use."""
    known = _query_parameters.get(handler)
    if known is None:
        known = _query_parameters[handler] = {
            field.kwarg_definition.name or name: QueryField(
                name, str in (field.annotation, *(part.annotation for part in field.inner_types))
            )
            for name, field in handler.parsed_fn_signature.parameters.items()
            if isinstance(field.kwarg_definition, QueryParameter)
        }
    return known


# --- Errors -----------------------------------------------------------------------------------


class LastResponse(litestar.Response[bytes]):
    """The answer to a body that is still on its way, after which the connection is closed."""

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIResponse:
        return LingeringResponse(
            body=self.content,
            headers=self.headers,
            media_type=MediaType.JSON,
            status_code=self.status_code,
        )


class LingeringResponse(ASGIResponse):
    """Goes on reading for a moment, so that the sender gets to the answer (RFC 9112, 9.6).

    Closed at once, with unread data, the connection is reset, and many clients never look.
    """

    async def send_body(self, send: Send, receive: Receive) -> None:
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await _discard(receive, LINGER_BYTES)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive, size_bytes: int) -> None:
    while size_bytes > 0:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return
        size_bytes -= len(message["body"])


def failure_response(error: DomainError) -> Any:
    body = ErrorBody(
        code=error.code,
        message=error.message,
        details=error.details,
        request_id=logged_request_id.get(),
        missed=getattr(error, "missed", None),
    )
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    kind: type[litestar.Response[bytes]] = litestar.Response
    if isinstance(error, errors.TooLarge | errors.BodyRefused):
        kind, headers["Connection"] = LastResponse, "close"
    return kind(
        msgspec.json.encode(Failure(error=body)),
        status_code=error.status,
        media_type=MediaType.JSON,
        headers=headers,
    )


def handle_domain_error(_request: litestar.Request[Any, Any, Any], error: DomainError) -> Any:
    return failure_response(error)


def handle_bad_body(_request: litestar.Request[Any, Any, Any], error: Exception) -> Any:
    """What decoding raises: msgspec's errors, invalid UTF-8, absurd nesting."""
    if isinstance(error, msgspec.ValidationError):
        return failure_response(validation_failed(error))
    reason = {
        UnicodeDecodeError: "The body is not valid UTF-8",
        RecursionError: "The body is nested too deeply",
    }.get(type(error), f"The body is not valid JSON: {error}")
    return failure_response(ValidationFailed(reason))


_REQUIRED = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]+)`")


def validation_failed(error: msgspec.ValidationError) -> ValidationFailed:
    """msgspec's error with the field that it names; a missing field names its parent first."""
    rule, _, where = str(error).partition(" - at ")
    path = where.strip("`").removeprefix("$").lstrip(".")
    for pattern, text in ((_REQUIRED, "is required"), (_UNKNOWN, "is not a known field")):
        if match := pattern.match(rule):
            return ValidationFailed.of(".".join(filter(None, (path, match[1]))), text)
    if "matching regex" in rule:
        rule = "does not have the right form"
    return ValidationFailed.of(path or "body", rule[:1].lower() + rule[1:])


_BY_STATUS: dict[int, type[DomainError]] = {
    error.status: error
    for error in (
        errors.ValidationFailed,
        errors.Unauthenticated,
        errors.Forbidden,
        errors.NotFound,
        errors.MethodNotAllowed,
        errors.TooLarge,
        errors.UnsupportedMediaType,
        errors.RateLimited,
        errors.Unavailable,
    )
}


_MESSAGES = {404: "Not found", 405: "Method not allowed", 413: BODY_TOO_LARGE}


def handle_http_exception(request: litestar.Request[Any, Any, Any], error: HTTPException) -> Any:
    """Litestar's own errors in the contract's shape; their detail may hold the whole URL."""
    if isinstance(error, ValidationException):
        items = error.extra if isinstance(error.extra, list) else []
        parameters = query_parameters(request.route_handler)
        shown = {parameter.name: name for name, parameter in parameters.items()}
        details = [_field_error(item, shown) for item in items if isinstance(item, dict)]
        text = "; ".join(f"{item.field}: {item.message}" for item in details)
        return failure_response(
            ValidationFailed(text or "The request is not valid", details=details)
        )
    if error.detail == CLIENT_GONE:
        return failure_response(ValidationFailed("The body ended too early"))
    if error.status_code >= 500:
        return handle_defect(request, error)
    kind = _BY_STATUS.get(error.status_code, errors.ValidationFailed)
    response = failure_response(kind(_MESSAGES.get(error.status_code, "The request is not valid")))
    for name, value in (error.headers or {}).items():
        response.headers.setdefault(name, value)
    return response


def _field_error(item: Mapping[str, Any], shown: Mapping[str, str]) -> FieldError:
    """Litestar's item; it may name the parameter as Python does."""
    message = str(item.get("message", "is not valid"))
    key = str(item.get("key", "request"))
    return FieldError(shown.get(key, key), message[:1].lower() + message[1:])


def handle_defect(request: litestar.Request[Any, Any, Any], error: Exception) -> Any:
    """A 500; the traceback goes to the log under the request id."""
    logger.opt(exception=error).error(
        "Unhandled error in {} {}", request.scope["method"], request.scope.get("path_template", "")
    )
    return failure_response(errors.InternalError("Internal server error"))


EXCEPTION_HANDLERS: dict[Any, Any] = {
    DomainError: handle_domain_error,
    msgspec.MsgspecError: handle_bad_body,
    UnicodeDecodeError: handle_bad_body,
    RecursionError: handle_bad_body,
    HTTPException: handle_http_exception,
    Exception: handle_defect,
}


# --- Pagination -------------------------------------------------------------------------------

C = TypeVar("C", bound=Struct)


def encode_cursor(cursor: Struct) -> str:
    """Opaque to clients: unpadded URL-safe base64 of msgpack, with the name of its kind."""
    data = msgspec.msgpack.encode((type(cursor).__name__, cursor))
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_cursor(text: str, kind: type[C]) -> C:
    """Raises `ValidationFailed` for anything that `encode_cursor` did not make of a `kind`."""
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
        name, cursor = msgspec.msgpack.decode(data, type=tuple[str, kind])  # type: ignore[valid-type]  # known at run time
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError):
        name, cursor = "", None
    if cursor is None or name != kind.__name__:
        raise ValidationFailed.of("cursor", "is not one that this list gave out")
    return cursor


def page(items: Sequence[T], following: Struct | None) -> Success[Page[T]]:
    """The answer of a list; `following` is the cursor of the next page."""
    next_cursor = encode_cursor(following) if following is not None else None
    return Success(data=Page(items=items, next_cursor=next_cursor))


# --- The hot path -----------------------------------------------------------------------------


class Direct:
    """Middleware that calls its handler itself, for the few calls that must cost little.

    Litestar's parameter extraction, response classes and header maps cost such a call more than
    its own work. The handler takes `request`, its path parameters and `data`, and returns a
    `Response` without headers of its own; everything around it stays: routing, guard, errors.
    """

    def __init__(self, app: ASGIApp) -> None:
        """`app` would answer too; it is what the OpenAPI document describes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler: Any = scope["route_handler"]
        request = Request(scope, receive, send)
        await authorize(request, handler)
        data = await request.json()
        response = await handler.fn(request=request, data=data, **scope["path_params"])
        body = msgspec.json.encode(response.content)
        length = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
            }
        )
        await send({"type": "http.response.body", "body": body, "more_body": False})


# --- Around every request ---------------------------------------------------------------------


class Edge:
    """Wraps the whole application: request id, security headers, access log, metrics."""

    def __init__(self, app: ASGIApp, *, access_log: bool) -> None:
        self._app = app
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = _request_id(scope)
        logged_request_id.set(request_id.decode("ascii"))
        status = 0

        async def send_with_headers(message: AsgiMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id), *SECURITY_HEADERS]
                headers += _default_policies(message["headers"])
                message["headers"] = headers
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            method = str(scope.get("method"))
            route = str(scope.get("path_template") or "unknown")
            count_request(method, route, status=status, seconds=seconds)
            if self._access_log:
                milliseconds = round(seconds * 1000, 2)
                logger.bind(method=method, route=route, status=status, ms=milliseconds).debug(
                    "request"
                )


def _default_policies(headers: Headers) -> list[tuple[bytes, bytes]]:
    """The policies of an answer that does not bring its own."""
    names = {name for name, _ in headers}
    return [policy for policy in (API_POLICY, RESOURCE_POLICY) if policy[0] not in names]


def _request_id(scope: Scope) -> bytes:
    given = header(scope, b"x-request-id")
    return given if REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()


_requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}


def count_request(method: str, route: str, *, status: int, seconds: float) -> None:
    """By route template, so that there are few; looked up here, which is quicker than by label."""
    found = _requests.get((method, route, status))
    if found is None:
        found = _requests[method, route, status] = (
            metrics.REQUESTS.labels(method, route, str(status)),
            metrics.REQUEST_SECONDS.labels(method, route),
        )
    counter, histogram = found
    counter.inc()
    histogram.observe(seconds)
