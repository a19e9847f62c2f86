"""The data browser at /admin: Piccolo Admin, read-only, for ADMINs.

It reads the tables as they are; changes go through the API, which keeps numbers, counters and
sockets right. Users log in with their own e-mail and password; sessions live in memory, so a
restart ends them, and they end with the user's tokens. Never imported unless it is enabled.
"""

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from litestar import asgi
from litestar.response.redirect import ASGIRedirectResponse
from litestar.types import Message, Receive, Scope, Send
from piccolo_admin.endpoints import create_admin

from messaging_server.database import Database
from messaging_server.errors import DomainError, TooLarge
from messaging_server.events import AccessRevoked, Bus
from messaging_server.http import PUBLIC, header
from messaging_server.limiter import Limiter
from messaging_server.models import Role
from messaging_server.security import Passwords
from messaging_server.tables import TABLES, Users
from messaging_server.users import queries as user_queries

LOGINS_PER_MINUTE = 10
LONGEST_EMAIL = 254
MAX_BODY_BYTES = 65_536
PAGE_POLICY = (
    b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Session:
    """What Piccolo's login makes a cookie of."""

    token: str
    user_id: UUID
    expires_at: datetime


class SessionStore:
    """Stands where Piccolo expects a table of sessions."""

    def __init__(self, bus: Bus) -> None:
        self._sessions: dict[str, Session] = {}
        bus.subscribe(AccessRevoked, self._end_sessions_of)

    async def create_session(
        self, user_id: UUID, expiry_date: datetime, max_expiry_date: datetime
    ) -> Session:
        """Piccolo gives naive local times; the shorter one counts."""
        ends = min(expiry_date, max_expiry_date).astimezone(UTC)
        session = Session(secrets.token_urlsafe(32), user_id, ends)
        now = datetime.now(UTC)
        self._sessions = {k: s for k, s in self._sessions.items() if s.expires_at > now}
        self._sessions[session.token] = session
        return session

    async def get_user_id(self, token: str, **_prolonged: object) -> UUID | None:
        """None once it has expired; using a session does not prolong it."""
        session = self._sessions.get(token)
        valid = session is not None and session.expires_at > datetime.now(UTC)
        return session.user_id if session is not None and valid else None

    async def remove_session(self, token: str) -> None:
        self._sessions.pop(token, None)

    def _end_sessions_of(self, event: AccessRevoked) -> None:
        self._sessions = {
            token: session
            for token, session in self._sessions.items()
            if session.user_id != event.user_id
        }


def administrators(database: Database, passwords: Passwords, limiter: Limiter) -> type[Users]:
    """The users, with what Piccolo asks of a table of users."""

    class Administrators(Users, tablename="users"):
        @property
        def username(self) -> str:
            return str(self.email)

        @property
        def admin(self) -> bool:
            return bool(self.role == Role.ADMIN)

        @property
        def superuser(self) -> bool:
            return False

        @classmethod
        async def login(cls, username: str, password: str) -> UUID | None:
            """The id of an active ADMIN with this password, else None after the same time."""
            if len(username) > LONGEST_EMAIL:
                return None
            try:
                limiter.check(LOGINS_PER_MINUTE, "admin", username.strip().lower())
                found = await user_queries.fetch_credentials(database, username.strip())
            except DomainError:
                return None
            password_hash = found.password_hash if found else None
            matches = await passwords.verify(password, password_hash)
            if found is None or not matches or not found.user.active:
                return None
            return found.user.id if found.user.role is Role.ADMIN else None

    Administrators._meta.db = Users._meta.db
    return Administrators


def admin_route(database: Database, passwords: Passwords, limiter: Limiter, bus: Bus) -> Any:
    """The mount at /admin."""
    application = create_admin(
        tables=TABLES,
        auth_table=administrators(database, passwords, limiter),  # type: ignore[arg-type]  # by shape
        session_table=SessionStore(bus),  # type: ignore[arg-type]  # by shape
        read_only=True,
        site_name="messaging_server",
        auto_include_related=False,
    )

    @asgi("/admin", is_mount=True, copy_scope=True, opt=PUBLIC)
    async def admin(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] == b"/admin":  # the page names its files relative to itself
            await ASGIRedirectResponse("/admin/")(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", PAGE_POLICY),
                ]
            await send(message)

        announced = header(scope, b"content-length")
        if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
            raise TooLarge("The body is too large")
        size = 0

        async def receive_little() -> Any:
            """Ends a body that was not announced when it becomes too long."""
            nonlocal size
            message: Any = await receive()
            size += len(message.get("body", b""))
            return message if size <= MAX_BODY_BYTES else {"type": "http.disconnect"}

        await application(scope, receive_little, send_with_policy)

    return admin
