"""All SQL about API keys."""

from datetime import datetime
from uuid import UUID

import asyncpg
from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.models import ApiKey, KeyIdentity, timestamp
from messaging_server.tables import ApiKeys


class ApiKeyCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


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
    return (row["id"], row["inbox_id"]) if row else None


async def list_api_keys(
    database: Database, *, limit: int, cursor: ApiKeyCursor | None
) -> tuple[list[ApiKey], ApiKeyCursor | None]:
    """Oldest first."""
    rows = await database.fetch(
        """
        select id, inbox_id, name, prefix, created_at, last_used_at
        from api_keys
        where $2::timestamptz is null or (created_at, id) > ($2, $3::uuid)
        order by created_at, id
        limit $1
        """,
        limit + 1,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    following = ApiKeyCursor(last["created_at"], last["id"]) if last else None
    return [to_api_key(row) for row in rows[:limit]], following


async def fetch_api_key(database: Database, key_hash: bytes) -> KeyIdentity | None:
    rows = await database.run(
        ApiKeys.select(ApiKeys.id, ApiKeys.inbox_id).where(ApiKeys.key_hash == key_hash)
    )
    return KeyIdentity(rows[0]["id"], rows[0]["inbox_id"]) if rows else None


async def touch_api_keys(database: Database, key_ids: list[UUID]) -> None:
    await database.execute("update api_keys set last_used_at = now() where id = any($1)", key_ids)


async def delete_api_key(database: Database, key_id: UUID) -> bool:
    rows = await database.run(ApiKeys.delete().where(ApiKeys.id == key_id).returning(ApiKeys.id))
    return bool(rows)
