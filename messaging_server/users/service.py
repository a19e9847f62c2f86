"""Users, their passwords and their tokens: who may be whom.

Every change that voids tokens is stated as `AccessRevoked`, which empties the token cache here
and closes sockets elsewhere.
"""

import re
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from msgspec import UNSET, Meta, Struct, UnsetType

from messaging_server.database import Database
from messaging_server.errors import Conflict, Forbidden, NotFound, Unauthenticated, ValidationFailed
from messaging_server.events import AccessRevoked, Bus, UserRenamed
from messaging_server.models import (
    VISIBLE,
    Caller,
    Model,
    Request,
    Role,
    Timestamp,
    User,
    UserIdentity,
)
from messaging_server.models import timestamp as to_timestamp
from messaging_server.remembered import Remembered
from messaging_server.security import Passwords, Tokens
from messaging_server.users import queries

EMAIL = re.compile(r"[^\s@<>,;]+@[^\s@<>,;.]+(\.[^\s@<>,;.]+)*")
WRONG_CREDENTIALS = "Wrong e-mail or password"

Email = Annotated[str, Meta(min_length=3, max_length=254, examples=["you@example.com"])]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=VISIBLE)]
Password = Annotated[str, Meta(max_length=1_000)]


class Registration(Request, frozen=True):
    email: Email
    password: Password
    name: Name | None = None
    role: Role | None = None


class Credentials(Request, frozen=True):
    email: Annotated[str, Meta(max_length=1_000)]
    password: Password


class PasswordChange(Request, frozen=True):
    current_password: Password
    new_password: Password


class UserChanges(Request, frozen=True):
    name: Name | UnsetType | None = UNSET
    role: Role | UnsetType = UNSET
    active: bool | UnsetType = UNSET


class Login(Model, frozen=True):
    token: str
    expires_at: Timestamp
    user: UserIdentity


class Authenticated(Struct, frozen=True):
    """A caller with a valid token, and when that token ends."""

    caller: Caller
    expires_at: datetime


def check_email(email: str) -> str:
    """`email` without space around it; raises `ValidationFailed` when it can't be one."""
    email = email.strip()
    if not EMAIL.fullmatch(email):
        raise ValidationFailed.of("email", "must be an e-mail address")
    return email


class UserTokens:
    """Says who a token belongs to, remembering the answer for a few seconds.

    A revocation or a new name in this process counts at once; one in another process after
    `CACHE_SECONDS` at the latest.
    """

    CACHE_SECONDS = 5.0

    def __init__(self, database: Database, tokens: Tokens, bus: Bus) -> None:
        self._database = database
        self._tokens = tokens
        self._known: Remembered[str, Authenticated] = Remembered(seconds=self.CACHE_SECONDS)
        bus.subscribe(AccessRevoked, self._forget)
        bus.subscribe(UserRenamed, self._forget)

    async def authenticate(self, token: str) -> Authenticated:
        """Raises `Unauthenticated` for a bad, expired or revoked token."""
        authenticated = await self._known.find(token, self._read)
        if authenticated.expires_at <= datetime.now(UTC):
            raise Unauthenticated("The token has expired")
        return authenticated

    async def _read(self, token: str) -> Authenticated:
        claims = self._tokens.read(token)
        found = await queries.fetch_credentials_by_id(self._database, claims.user_id)
        if found is None or not found.user.active or found.token_version != claims.version:
            raise Unauthenticated("The token has been revoked")
        user = found.user
        caller = Caller(id=user.id, email=user.email, name=user.name, role=user.role)
        return Authenticated(caller, claims.expires_at)

    def _forget(self, event: AccessRevoked | UserRenamed) -> None:
        self._known.forget(lambda known: known.caller.id == event.user_id)


async def register(
    database: Database,
    passwords: Passwords,
    registration: Registration,
    *,
    caller: Caller | None,
    open_to_anyone: bool,
) -> User:
    """The first user becomes ADMIN; afterwards an ADMIN decides, or anyone becomes an agent."""
    email = check_email(registration.email)
    if await queries.any_user_exists(database):
        check_registration(registration, caller, open_to_anyone=open_to_anyone)
    password_hash = await passwords.hash(registration.password)
    async with database.transaction():
        await queries.lock_registration(database)
        role = Role.ADMIN
        if await queries.any_user_exists(database):
            check_registration(registration, caller, open_to_anyone=open_to_anyone)
            role = registration.role or Role.SALES_AGENT
        return await queries.insert_user(
            database, email=email, name=registration.name, password_hash=password_hash, role=role
        )


