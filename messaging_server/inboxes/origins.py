"""Which websites may call the public API: the origins of each WIDGET inbox.

An inbox without origins is closed to other websites; no Origin (a server, curl) and the
server's own are always let in. Nothing here depends on `server.allowed_origins`.
"""

import re
import time
from uuid import UUID

from messaging_server.database import Database
from messaging_server.errors import Forbidden, Unavailable, ValidationFailed
from messaging_server.http import Headers, origin_allowed
from messaging_server.inboxes import queries
from messaging_server.origin import canonical_origin

PUBLIC_PREFIX = "/api/public/v1"
ANYWHERE = "*"

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

    async def allow(self, path: str, headers: Headers) -> bool:
        """Whether the inbox in the path lets these headers in; without one, whether any does.

        A preflight carries no token. The call itself is then checked against its own inbox.
        """
        match = _INBOX_PATH.fullmatch(path)
        inbox_id = _uuid(match[1]) if match else None
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


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
