"""SQL about attachments: uploads, what messages have of them, and objects to be removed."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct

from messaging_server.database import Database
from messaging_server.models import Attachment, Caller

_COLUMNS = """
    a.id, a.file_name, a.content_type, a.size_bytes, a.width, a.height,
    a.thumbnail_key is not null as has_thumbnail
"""


class Uploader(Struct, frozen=True):
    """Who sent a file: a user, or a lead through an inbox."""

    user_id: UUID | None = None
    lead_id: UUID | None = None
    inbox_id: UUID | None = None


class NewAttachment(Struct, frozen=True, kw_only=True):
    """A file that is stored; `width` and `height` as it is shown."""

    id: UUID
    file_name: str
    content_type: str
    size_bytes: int
    width: int | None
    height: int | None
    storage_key: str
    thumbnail_key: str | None


class Content(Struct, frozen=True):
    """Where a file is, and its thumbnail if there is one."""

    file_name: str
    content_type: str
    size_bytes: int
    storage_key: str
    thumbnail_key: str | None


def to_attachment(database: Database, row: Mapping[str, Any]) -> Attachment:
    return Attachment(
        id=row["id"],
        file_name=row["file_name"],
        content_type=row["content_type"],
        size_bytes=row["size_bytes"],
        url=database.links.content(row["id"]),
        width=row["width"],
        height=row["height"],
        thumbnail_url=(
            database.links.content(row["id"], thumbnail=True) if row["has_thumbnail"] else None
        ),
    )


async def insert_attachment(
    database: Database, uploader: Uploader, attachment: NewAttachment
) -> Attachment:
    """Its objects no longer wait for removal.

    Raises `asyncpg.ForeignKeyViolationError` when the uploader has gone meanwhile.
    """
    row = await database.fetch_row(
        f"""
        with kept as (
            delete from attachment_removals where storage_key = any(array[$10, $11])
        ),
        a as (
            insert into attachments (
                id, uploaded_by, lead_id, inbox_id, file_name, content_type, size_bytes,
                width, height, storage_key, thumbnail_key
            )
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
            returning *
        )
        select {_COLUMNS} from a
        """,
        attachment.id,
        uploader.user_id,
        uploader.lead_id,
        uploader.inbox_id,
        attachment.file_name,
        attachment.content_type,
        attachment.size_bytes,
        attachment.width,
        attachment.height,
        attachment.storage_key,
        attachment.thumbnail_key,
    )
    assert row is not None
    return to_attachment(database, row)


async def fetch_attachment(
    database: Database, caller: Caller, attachment_id: UUID
) -> Attachment | None:
    """For who uploaded it, or sees the conversation to which it was sent."""
    row = await database.fetch_row(
        f"""
        select {_COLUMNS}
        from attachments a left join conversations c on c.id = a.conversation_id
        where a.id = $3 and ($1 or a.uploaded_by = $2 or c.assigned_agent_id = $2)
        """,
        caller.is_admin,
        caller.id,
        attachment_id,
    )
    return to_attachment(database, row) if row else None


async def fetch_content(database: Database, attachment_id: UUID) -> Content | None:
    """Without a question of access: for who has a signed address."""
    row = await database.fetch_row(
        """
        select file_name, content_type, size_bytes, storage_key, thumbnail_key
        from attachments
        where id = $1
        """,
        attachment_id,
    )
    return Content(**row) if row else None


async def link_attachments(
    database: Database,
    attachment_ids: Sequence[UUID],
    *,
    uploader: Uploader,
    message_id: UUID,
    conversation_id: UUID,
) -> tuple[Attachment, ...]:
    """Give the uploader's own unused uploads to a message, in this order.

    What is not the uploader's, or is used, is left out: then the transaction must not commit.
    """
    rows = await database.fetch(
        f"""
        with a as (
            update attachments
            set message_id = $2, conversation_id = $3, linked_at = now(),
                position = array_position($1::uuid[], id)
            where id = any($1) and message_id is null
                and (uploaded_by = $4 or lead_id = $5)
            returning *
        )
        select {_COLUMNS} from a order by a.position
        """,
        list(attachment_ids),
        message_id,
        conversation_id,
        uploader.user_id,
        uploader.lead_id,
    )
    return tuple(to_attachment(database, row) for row in rows)


async def fetch_of_messages(
    database: Database, message_ids: Sequence[UUID]
) -> dict[UUID, tuple[Attachment, ...]]:
    """By message, in the order in which they were sent; for what may be seen anyway."""
    if not message_ids:
        return {}
    rows = await database.fetch(
        f"""
        select a.message_id, {_COLUMNS}
        from attachments a
        where a.message_id = any($1)
        order by a.message_id, a.position
        """,
        list(message_ids),
    )
    found: dict[UUID, tuple[Attachment, ...]] = {}
    for row in rows:
        message_id = row["message_id"]
        found[message_id] = (*found.get(message_id, ()), to_attachment(database, row))
    return found


# --- Removal ----------------------------------------------------------------------------------


async def delete_unused(database: Database, *, older_than: timedelta, limit: int) -> None:
    """Uploads that nobody sent, a part of them at a time; their objects are due for removal."""
    await database.execute(
        """
        delete from attachments where id in (
            select id from attachments
            where message_id is null and created_at < now() - $1::interval
            order by created_at
            limit $2
            for update skip locked
        ) and message_id is null
        """,
        older_than,
        limit,
    )


async def insert_removals(
    database: Database, storage_keys: Sequence[str], *, after: timedelta
) -> None:
    """Remove these objects later, unless an attachment has them by then."""
    await database.execute(
        """
        insert into attachment_removals (storage_key, due_at)
        select key, now() + $2::interval from unnest($1::text[]) as key
        """,
        list(storage_keys),
        after,
    )


async def fetch_removals(database: Database, *, limit: int) -> list[str]:
    """Keys of objects that are to be removed now, the oldest first."""
    rows = await database.fetch(
        """
        select storage_key from attachment_removals
        where due_at <= now()
        order by due_at
        limit $1
        """,
        limit,
    )
    return [row["storage_key"] for row in rows]


async def delete_removals(database: Database, storage_keys: Sequence[str]) -> None:
    """These objects are gone."""
    await database.execute(
        "delete from attachment_removals where storage_key = any($1)", list(storage_keys)
    )
