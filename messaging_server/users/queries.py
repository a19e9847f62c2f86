"""All SQL about users."""

from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.errors import Conflict
from messaging_server.models import Role, User, timestamp
from messaging_server.tables import Users

COLUMNS = (
    Users.id,
    Users.email,
    Users.name,
    Users.role,
    Users.active,
    Users.created_at,
    Users.updated_at,
)
REGISTRATION_LOCK = 7_001
"""Advisory lock: who is the first user, and who the last ADMIN, is decided one at a time."""


class Credentials(Struct, frozen=True):
    """What a login or a token is checked against."""

    user: User
    password_hash: str
    token_version: int


class UserCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


def to_user(row: asyncpg.Record) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        name=row["name"],
        role=Role(row["role"]),
        active=row["active"],
        created_at=timestamp(row["created_at"]),
        updated_at=timestamp(row["updated_at"]),
    )


async def lock_registration(database: Database) -> None:
    """Until the end of the transaction."""
    await database.execute("select pg_advisory_xact_lock($1)", REGISTRATION_LOCK)


async def any_user_exists(database: Database) -> bool:
    return bool(await database.run(Users.select(Users.id).limit(1)))


async def insert_user(
    database: Database, *, email: str, name: str | None, password_hash: str, role: Role
) -> User:
    """Raises `Conflict` when the e-mail is taken, in whatever case."""
    try:
        row = await database.fetch_row(
            """
            insert into users (id, email, name, password_hash, role)
            values ($1, $2, $3, $4, $5)
            returning id, email, name, role, active, created_at, updated_at
            """,
            uuid7(),
            email,
            name,
            password_hash,
            role,
        )
    except asyncpg.UniqueViolationError:
        raise Conflict("A user with this e-mail exists") from None
    assert row is not None
    return to_user(row)


async def fetch_credentials(database: Database, email: str) -> Credentials | None:
    return await _fetch_credentials(database, "lower(email) = lower($1)", email)


async def fetch_credentials_by_id(database: Database, user_id: UUID) -> Credentials | None:
    return await _fetch_credentials(database, "id = $1", user_id)


async def _fetch_credentials(database: Database, condition: str, value: Any) -> Credentials | None:
    row = await database.fetch_row(
        f"""
        select id, email, name, role, active, created_at, updated_at, password_hash, token_version
        from users
        where {condition}
        """,
        value,
    )
    return Credentials(to_user(row), row["password_hash"], row["token_version"]) if row else None


async def fetch_user(database: Database, user_id: UUID) -> User | None:
    rows = await database.run(Users.select(*COLUMNS).where(Users.id == user_id))
    return to_user(rows[0]) if rows else None


async def list_users(
    database: Database, *, limit: int, cursor: UserCursor | None
) -> tuple[list[User], UserCursor | None]:
    """Oldest first."""
    rows = await database.fetch(
        """
        select id, email, name, role, active, created_at, updated_at
        from users
        where $2::timestamptz is null or (created_at, id) > ($2, $3::uuid)
        order by created_at, id
        limit $1
        """,
        limit + 1,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
    )
    more = len(rows) > limit
    last = rows[limit - 1] if more else None
    following = UserCursor(last["created_at"], last["id"]) if last else None
    return [to_user(row) for row in rows[:limit]], following


async def other_active_admin_exists(database: Database, user_id: UUID) -> bool:
    rows = await database.run(
        Users.select(Users.id)
        .where(Users.role == Role.ADMIN.value, Users.active.eq(True), Users.id != user_id)
        .limit(1)
    )
    return bool(rows)


async def update_user(
    database: Database, user_id: UUID, changes: dict[str, Any], *, revoke: bool
) -> User:
    """Set the columns in `changes`; `revoke` voids all tokens issued so far."""
    row = await database.fetch_row(
        """
        update users
        set name = case when $2 then $3 else name end,
            role = coalesce($4, role),
            active = coalesce($5, active),
            password_hash = coalesce($6, password_hash),
            token_version = token_version + $7,
            updated_at = now()
        where id = $1
        returning id, email, name, role, active, created_at, updated_at
        """,
        user_id,
        "name" in changes,
        changes.get("name"),
        changes.get("role"),
        changes.get("active"),
        changes.get("password_hash"),
        int(revoke),
    )
    assert row is not None
    return to_user(row)