def check_registration(
    registration: Registration, caller: Caller | None, *, open_to_anyone: bool
) -> None:
    if caller is not None and caller.is_admin:
        return
    if not open_to_anyone and caller is None:
        raise Unauthenticated("Registering a user needs an ADMIN's token")
    if not open_to_anyone or registration.role is Role.ADMIN:
        raise Forbidden("Only an ADMIN may do this")


async def create_user(database: Database, passwords: Passwords, registration: Registration) -> User:
    """From the command line: whoever runs it owns the installation."""
    email = check_email(registration.email)
    password_hash = await passwords.hash(registration.password)
    async with database.transaction():
        await queries.lock_registration(database)
        first = not await queries.any_user_exists(database)
        default = Role.ADMIN if first else Role.SALES_AGENT
        return await queries.insert_user(
            database,
            email=email,
            name=registration.name,
            password_hash=password_hash,
            role=registration.role or default,
        )


async def log_in(
    database: Database, passwords: Passwords, tokens: Tokens, credentials: Credentials
) -> Login:
    found = await queries.fetch_credentials(database, credentials.email.strip())
    password_hash = found.password_hash if found else None
    matches = await passwords.verify(credentials.password, password_hash)
    if found is None or not matches or not found.user.active:
        raise Unauthenticated(WRONG_CREDENTIALS)
    return issue(tokens, found.user, found.token_version)


def issue(tokens: Tokens, user: User, version: int) -> Login:
    token, expires_at = tokens.issue(user.id, role=user.role, version=version)
    identity = UserIdentity(id=user.id, email=user.email, name=user.name, role=user.role)
    return Login(token=token, expires_at=to_timestamp(expires_at), user=identity)


async def fetch_self(database: Database, caller: Caller) -> User:
    user = await queries.fetch_user(database, caller.id)
    if user is None:
        raise Unauthenticated("The token has been revoked")
    return user


async def log_out(database: Database, caller: Caller) -> None:
    """Voids every token of the caller, and closes the caller's sockets."""
    async with database.transaction():
        await queries.update_user(database, caller.id, {}, revoke=True)
        database.publish(AccessRevoked(user_id=caller.id))


async def change_password(
    database: Database,
    passwords: Passwords,
    tokens: Tokens,
    *,
    caller: Caller,
    change: PasswordChange,
) -> Login:
    """Voids every token of the caller and returns a new one."""
    found = await queries.fetch_credentials_by_id(database, caller.id)
    if found is None or not await passwords.verify(change.current_password, found.password_hash):
        raise ValidationFailed.of("currentPassword", "is not the current password")
    password_hash = await passwords.hash(change.new_password, field="newPassword")
    async with database.transaction():
        await queries.update_user(
            database, caller.id, {"password_hash": password_hash}, revoke=True
        )
        current = await queries.fetch_credentials_by_id(database, caller.id)
        database.publish(AccessRevoked(user_id=caller.id))
    assert current is not None
    return issue(tokens, current.user, current.token_version)


async def update_user(database: Database, user_id: UUID, changes: UserChanges) -> User:
    """A new role or a deactivation voids the user's tokens; the last active ADMIN stays one."""
    async with database.transaction():
        await queries.lock_registration(database)
        user = await queries.fetch_user(database, user_id)
        if user is None:
            raise NotFound("No such user")
        role = user.role if changes.role is UNSET else changes.role
        active = user.active if changes.active is UNSET else changes.active
        if user.active and user.role is Role.ADMIN and not (active and role is Role.ADMIN):
            await refuse_last_admin(database, user_id)
        revoke = role is not user.role or (user.active and not active)
        columns: dict[str, object] = {"role": role, "active": active}
        if changes.name is not UNSET:
            columns["name"] = changes.name
        updated = await queries.update_user(database, user_id, columns, revoke=revoke)
        if updated.name != user.name:
            database.publish(UserRenamed(user_id=user_id, name=updated.name))
        if revoke:
            database.publish(AccessRevoked(user_id=user_id))
    return updated


async def refuse_last_admin(database: Database, user_id: UUID) -> None:
    if not await queries.other_active_admin_exists(database, user_id):
        raise Conflict("The last active ADMIN can't be demoted or deactivated")
