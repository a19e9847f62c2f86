"""Around every request: errors as JSON, request ids, security headers, the access log, metrics."""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast

import litestar
import msgspec
from litestar.enums import MediaType, ScopeType
from litestar.exceptions import HTTPException, ValidationException
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp, Empty, Receive, Scope, Send
from litestar.types import Message as AsgiMessage
from loguru import logger
from prometheus_client import Counter, Histogram

from messaging_server import errors, metrics
from messaging_server.cors import NO_GRANT, Cors, Grant
from messaging_server.errors import (
    DomainError,
    FieldError,
    Forbidden,
    Unavailable,
    ValidationFailed,
)
from messaging_server.http import (
    BODY_TOO_LARGE,
    CLIENT_GONE,
    ErrorBody,
    Failure,
    header,
)
from messaging_server.logs import logged_request_id
from messaging_server.query import query_parameters

HeaderList = list[tuple[bytes, bytes]]

SHUTTING_DOWN = "The server is shutting down"
PAGE_REFUSED = "Pages of this origin may not call"
LINGER_SECONDS = 2
LINGER_BYTES = 8_388_608
PREFLIGHT = {b"origin", b"access-control-request-method"}
"""An OPTIONS with these headers is one (Fetch, 3.2.2), whatever they say."""
WITH_ALLOW = (204, errors.MethodNotAllowed.status)
"""The answers to OPTIONS, and to a method that a path does not have."""

REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)
RESOURCE_POLICY = (b"cross-origin-resource-policy", b"same-origin")
API_POLICY = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")

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


def failure_body(error: DomainError, *, request_id: str | None = None) -> bytes:
    """`request_id`: of what is not the request that this task answers."""
    body = ErrorBody(
        code=error.code,
        message=error.message,
        details=error.details,
        request_id=request_id or logged_request_id.get(),
        missed=getattr(error, "missed", None),
    )
    return msgspec.json.encode(Failure(error=body))


async def send_failure(error: DomainError, send: Send, *, last: bool = False) -> None:
    """Where Litestar can't answer, or can't any more; after the `last` the connection ends."""
    body = failure_body(error)
    headers = failure_headers(error)
    headers |= {"Content-Type": MediaType.JSON, "Content-Length": str(len(body))}
    if last:
        headers["Connection"] = "close"
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    start: Any = {"type": "http.response.start", "status": error.status, "headers": encoded}
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})


def raw_failure(error: DomainError) -> tuple[HeaderList, bytes]:
    """Headers and body for what never became a request; the connection ends with it."""
    request_id = new_request_id()
    body = failure_body(error, request_id=request_id.decode())
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        (b"x-request-id", request_id),
    ]
    return completed(headers, error.status), body


def failure_headers(error: DomainError) -> dict[str, str]:
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    if isinstance(error, errors.Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.RangeNotSatisfiable):
        headers["Content-Range"] = f"bytes */{error.size_bytes}"
    return headers


def failure_response(error: DomainError) -> Any:
    headers = failure_headers(error)
    kind: type[litestar.Response[bytes]] = litestar.Response
    if isinstance(error, errors.TooLarge | errors.BodyRefused):
        kind, headers["Connection"] = LastResponse, "close"
    return kind(
        failure_body(error),
        status_code=error.status,
        media_type=MediaType.JSON,
        headers=headers,
    )


def handle_domain_error(_request: litestar.Request[Any, Any, Any], error: DomainError) -> Any:
    return failure_response(error)


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


_MISSING = "Missing required query parameter "
"""Litestar goes on with the name of any one of them."""


def handle_http_exception(request: litestar.Request[Any, Any, Any], error: HTTPException) -> Any:
    """Litestar's own errors in the contract's shape; their detail may hold the whole URL."""
    if isinstance(error, ValidationException):
        items = error.extra if isinstance(error.extra, list) else []
        parameters = query_parameters(request.route_handler)
        shown = {parameter.name: name for name, parameter in parameters.items()}
        details = [_field_error(item, shown) for item in items if isinstance(item, dict)]
        if error.detail.startswith(_MISSING):
            details += [
                FieldError(name, "is required")
                for name, parameter in parameters.items()
                if parameter.default is Empty and name not in request.query_params
            ]
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
    if key == "data":  # of a body only its absence comes to here
        return FieldError("body", "is required")
    return FieldError(shown.get(key, key), message[:1].lower() + message[1:])


