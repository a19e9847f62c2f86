"""All SQL about inboxes and API keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.models import ApiKey, Inbox, InboxKind, KeyIdentity, timestamp
from messaging_server.tables import ApiKeys

SECRET_PREFIX_CHARACTERS = 9

_INBOX = f"""
    id, name, kind, allowed_origins, greeting, left(secret, {SECRET_PREFIX_CHARACTERS}) as prefix,
    case when previous_secret_until > now() then previous_secret_until end as previous_until,
    created_at, updated_at
"""


class InboxCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


class ApiKeyCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


# --- Inboxes ----------------------------------------------------------------------------------


def to_inbox(row: Mapping[str, Any]) -> Inbox:
    previous_until = row["previous_until"]
    return Inbox(
        id=row["id"],
        name=row["name"],
        kind=InboxKind(row["kind"]),
        allowed_origins=row["allowed_origins"],
        greeting=row["greeting"],
        secret_prefix=row["prefix"],
        previous_secret_valid_until=timestamp(previous_until) if previous_until else None,
        created_at=timestamp(row["created_at"]),
        updated_at=timestamp(row["updated_at"]),
    )


async def insert_inbox(
    database: Database,
    *,
    name: str,
    kind: InboxKind,
    allowed_origins: Sequence[str],
    greeting: str | None,
    secret: str,
) -> Inbox:
    row = await database.fetch_row(
        f"""
        insert into inboxes (id, name, kind, allowed_origins, greeting, secret)
        values ($1, $2, $3, $4, $5, $6)
        returning {_INBOX}
        """,
        uuid7(),
        name,
        kind,
        allowed_origins,
        greeting,
        secret,
    )
    assert row is not None
    return to_inbox(row)


async def list_inboxes(
    database: Database, *, limit: int, cursor: InboxCursor | None
) -> tuple[list[Inbox], InboxCursor | None]:
    """Oldest first."""
    rows = await database.fetch(
        f"""
        select {_INBOX}
        from inboxes
        where $2::timestamptz is null or (created_at, id) > ($2, $3::uuid)
        order by created_at, id
        limit $1
        """,
        limit + 1,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    following = InboxCursor(last["created_at"], last["id"]) if last else None
    return [to_inbox(row) for row in rows[:limit]], following


async def fetch_inbox(database: Database, inbox_id: UUID) -> Inbox | None:
    row = await database.fetch_row(f"select {_INBOX} from inboxes where id = $1", inbox_id)
    return to_inbox(row) if row else None


async def update_inbox(
    database: Database, inbox_id: UUID, changes: Mapping[str, Any]
) -> Inbox | None:
    """Set what `changes` holds of name, allowed_origins and greeting; None if not there."""
    row = await database.fetch_row(
        f"""
        update inboxes
        set name = coalesce($2, name),
            allowed_origins = coalesce($3::text[], allowed_origins),
            greeting = case when $4 then $5 else greeting end,
            updated_at = now()
        where id = $1
        returning {_INBOX}
        """,
        inbox_id,
        changes.get("name"),
        changes.get("allowed_origins"),
        "greeting" in changes,
        changes.get("greeting"),
    )
    return to_inbox(row) if row else None


async def update_secret(
    database: Database, inbox_id: UUID, secret: str, *, keep_previous: timedelta
) -> Inbox | None:
    """The secret until now stays valid for a time; the one before that ends at once."""
    row = await database.fetch_row(
        f"""
        update inboxes
        set previous_secret = secret,
            previous_secret_until = now() + $3,
            secret = $2,
            updated_at = now()
        where id = $1
        returning {_INBOX}
        """,
        inbox_id,
        secret,
        keep_previous,
    )
    return to_inbox(row) if row else None


async def lock_inbox(database: Database, inbox_id: UUID) -> bool:
    """Whether it is there; until the commit nobody begins a session in it."""
    found = await database.fetch_value(
        "select true from inboxes where id = $1 for update", inbox_id
    )
    return bool(found)


async def delete_inbox(database: Database, inbox_id: UUID) -> None:
    """With its API keys; leads and conversations stay as they are, visitors run out."""
    await database.execute("delete from inboxes where id = $1", inbox_id)


async def fetch_lead_ids(database: Database, inbox_id: UUID) -> frozenset[UUID]:
    rows = await database.fetch("select id from leads where inbox_id = $1", inbox_id)
    return frozenset(row["id"] for row in rows)


async def fetch_origins(database: Database) -> dict[UUID, frozenset[str]]:
    """Of every WIDGET inbox."""
    rows = await database.fetch("select id, allowed_origins from inboxes where kind = 'WIDGET'")
    return {row["id"]: frozenset(row["allowed_origins"]) for row in rows}


# --- API keys ---------------------------------------------------------------------------------


def to_api_key(row: asyncpg.Record) -> ApiKey:
    last_used_at = row["last_used_at"]
    return ApiKey(
        id=row["id"],
        inbox_id=row["inbox_id"],
        name=row["name"],
        prefix=row["prefix"],
        created_at=timestamp(row["created_at"]),
        last_used_at=timestamp(last_used_at) if last_used_at else None,
    )


async def insert_api_key(
    database: Database,
    *,
    inbox_id: UUID | None,
    name: str,
    prefix: str,
    key_hash: bytes,
    created_by: UUID,
) -> tuple[UUID, UUID] | None:
    """The ids of the key and of its inbox: by default the oldest API inbox; None if not there."""
    try:
        row = await database.fetch_row(
            """
            insert into api_keys (id, inbox_id, name, prefix, key_hash, created_by)
            select $1, i.id, $3, $4, $5, $6
            from inboxes i
            where i.kind = 'API' and ($2::uuid is null or i.id = $2)
            order by i.created_at, i.id
            limit 1
            returning id, inbox_id
            """,
            uuid7(),
            inbox_id,
            name,
            prefix,
            key_hash,
            created_by,
        )
    except asyncpg.ForeignKeyViolationError:  # the inbox was deleted meanwhile
        return None
    return (row["id"], row["inbox_id"]) if row else None


async def list_api_keys(
    database: Database, *, inbox_id: UUID | None, limit: int, cursor: ApiKeyCursor | None
) -> tuple[list[ApiKey], ApiKeyCursor | None]:
    """Oldest first, those of one inbox or all."""
    rows = await database.fetch(
        """
        select id, inbox_id, name, prefix, created_at, last_used_at
        from api_keys
        where ($2::timestamptz is null or (created_at, id) > ($2, $3::uuid))
            and ($4::uuid is null or inbox_id = $4)
        order by created_at, id
        limit $1
        """,
        limit + 1,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
        inbox_id,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    following = ApiKeyCursor(last["created_at"], last["id"]) if last else None
    return [to_api_key(row) for row in rows[:limit]], following


async def fetch_api_key(database: Database, key_hash: bytes) -> KeyIdentity | None:
    rows = await database.run(
        ApiKeys.select(ApiKeys.id, ApiKeys.inbox_id).where(ApiKeys.key_hash == key_hash)
    )
    return KeyIdentity(rows[0]["id"], rows[0]["inbox_id"]) if rows else None


async def touch_api_key(database: Database, key_id: UUID) -> None:
    await database.execute("update api_keys set last_used_at = now() where id = $1", key_id)


async def delete_api_key(database: Database, key_id: UUID) -> bool:
    rows = await database.run(ApiKeys.delete().where(ApiKeys.id == key_id).returning(ApiKeys.id))
    return bool(rows)
