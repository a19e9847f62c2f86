"""Which websites may call the public API: the origins of each WIDGET inbox, and CORS by them.

An inbox without origins is closed to other websites; no Origin (a server, curl) and the
server's own are always let in. Nothing here depends on `server.allowed_origins`.
"""

import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from uuid import UUID

from messaging_server.database import Database
from messaging_server.errors import Forbidden, Unavailable, ValidationFailed
from messaging_server.http import Headers, origin_allowed
from messaging_server.inboxes import queries
from messaging_server.origin import canonical_origin

PUBLIC_PREFIX = "/api/public/v1"
ANYWHERE = "*"
PREFLIGHT_SECONDS = b"600"

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

_INBOX_PATH = re.compile(rf"{PUBLIC_PREFIX}/inboxes/([0-9a-fA-F-]{{36}})(/sessions)?/?")


def checked_origin(text: str) -> str:
    """`text` as browsers write an origin; raises `ValidationFailed`."""
    if text == ANYWHERE:
        return text
    origin = canonical_origin(text)
    if origin is None:
        raise ValidationFailed.of(
            "allowedOrigins", f'{text[:100]!r} is not like https://host[:port], nor "*"'
        )
    return origin


class Origins:
    """The origins of all WIDGET inboxes, remembered for a few seconds."""

    CACHE_SECONDS = 5.0

    def __init__(self, database: Database) -> None:
        self._database = database
        self._by_inbox: dict[UUID, frozenset[str]] = {}
        self._anywhere: frozenset[str] = frozenset()
        self._fresh_until = 0.0
        self._changes = 0

    async def check(self, headers: Headers, inbox_id: UUID) -> None:
        """Raises `Forbidden` when these headers come from a page that the inbox does not know."""
        await self._refresh()
        if not origin_allowed(headers, tuple(self._by_inbox.get(inbox_id, ()))):
            raise Forbidden("This website is not among the allowedOrigins of the inbox")

    async def allowed(self, headers: Headers, inbox_id: UUID | None) -> bool:
        """For this inbox; without one, whether any inbox would let these headers in."""
        await self._refresh()
        known = self._anywhere if inbox_id is None else self._by_inbox.get(inbox_id, frozenset())
        return origin_allowed(headers, tuple(known))

    def forget(self) -> None:
        """After an inbox changed: the next call reads all again."""
        self._changes += 1
        self._fresh_until = 0.0

    async def _refresh(self) -> None:
        """While the database is away, what was known stays."""
        if self._fresh_until > time.monotonic():
            return
        changes = self._changes
        try:
            by_inbox = await queries.fetch_origins(self._database)
        except Unavailable:
            return
        self._by_inbox = by_inbox
        self._anywhere = frozenset().union(*by_inbox.values())
        if changes == self._changes:  # else it may be older than the change
            self._fresh_until = time.monotonic() + self.CACHE_SECONDS


class PublicCors:
    """Answers preflights of the public API, and lets pages of its inboxes read the answers.

    A preflight carries no token: where the inbox is not in the path it is enough that any inbox
    knows the origin. The call itself is then checked against its own inbox.
    """

    def __init__(self, app: App, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(f"{PUBLIC_PREFIX}/"):
            await self._app(scope, receive, send)
            return
        found = [value for name, value in scope["headers"] if name == b"origin"]
        match = _INBOX_PATH.fullmatch(scope["path"])
        inbox_id = _uuid(match[1]) if match else None
        allowed = bool(found) and await self._origins.allowed(scope["headers"], inbox_id)
        granted = [(b"access-control-allow-origin", found[0])] if allowed else []
        if scope["method"] == "OPTIONS" and found:
            await _answer_preflight(send, granted)
            return

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_cors(message, granted)
            await send(message)

        await self._app(scope, receive, send_with_cors)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


async def _answer_preflight(send: Send, granted: list[tuple[bytes, bytes]]) -> None:
    headers = [*granted, (b"vary", b"Origin")]
    if granted:
        headers += [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"Authorization, Content-Type, X-Request-Id"),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]
    else:
        headers.append((b"content-length", b"0"))
    await send(
        {
            "type": "http.response.start",
            "status": 204 if granted else Forbidden.status,
            "headers": headers,
        }
    )
    await send({"type": "http.response.body", "body": b""})


def _with_cors(message: Message, granted: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers with those of CORS; only a refused origin is answered with 403 here."""
    headers = [
        (name, value)
        for name, value in message["headers"]
        if name != b"vary" and not name.startswith(b"access-control-")
    ]
    headers += [(b"vary", b"Origin"), (b"cross-origin-resource-policy", b"cross-origin")]
    if granted and message["status"] != Forbidden.status:
        headers += [*granted, (b"access-control-expose-headers", b"X-Request-Id, Retry-After")]
    return headers
