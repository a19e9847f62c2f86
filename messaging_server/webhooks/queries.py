"""The SQL behind the API of webhooks; `queue_queries` has what is delivered, and when."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.database import Database, row_count
from messaging_server.models import (
    Webhook,
    WebhookDelivery,
    WebhookDeliveryStatus,
    WebhookEvent,
    timestamp,
)

COLUMNS = """
    w.id, w.url, w.description, w.events, w.include_private_notes, w.enabled, w.disabled_reason,
    w.failing_since, w.created_at, w.updated_at
"""


class WebhookCursor(Struct, frozen=True):
    created_at: datetime
    id: UUID


class DeliveryCursor(Struct, frozen=True):
    created_at: datetime
    position: int


def to_webhook(row: Mapping[str, Any]) -> Webhook:
    failing_since = row["failing_since"]
    return Webhook(
        id=row["id"],
        url=row["url"],
        description=row["description"],
        events=[WebhookEvent(event) for event in row["events"]],
        include_private_notes=row["include_private_notes"],
        enabled=row["enabled"],
        disabled_reason=row["disabled_reason"],
        failing_since=timestamp(failing_since) if failing_since else None,
        created_at=timestamp(row["created_at"]),
        updated_at=timestamp(row["updated_at"]),
    )


def to_delivery(row: Mapping[str, Any]) -> WebhookDelivery:
    status = WebhookDeliveryStatus(row["status"])
    finished_at = row["finished_at"]
    return WebhookDelivery(
        id=row["id"],
        event=WebhookEvent(row["event"]),
        status=status,
        attempts=row["attempts"],
        next_attempt_at=(
            timestamp(row["due_at"]) if status is WebhookDeliveryStatus.PENDING else None
        ),
        response_status=row["response_status"],
        error=row["error"],
        created_at=timestamp(row["created_at"]),
        finished_at=timestamp(finished_at) if finished_at else None,
    )


async def insert_webhook(
    database: Database,
    *,
    url: str,
    description: str | None,
    events: Sequence[WebhookEvent],
    include_private_notes: bool,
    secret: str,
    created_by: UUID,
) -> Webhook:
    """Raises `asyncpg.LockNotAvailableError` when the tables are too busy to be told about."""
    row = await database.fetch_row(
        f"""
        insert into webhooks as w
            (id, url, description, events, include_private_notes, secret, created_by)
        values ($1, $2, $3, $4, $5, $6, $7)
        returning {COLUMNS}
        """,
        uuid7(),
        url,
        description,
        list(events),
        include_private_notes,
        secret,
        created_by,
    )
    assert row is not None
    return to_webhook(row)


async def fetch_webhook(database: Database, webhook_id: UUID) -> Webhook | None:
    row = await database.fetch_row(f"select {COLUMNS} from webhooks w where w.id = $1", webhook_id)
    return to_webhook(row) if row else None


async def list_webhooks(
    database: Database, *, limit: int, cursor: WebhookCursor | None
) -> tuple[list[Webhook], WebhookCursor | None]:
    """Oldest first."""
    rows = await database.fetch(
        f"""
        select {COLUMNS}
        from webhooks w
        where $2::timestamptz is null or (w.created_at, w.id) > ($2, $3::uuid)
        order by w.created_at, w.id
        limit $1
        """,
        limit + 1,
        cursor.created_at if cursor else None,
        cursor.id if cursor else None,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    following = WebhookCursor(last["created_at"], last["id"]) if last else None
    return [to_webhook(row) for row in rows[:limit]], following


async def update_webhook(
    database: Database, webhook_id: UUID, changes: Mapping[str, Any]
) -> Webhook | None:
    """Set the columns in `changes`; None when there is no such webhook.

    A new address, or being enabled again, is a new beginning: earlier failures are forgotten.
    """
    row = await database.fetch_row(
        f"""
        with before as (select url, enabled from webhooks where id = $1 for no key update),
        fresh as (
            select coalesce($2, b.url) <> b.url or (coalesce($6, false) and not b.enabled) as yes
            from before b
        )
        update webhooks w
        set url = coalesce($2, w.url),
            description = case when $3 then $4 else w.description end,
            events = coalesce($5::text[], w.events),
            enabled = coalesce($6, w.enabled),
            include_private_notes = coalesce($7, w.include_private_notes),
            disabled_reason = case when $6 then null else w.disabled_reason end,
            failing_since = case when fresh.yes then null else w.failing_since end,
            held_until = case when fresh.yes then null else w.held_until end,
            updated_at = now()
        from fresh
        where w.id = $1
        returning {COLUMNS}
        """,
        webhook_id,
        changes.get("url"),
        "description" in changes,
        changes.get("description"),
        changes.get("events"),
        changes.get("enabled"),
        changes.get("include_private_notes"),
    )
    return to_webhook(row) if row else None


async def update_secret(
    database: Database, webhook_id: UUID, secret: str, *, overlap_seconds: float
) -> datetime | None:
    """Until when the secret before is good as well; None when there is no such webhook."""
    until: datetime | None = await database.fetch_value(
        """
        update webhooks
        set previous_secret = secret,
            previous_secret_until = now() + make_interval(secs => $3),
            secret = $2,
            updated_at = now()
        where id = $1
        returning previous_secret_until
        """,
        webhook_id,
        secret,
        overlap_seconds,
    )
    return until


async def delete_webhook(database: Database, webhook_id: UUID) -> bool:
    """Its deliveries stay until they are pruned, and nobody sees them any more."""
    return row_count(await database.execute("delete from webhooks where id = $1", webhook_id)) > 0


async def list_deliveries(
    database: Database,
    webhook_id: UUID,
    *,
    status: WebhookDeliveryStatus | None,
    limit: int,
    cursor: DeliveryCursor | None,
) -> tuple[list[WebhookDelivery], DeliveryCursor | None]:
    """Newest first."""
    rows = await database.fetch(
        """
        select d.id, d.position, d.event, d.status, d.attempts, d.due_at, d.response_status,
            d.error, d.created_at, d.finished_at
        from webhook_deliveries d
        where d.webhook_id = $1
            and ($2::text is null or d.status = $2)
            and ($3::timestamptz is null or (d.created_at, d.position) < ($3, $4::bigint))
        order by d.created_at desc, d.position desc
        limit $5
        """,
        webhook_id,
        status,
        cursor.created_at if cursor else None,
        cursor.position if cursor else None,
        limit + 1,
    )
    last = rows[limit - 1] if len(rows) > limit else None
    following = DeliveryCursor(last["created_at"], last["position"]) if last else None
    return [to_delivery(row) for row in rows[:limit]], following


# What comes after another attempt of the same lane that is under way waits for its end.
_AGAIN = """
    status = 'PENDING',
    parked = d.ordering_key in (
        select b.ordering_key
        from webhook_deliveries b
        where b.webhook_id = $1 and b.status = 'PENDING' and not b.parked
            and b.lease_until > now()
    ),
    attempts = 0,
    due_at = now(),
    response_status = null,
    error = null,
    finished_at = null
