"""Visitors and their sessions: who writes in through a website.

An anonymous visitor is known by a token of its own; a verified one because the website's server
signed who it is. Nobody is ever taken for somebody else because of an e-mail or phone that was
merely typed.
"""

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID, uuid4

import jwt
from msgspec import Meta, Struct

from messaging_server.conversations.visitors import SESSION_ENDED, open_visitor_conversation
from messaging_server.database import Database
from messaging_server.errors import NotFound, Unauthenticated
from messaging_server.events import Bus, LeadUpdated, VisitorLost
from messaging_server.inboxes import visitor_queries
from messaging_server.inboxes.identity import Identity, read_identity
from messaging_server.inboxes.settings import NO_SUCH_INBOX
from messaging_server.inboxes.visitor_queries import Changed, Known
from messaging_server.leads.service import LeadEmail, LeadName
from messaging_server.models import Model, Request, Timestamp, Visitor, timestamp
from messaging_server.remembered import Remembered
from messaging_server.security import ALGORITHM, hash_key

SESSION_LIFETIME = timedelta(hours=12)
VISITOR_TOKEN_PREFIX = "vt_"  # noqa: S105  # a prefix
UNNAMED = "Visitor"

VisitorToken = Annotated[str, Meta(pattern=r"^vt_[A-Za-z0-9_-]{43}$")]


class NewSession(Request, frozen=True):
    """`name` and `email` are what the visitor typed; with `identityToken` they don't count."""

    visitor_token: VisitorToken | None = None
    identity_token: Annotated[str, Meta(min_length=1, max_length=8_000)] | None = None
    name: LeadName | None = None
    email: LeadEmail | None = None


class SessionLead(Model, frozen=True):
    """`verified`: the website's server has said who this is."""

    id: UUID
    name: str
    verified: bool


class VisitorSession(Model, frozen=True):
    """`visitor_token` is there when a new one was made; `last_seq` counts public messages."""

    session_token: str
    expires_at: Timestamp
    visitor_token: str | None
    lead: SessionLead
    conversation_id: UUID | None
    last_seq: int


class AuthenticatedVisitor(Struct, frozen=True):
    """A visitor with a valid session, and when that ends."""

    visitor: Visitor
    expires_at: datetime


class SessionClaims(Struct, frozen=True):
    lead_id: UUID
    inbox_id: UUID
    verified: bool
    expires_at: datetime


class VisitorTokens:
    """Issues the tokens of sessions, and says who one speaks for, remembered for a few seconds.

    The key is derived from the server's secret, so that a user's token is never a visitor's,
    nor the reverse. A session ends when its lead or inbox goes, or when the lead becomes a
    verified one; at once in this process, within `CACHE_SECONDS` in others.
    """

    CACHE_SECONDS = 5.0

    def __init__(self, database: Database, secret: str, bus: Bus) -> None:
        self._database = database
        self._key = hmac.new(secret.encode(), b"visitor", hashlib.sha256).digest()
        self._known: Remembered[str, AuthenticatedVisitor] = Remembered(seconds=self.CACHE_SECONDS)
        bus.subscribe(VisitorLost, lambda event: self._forget(event.lead_ids))
        bus.subscribe(LeadUpdated, lambda event: self._forget(frozenset({event.lead_id})))

    def issue(self, visitor: Visitor) -> tuple[str, datetime]:
        """A token and when it ends."""
        now = datetime.now(UTC).replace(microsecond=0)
        expires_at = now + SESSION_LIFETIME
        claims = {
            "sub": str(visitor.lead_id),
            "inbox": str(visitor.inbox_id),
            "verified": visitor.verified,
            "iat": now,
            "exp": expires_at,
            "jti": uuid4().hex,
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM), expires_at

    async def authenticate(self, token: str) -> AuthenticatedVisitor:
        """Raises `Unauthenticated` for a bad, expired or ended session."""
        authenticated = await self._known.find(token, self._look_up)
        if authenticated.expires_at <= datetime.now(UTC):
            raise Unauthenticated("The token has expired")
        return authenticated

    async def _look_up(self, token: str) -> AuthenticatedVisitor:
        claims = self._read(token)
        visitor = await visitor_queries.fetch_visitor(
            self._database, claims.lead_id, claims.inbox_id
        )
        if visitor is None or visitor.verified != claims.verified:
            raise Unauthenticated(SESSION_ENDED)
        return AuthenticatedVisitor(visitor, claims.expires_at)

    def _read(self, token: str) -> SessionClaims:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                options={"require": ["sub", "inbox", "verified", "iat", "exp", "jti"]},
            )
            return SessionClaims(
                UUID(claims["sub"]),
                UUID(claims["inbox"]),
                claims["verified"],
                datetime.fromtimestamp(claims["exp"], UTC),
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, AttributeError, OverflowError):
            raise Unauthenticated("The token is not valid") from None

    def _forget(self, lead_ids: frozenset[UUID]) -> None:
        self._known.forget(lambda known: known.visitor.lead_id in lead_ids)


