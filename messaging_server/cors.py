"""Which pages of other sites may read the answers, and what their preflights are told.

The rules of browsers are the Fetch standard's (3.2); who may call at all is decided elsewhere,
since anybody but a browser ignores them.
"""

from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from messaging_server.errors import Forbidden
from messaging_server.http import Headers, origin_allowed

METHODS = b"GET, HEAD, POST, PATCH, DELETE"
PUBLIC_METHODS = b"GET, POST"
PREFLIGHT_SECONDS = b"600"


class Grant(Struct, frozen=True):
    """What the page at `origin` may do; an empty one is no page, or one that may do nothing."""

    origin: bytes
    is_public: bool

    def headers(self, status: int) -> list[tuple[bytes, bytes]]:
        """For an answer of this status; a 403 of the public API says that the page is refused."""
        headers = [(b"vary", b"Origin")]
        if self.is_public:
            headers.append((b"cross-origin-resource-policy", b"cross-origin"))
        if self.origin and not (self.is_public and status == Forbidden.status):
            headers += [
                (b"access-control-allow-origin", self.origin),
                (b"access-control-expose-headers", b"X-Request-Id, Retry-After"),
            ]
        return headers

    def preflight_headers(self) -> list[tuple[bytes, bytes]]:
        """Beside `headers`. Browsers compare them with what they are about to send."""
        return [
            (b"access-control-allow-methods", PUBLIC_METHODS if self.is_public else METHODS),
            (b"access-control-allow-headers", b"Authorization, Content-Type, X-Request-Id"),
            (b"access-control-max-age", PREFLIGHT_SECONDS),
        ]


NO_GRANT = Grant(b"", is_public=False)


class Cors:
    """The public API has the origins of its inboxes, the rest `server.allowed_origins`."""

    def __init__(
        self,
        allowed_origins: Sequence[str] = (),
        *,
        public_prefix: str,
        public_origins: Callable[[str, Headers], Awaitable[bool]],
    ) -> None:
        """`public_origins`: whether the call of this path and these headers is let in."""
        self._allowed_origins = allowed_origins
        self._public_prefix = f"{public_prefix}/"
        self._public_origins = public_origins

    async def find(self, path: str, headers: Headers) -> Grant:
        origin = next((value for name, value in headers if name == b"origin"), b"")
        is_public = path.startswith(self._public_prefix)
        if not origin:
            allowed = False
        elif is_public:
            allowed = await self._public_origins(path, headers)
        else:
            allowed = origin_allowed(headers, self._allowed_origins)
        return Grant(origin if allowed else b"", is_public)