def handle_defect(request: litestar.Request[Any, Any, Any], error: Exception) -> Any:
    """A 500; the traceback goes to the log under the request id."""
    logger.opt(exception=error).error(
        "Unhandled error in {} {}", request.scope["method"], request.scope.get("path_template", "")
    )
    return failure_response(errors.InternalError("Internal server error"))


EXCEPTION_HANDLERS: dict[Any, Any] = {
    DomainError: handle_domain_error,
    HTTPException: handle_http_exception,
    Exception: handle_defect,
}


# --- Around every request ---------------------------------------------------------------------


class Edge:
    """Wraps the whole application: request id, CORS, security headers, access log, metrics."""

    def __init__(self, app: ASGIApp, cors: Cors, *, access_log: bool) -> None:
        self._app = app
        self._cors = cors
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        method = scope["method"]
        if method == "HEAD":
            scope = _as_get(scope)
        request_id = _request_id(scope)
        logged_request_id.set(request_id.decode("ascii"))
        status = 0
        grant = NO_GRANT

        async def send_with_headers(message: AsgiMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-request-id", request_id), *grant.headers(status)]
                message["headers"] = completed([*message["headers"], *own], status)
            await send(message)

        try:
            grant = await self._cors.find(scope["path"], scope["headers"])
            if method != "OPTIONS":
                await self._app(scope, receive, send_with_headers)
            elif PREFLIGHT.issubset(name for name, _ in scope["headers"]):
                await answer_preflight(grant, send_with_headers)
            else:
                await answer_options(self._app, scope, receive, send_with_headers)
        except asyncio.CancelledError:  # not done by the end of the shutdown
            if status:
                raise
            unavailable = Unavailable(SHUTTING_DOWN, retry_after_seconds=1)
            await send_failure(unavailable, send_with_headers, last=True)
        finally:
            seconds = time.perf_counter() - started
            route = str(scope.get("path_template") or "unknown")
            count_request(method, route, status=status, seconds=seconds)
            if self._access_log:
                milliseconds = round(seconds * 1000, 2)
                logger.bind(method=method, route=route, status=status, ms=milliseconds).debug(
                    "request"
                )


def _as_get(scope: Scope) -> Scope:
    """HEAD is answered as GET is, whole; uvicorn leaves the body out."""
    headers = [pair for pair in scope["headers"] if pair[0] != b"range"]
    return cast("Scope", {**scope, "method": "GET", "headers": headers})


async def answer_preflight(grant: Grant, send: Send) -> None:
    """Not by Litestar, and for every path: a page may then read that there is no such path."""
    if not grant.origin:
        await send_failure(Forbidden(PAGE_REFUSED), send)
        return
    headers = grant.preflight_headers()
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def answer_options(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """By the refusal of a method that no path has; Litestar's own answer forgets some."""
    answered = False

    async def send_as_answer(message: Any) -> None:
        nonlocal answered
        if message["type"] == "http.response.start":
            answered = message["status"] == errors.MethodNotAllowed.status
            if answered:
                allow = [pair for pair in message["headers"] if pair[0] == b"allow"]
                message = {**message, "status": 204, "headers": allow}
        elif answered:
            message = {**message, "body": b""}
        await send(message)

    await app(cast("Scope", {**scope, "method": "ANY"}), receive, send_as_answer)


def completed(headers: HeaderList, status: int) -> HeaderList:
    """With what every answer has; the policies only where it does not bring its own."""
    if status in WITH_ALLOW:
        headers = [_with_all_allowed(pair) for pair in headers]
    names = {name for name, _ in headers}
    policies = [policy for policy in (API_POLICY, RESOURCE_POLICY) if policy[0] not in names]
    return [*headers, *SECURITY_HEADERS, *policies]


def _with_all_allowed(pair: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """OPTIONS is answered everywhere and HEAD wherever GET is, which Litestar does not know."""
    name, value = pair
    if name != b"allow":
        return pair
    methods = {*value.split(b", "), b"OPTIONS"}
    return name, b", ".join(sorted(methods | {b"HEAD"} if b"GET" in methods else methods))


def _request_id(scope: Scope) -> bytes:
    given = header(scope, b"x-request-id")
    return given if REQUEST_ID.fullmatch(given) else new_request_id()


def new_request_id() -> bytes:
    return random.randbytes(16).hex().encode()  # noqa: S311  # to be told apart is enough


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
