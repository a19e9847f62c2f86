"""What routes stand on: who is calling, strict bodies, limits, pagination.

A route declares `opt` keys to loosen the defaults: everything needs a user's token unless
`PUBLIC`, `API_KEY` or `VISITOR`, and `ADMIN_ONLY` refuses agents; `DIRECT` takes the short way of
`direct.py`. What a caller may *see* is never decided here but in the SQL of each query.
"""

import asyncio
import base64
import binascii
import functools
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import litestar
import msgspec
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import InternalServerException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.params import QueryParameter
from litestar.types import Empty, Scope
from msgspec import Struct

from messaging_server import errors
from messaging_server.config import Config
from messaging_server.database import Database
from messaging_server.errors import FieldError, ValidationFailed
from messaging_server.limiter import Limiter
from messaging_server.malformed import refuse_nul, unreadable, validation_failed
from messaging_server.models import Caller, KeyIdentity, Page, Visitor
from messaging_server.query import checked_query

T = TypeVar("T")
Headers = Iterable[tuple[bytes, bytes]]

PREFIX = "/api/v1"
PUBLIC = {"public": True}
ADMIN_ONLY = {"admin_only": True}
API_KEY = {"api_key": True}
VISITOR = {"visitor": True}
DIRECT = {"direct": True}

BODY_SECONDS = 30
IDLE_SECONDS = 15
BODY_TOO_LARGE = "The body is too large"
CLIENT_GONE = "client disconnected prematurely"
"""Litestar's words for a body that its sender gave up: nobody's defect, and nobody hears of it."""

DEFAULT_PORTS = {"http": ":80", "https": ":443"}

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
        return network_of(self.address)

    async def json(self) -> Any:
        body = await self.body()
        if not body:
            raise ValidationFailed.of("body", "is required")
        media_type = header(self.scope, b"content-type").partition(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise errors.UnsupportedMediaType("Content-Type must be application/json")
        if header(self.scope, b"content-encoding") not in (b"", b"identity"):
            raise errors.UnsupportedMediaType("The body must have no Content-Encoding")
        decoder = _decoder(self.route_handler)
        try:
            value = decoder.decode(body)
        except msgspec.ValidationError as error:
            raise validation_failed(error, decoder.type) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise unreadable("body", error) from None
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


def network_of(address: str) -> str:
    """The address, or of IPv6 the /64 of which one subscriber has all addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(parsed.ipv4_mapped or ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of this (lower case) name, empty when there is none."""
    return next((value for key, value in scope["headers"] if key == name), b"")


_decoders: dict[BaseRouteHandler, msgspec.json.Decoder[Any]] = {}


def _decoder(handler: Any) -> msgspec.json.Decoder[Any]:
    decoder = _decoders.get(handler)
    if decoder is None:
        decoder = _decoders[handler] = msgspec.json.Decoder(handler.parsed_data_field.annotation)
    return decoder


# --- Who is calling ---------------------------------------------------------------------------


async def authorize(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """The guard of every route: a known query, a valid token, the right role, not too often.

    What is mounted has queries of its own.
    """
    if isinstance(handler, HTTPRouteHandler):
        checked_query(connection, handler)
    await authorize_caller(connection, handler)


async def authorize_caller(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
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
    state.limiter.check(state.config.limits.calls_per_minute_per_visitor, *visitor_key(visitor))


def visitor_key(visitor: Visitor) -> tuple[str, str]:
    """What the calls and the socket's commands of one visitor are counted by."""
    return "visitor", str(visitor.lead_id)


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


# --- Pagination -------------------------------------------------------------------------------

C = TypeVar("C", bound=Struct)


def encode_cursor(cursor: Struct) -> str:
    """Opaque to clients: unpadded URL-safe base64 of msgpack, with the name of its kind."""
    data = msgspec.msgpack.encode((type(cursor).__name__, cursor))
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@functools.cache
def _cursor_decoder(kind: type[Struct]) -> msgspec.msgpack.Decoder[tuple[str, Any]]:
    return msgspec.msgpack.Decoder(tuple[str, kind])  # type: ignore[valid-type]  # known at run time


def decode_cursor(text: str, kind: type[C]) -> C:
    """Raises `ValidationFailed` for anything that `encode_cursor` did not make of a `kind`."""
    try:
        padded = text.encode() + b"=" * (-len(text) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
        name, cursor = _cursor_decoder(kind).decode(data)
    except (binascii.Error, msgspec.MsgspecError, ValueError, RecursionError):
        name, cursor = "", None
    if name != kind.__name__ or not isinstance(cursor, kind):
        raise ValidationFailed.of("cursor", "is not one that this list gave out")
    return cursor


def page(items: Sequence[T], following: Struct | None) -> Success[Page[T]]:
    """The answer of a list; `following` is the cursor of the next page."""
    next_cursor = encode_cursor(following) if following is not None else None
    return Success(data=Page(items=items, next_cursor=next_cursor))