"""

_NOT_UNDER_WAY = "(d.lease_until is null or d.lease_until < now())"


async def lock_webhook(database: Database, webhook_id: UUID) -> bool:
    """Keep everybody else from changing what of it is delivered next, until the commit."""
    found = await database.fetch_value(
        "select true from webhooks where id = $1 for no key update", webhook_id
    )
    return bool(found)


async def renew_delivery(
    database: Database, webhook_id: UUID, delivery_id: UUID
) -> WebhookDelivery | None:
    """Make it due now, as if it were new; one that is being attempted stays as it is.

    None when this webhook has no such delivery. Call it with the webhook locked.
    """
    await database.execute(
        f"""
        update webhook_deliveries d
        set {_AGAIN}
        where d.webhook_id = $1 and d.id = $2 and {_NOT_UNDER_WAY}
        """,
        webhook_id,
        delivery_id,
    )
    row = await database.fetch_row(
        """
        select id, event, status, attempts, due_at, response_status, error, created_at, finished_at
        from webhook_deliveries
        where webhook_id = $1 and id = $2
        """,
        webhook_id,
        delivery_id,
    )
    return to_delivery(row) if row else None


async def renew_deliveries_since(database: Database, webhook_id: UUID, since: datetime) -> int:
    """Make all of them due, as if they were new; how many. Call it with the webhook locked."""
    tag = await database.execute(
        f"""
        update webhook_deliveries d
        set {_AGAIN}
        where d.webhook_id = $1 and d.created_at >= $2 and {_NOT_UNDER_WAY}
        """,
        webhook_id,
        since,
    )
    return row_count(tag)


async def hurry_deliveries(database: Database, webhook_id: UUID) -> None:
    """Make all that is pending due now, whatever was before it; with the webhook locked."""
    await database.execute(
        """
        update webhook_deliveries
        set parked = false, due_at = least(due_at, now())
        where webhook_id = $1 and status = 'PENDING' and (parked or due_at > now())
        """,
        webhook_id,
    )


async def fetch_secrets(database: Database, webhook_id: UUID) -> tuple[str, tuple[str, ...]] | None:
    """The address and the secrets that are valid now, the newest first."""
    row = await database.fetch_row(
        """
        select url, secret, case when previous_secret_until > now() then previous_secret end
            as previous_secret
        from webhooks where id = $1
        """,
        webhook_id,
    )
    return (row["url"], secrets_of(row)) if row else None


def secrets_of(row: asyncpg.Record) -> tuple[str, ...]:
    previous = row["previous_secret"]
    return (row["secret"], previous) if previous else (row["secret"],)