class Opened(Struct, frozen=True):
    """The lead of a session, and the visitor's token if a new one was made."""

    lead_id: UUID
    visitor_token: str | None = None


async def open_session(
    database: Database, tokens: VisitorTokens, inbox_id: UUID, request: NewSession
) -> VisitorSession:
    """A session for the visitor or the verified lead that the tokens name, else a new visitor.

    Raises `NotFound` unless it is a WIDGET inbox, `Unauthenticated` for a bad identity token.
    """
    async with database.transaction():
        known_secrets = await visitor_queries.fetch_widget_secrets(database, inbox_id)
        if known_secrets is None:
            raise NotFound(NO_SUCH_INBOX)
        if request.identity_token is None:
            opened = await _open_anonymous(database, inbox_id, request)
        else:
            identity = read_identity(request.identity_token, known_secrets)
            lead_id = await _identify(database, inbox_id, identity, request.visitor_token)
            opened = Opened(lead_id)
        visitor = await visitor_queries.fetch_visitor(database, opened.lead_id, inbox_id)
        assert visitor is not None
        conversation = await open_visitor_conversation(
            database, visitor, after_seq=None, limit=0, max_bytes=0
        )
    session_token, expires_at = tokens.issue(visitor)
    return VisitorSession(
        session_token=session_token,
        expires_at=timestamp(expires_at),
        visitor_token=opened.visitor_token,
        lead=SessionLead(id=visitor.lead_id, name=visitor.name, verified=visitor.verified),
        conversation_id=conversation.conversation_id,
        last_seq=conversation.last_seq,
    )


async def _open_anonymous(database: Database, inbox_id: UUID, request: NewSession) -> Opened:
    """The lead of a visitor's token that is still good, else a new one with a new token."""
    known = Known(name=request.name, email=request.email.strip() if request.email else None)
    if request.visitor_token is not None:
        token_hash = hash_key(request.visitor_token)
        lead_id = await visitor_queries.lock_anonymous_lead(database, inbox_id, token_hash)
        if lead_id is not None:
            await visitor_queries.extend_visitor(database, token_hash)
            changed = await visitor_queries.update_lead(database, lead_id, known, identity=None)
            _publish(database, changed)
            return Opened(lead_id)
    lead_id = await visitor_queries.insert_lead(
        database, inbox_id, identity=None, name=request.name or UNNAMED, known=known
    )
    token = VISITOR_TOKEN_PREFIX + secrets.token_urlsafe(32)
    await visitor_queries.insert_visitor(database, inbox_id, lead_id, hash_key(token))
    return Opened(lead_id, token)


async def _identify(
    database: Database, inbox_id: UUID, identity: Identity, visitor_token: str | None
) -> UUID:
    """The verified lead; a visitor who was anonymous until now becomes it, or part of it.

    The visitor's token is used up: on a shared computer it must not open what is known now.
    """
    known = Known(
        name=identity.name,
        email=identity.email.strip() if identity.email else None,
        phone=identity.phone,
    )
    await visitor_queries.lock_identity(database, inbox_id, identity.sub)
    lead_id = await visitor_queries.fetch_verified_lead(database, inbox_id, identity.sub)
    anonymous_id = None
    if visitor_token is not None:
        anonymous_id = await visitor_queries.lock_anonymous_lead(
            database, inbox_id, hash_key(visitor_token)
        )
    if anonymous_id is not None:
        await visitor_queries.delete_visitors(database, anonymous_id)
        database.publish(VisitorLost(lead_ids=frozenset({anonymous_id})))
        if lead_id is not None:
            merged = await visitor_queries.merge_lead(
                database, inbox_id, anonymous_id=anonymous_id, verified_id=lead_id
            )
            _publish(database, merged)
    lead_id = lead_id or anonymous_id
    if lead_id is None:
        return await visitor_queries.insert_lead(
            database, inbox_id, identity=identity.sub, name=identity.name or UNNAMED, known=known
        )
    changed = await visitor_queries.update_lead(database, lead_id, known, identity=identity.sub)
    _publish(database, changed)
    return lead_id


def _publish(database: Database, changed: Changed | None) -> None:
    if changed is not None:
        database.publish(
            LeadUpdated(lead_id=changed.lead_id, conversation_ids=changed.conversation_ids)
        )
