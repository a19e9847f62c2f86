"""The SQL of the queue of deliveries; `outbox_queries` has what they are made of.

A *lane* is what must stay in order: the deliveries to one webhook about one conversation or lead.
Only the first pending one of a lane may be attempted; what is found behind another is parked,
and whatever ends an attempt unparks the first of its lane. Whoever changes which one that is
holds the lock of the webhook's row, so nobody decides on what somebody else is just changing.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.database import Database
from messaging_server.models import WebhookDeliveryStatus
from messaging_server.webhooks import outbox_queries
from messaging_server.webhooks.queries import secrets_of

LOOK_AHEAD = 16
PRUNED_AT_ONCE = 1_000
KEPT_DAYS = 30
COUNTED_AT_MOST = 100_000


class Target(Struct, frozen=True):
    """A webhook that is locked by this transaction; `open`: it may be sent something now."""

    id: UUID
    url: str
    secrets: tuple[str, ...]
    open: bool


class Claim(Struct, frozen=True, kw_only=True):
    """The right to attempt one delivery until the lease ends; `attempt` counts from 1."""

    id: UUID
    token: UUID
    webhook_id: UUID
    body: str
    attempt: int


class Result(Struct, frozen=True, kw_only=True):
    """What to save of an attempt; `delay_seconds` is the time to the next one of a PENDING."""

    claim: Claim
    status: WebhookDeliveryStatus
    delay_seconds: float
    response_status: int | None
    error: str | None


class Health(Struct, frozen=True, kw_only=True):
    """What a round of attempts says of a webhook; `gone`: it answered 410."""

    webhook_id: UUID
    succeeded: bool
    gone: bool
    hold_seconds: float
    error: str


class Work(Struct, frozen=True):
    """What there is to do: facts in the outbox, deliveries that are due."""

    any_enabled: bool
    outbox: bool
    due: bool


async def look_for_work(database: Database) -> Work:
    row = await database.fetch_row(
        """
        select exists (select from webhook_outbox) as outbox,
            coalesce(bool_or(w.enabled), false) as any_enabled,
            coalesce(bool_or(w.enabled and coalesce(w.held_until <= now(), true) and (
                select true
                from webhook_deliveries d
                where d.webhook_id = w.id and d.status = 'PENDING' and not d.parked
                    and d.due_at <= now() and (d.lease_until is null or d.lease_until < now())
                order by d.due_at, d.position -- in the order of the index, or it is not used
                limit 1
            )), false) as due
        from webhooks w
        """
    )
    assert row is not None
    return Work(row["any_enabled"], row["outbox"], row["due"])


async def lock_targets(database: Database, webhook_ids: Sequence[UUID]) -> list[Target]:
    """The enabled webhooks and these ones, but for those that somebody else has locked now."""
    rows = await database.fetch(
        """
        select id, url, secret, enabled and coalesce(held_until <= now(), true) as open,
            case when previous_secret_until > now() then previous_secret end as previous_secret
        from webhooks
        where enabled or id = any($1::uuid[])
        order by id
        for no key update skip locked
        """,
        webhook_ids,
    )
    return [Target(row["id"], row["url"], secrets_of(row), row["open"]) for row in rows]


async def fetch_deleted(database: Database, webhook_ids: Sequence[UUID]) -> set[UUID]:
    """Those of them that are no longer there."""
    rows = await database.fetch("select id from webhooks where id = any($1::uuid[])", webhook_ids)
    return set(webhook_ids) - {row["id"] for row in rows}


async def claim_due(
    database: Database, places: Mapping[UUID, int], *, lease_seconds: float
) -> tuple[list[Claim], bool]:
    """Lease up to so many due deliveries of each webhook, which must be locked.

    Parks what it finds behind others. True when there may be more than it has looked at.
    """
    rows = await database.fetch(
        """
        select d.id, d.webhook_id, d.ordering_key, exists (
            select from webhook_deliveries e
            where e.ordering_key = d.ordering_key and e.webhook_id = d.webhook_id
                and e.status = 'PENDING' and e.position < d.position
        ) as blocked
        from unnest($1::uuid[], $2::integer[]) as f (webhook_id, places)
        cross join lateral (
            select id, webhook_id, ordering_key, position
            from webhook_deliveries
            where webhook_id = f.webhook_id and status = 'PENDING' and not parked
                and due_at <= now() and (lease_until is null or lease_until < now())
            order by due_at, position
            limit f.places + $3
        ) d
        """,
        list(places),
        list(places.values()),
        LOOK_AHEAD,
    )
    blocked = [row for row in rows if row["blocked"]]
    if blocked:
        await _park(database, blocked)
    left = dict(places)
    chosen = []
    for row in rows:
        if not row["blocked"] and left[row["webhook_id"]] > 0:
            left[row["webhook_id"]] -= 1
            chosen.append(row["id"])
    claims = await _lease(database, chosen, lease_seconds) if chosen else []
    return claims, bool(blocked) and any(left.values())


async def _park(database: Database, rows: Sequence[Mapping[str, Any]]) -> None:
    await database.execute(
        "update webhook_deliveries set parked = true where id = any($1::uuid[])",
        [row["id"] for row in rows],
    )
    await unpark_first(database, {(row["webhook_id"], row["ordering_key"]) for row in rows})


async def unpark_first(database: Database, lanes: set[tuple[UUID, UUID]]) -> None:
    """Let the first pending delivery of each lane, (webhook, ordering key), be attempted."""
    await database.execute(
        """
        update webhook_deliveries d
        set parked = false
        from unnest($1::uuid[], $2::uuid[]) as lane (webhook_id, ordering_key)
        cross join lateral (
            select id, parked
            from webhook_deliveries e
            where e.ordering_key = lane.ordering_key and e.webhook_id = lane.webhook_id
                and e.status = 'PENDING'
            order by e.position
            limit 1
        ) as first
        where d.id = first.id and first.parked
        """,
        [webhook_id for webhook_id, _ in lanes],
        [ordering_key for _, ordering_key in lanes],
    )


async def _lease(database: Database, ids: Sequence[UUID], lease_seconds: float) -> list[Claim]:
    token = uuid7()
    rows = await database.fetch(
        """
        update webhook_deliveries d
        set lease_until = now() + make_interval(secs => $2), lease_token = $3
        from webhook_bodies b
        where d.id = any($1::uuid[]) and b.position = d.position
        returning d.id, d.webhook_id, d.attempts, b.body
        """,
        ids,
        lease_seconds,
        token,
    )
    return [
        Claim(
            id=row["id"],
            token=token,
            webhook_id=row["webhook_id"],
            body=row["body"],
            attempt=row["attempts"] + 1,
        )
        for row in rows
    ]


async def save_results(database: Database, results: Sequence[Result]) -> None:
    """End the leases of attempts, with their webhooks locked; lost leases save nothing."""
    rows = await database.fetch(
        """
        update webhook_deliveries d
        set status = r.status,
            attempts = d.attempts + 1,
            due_at = case when r.status = 'PENDING'
                then now() + make_interval(secs => r.delay_seconds) else d.due_at end,
            lease_until = null,
            lease_token = null,
            response_status = r.response_status,
            error = r.error,
            finished_at = case when r.status <> 'PENDING' then now() end
        from unnest(
            $1::uuid[], $2::uuid[], $3::text[], $4::double precision[], $5::integer[], $6::text[]
        ) as r (id, token, status, delay_seconds, response_status, error)
        where d.id = r.id and d.lease_token = r.token
        returning d.webhook_id, d.ordering_key
        """,
        [result.claim.id for result in results],
        [result.claim.token for result in results],
        [result.status for result in results],
        [result.delay_seconds for result in results],
        [result.response_status for result in results],
        [result.error for result in results],
    )
    await unpark_first(database, {(row["webhook_id"], row["ordering_key"]) for row in rows})


async def update_health(
    database: Database, health: Sequence[Health], *, give_up_seconds: float
) -> list[UUID]:
    """Note failures and successes; the webhooks that are disabled by it."""
    rows = await database.fetch(
        """
        update webhooks w
        set failing_since = case when h.succeeded then null
                else coalesce(w.failing_since, now()) end,
            held_until = case when h.hold_seconds > 0
                then now() + make_interval(secs => h.hold_seconds) else w.held_until end,
            enabled = w.enabled and not (h.gone or v.hopeless),
            disabled_reason = case
                when not w.enabled then w.disabled_reason
                when h.gone then 'It answered 410 Gone'
                when v.hopeless then 'Nothing but failures since '
                    || to_char(w.failing_since at time zone 'UTC', 'YYYY-MM-DD HH24:MI')
                    || ' UTC; the last one: ' || h.error
            end
        from unnest(
            $1::uuid[], $2::boolean[], $3::boolean[], $4::double precision[], $5::text[]
        ) as h (webhook_id, succeeded, gone, hold_seconds, error)
        join webhooks o on o.id = h.webhook_id
        cross join lateral (
            select not h.succeeded
                and coalesce(o.failing_since < now() - make_interval(secs => $6), false)
        ) as v (hopeless)
        where w.id = h.webhook_id
            and (not h.succeeded or h.gone or h.hold_seconds > 0 or w.failing_since is not null)
        returning w.id, o.enabled and not w.enabled as disabled
        """,
        [each.webhook_id for each in health],
        [each.succeeded for each in health],
        [each.gone for each in health],
        [each.hold_seconds for each in health],
        [each.error for each in health],
        give_up_seconds,
    )
    return [row["id"] for row in rows if row["disabled"]]


async def release_leases(database: Database, claims: Sequence[Claim]) -> None:
    """Give back what was not attempted to the end; it is due as before."""
    await database.execute(
        """
        update webhook_deliveries set lease_until = null, lease_token = null
        where id = any($1::uuid[]) and lease_token = any($2::uuid[])
        """,
        [claim.id for claim in claims],
        [claim.token for claim in claims],
    )


# --- Keeping house ----------------------------------------------------------------------------


async def count_pending(database: Database) -> int:
    """Of all webhooks, up to a hundred thousand."""
    count: int = await database.fetch_value(
        f"""
        select count(*) from (
            select from webhook_deliveries where status = 'PENDING' limit {COUNTED_AT_MOST}
        ) few
        """
    )
    return count


async def prune(database: Database) -> int:
    """Remove a part of what is old, and of what belonged to deleted webhooks; how many rows.

    Of enabled webhooks only what is finished. Call it in a transaction; webhooks that somebody
    else has locked have their turn later.
    """
    await outbox_queries.lock_outbox(database)
    gone = [*await _delete_old(database), *await _delete_orphaned(database)]
    if gone:
        await _delete_unused_bodies(database, gone)
    return len(gone)


async def forget_notes(database: Database, webhook_id: UUID) -> None:
    """Remove all its deliveries of private notes, with the outbox and the webhook locked."""
    gone = await database.fetch(
        """
        delete from webhook_deliveries
        where webhook_id = $1 and private
        returning position, ordering_key
        """,
        webhook_id,
    )
    if gone:
        await _delete_unused_bodies(database, gone)
        await unpark_first(database, {(webhook_id, row["ordering_key"]) for row in gone})


async def _delete_unused_bodies(database: Database, gone: Sequence[Mapping[str, Any]]) -> None:
    """Of deliveries that are gone, where no other webhook has one of the same."""
    await database.execute(
        """
        delete from webhook_bodies b
        using unnest($1::bigint[], $2::uuid[]) as gone (position, ordering_key)
        where b.position = gone.position and not exists (
            select from webhook_deliveries d
            where d.ordering_key = gone.ordering_key and d.position = gone.position
        )
        """,
        [row["position"] for row in gone],
        [row["ordering_key"] for row in gone],
    )


async def _delete_old(database: Database) -> Sequence[Mapping[str, Any]]:
    return await database.fetch(
        f"""
        with idle as (
            select id, enabled from webhooks order by id for no key update skip locked
        )
        delete from webhook_deliveries
        where id in (
            select d.id
            from idle w
            cross join lateral (
                select id
                from webhook_deliveries
                where webhook_id = w.id and created_at < now() - interval '{KEPT_DAYS} days'
                    and (status <> 'PENDING' or not w.enabled)
                order by created_at, position
                limit {PRUNED_AT_ONCE}
            ) d
        )
        returning position, ordering_key
        """
    )


async def _delete_orphaned(database: Database) -> Sequence[Mapping[str, Any]]:
    """Finds the webhooks by jumping through the index, which has few of them."""
    return await database.fetch(
        f"""
        with recursive known as (
            (select webhook_id from webhook_deliveries order by webhook_id limit 1)
            union all
            select (
                select d.webhook_id from webhook_deliveries d
                where d.webhook_id > known.webhook_id
                order by d.webhook_id
                limit 1
            )
            from known
            where known.webhook_id is not null
        )
        delete from webhook_deliveries
        where id in (
            select d.id
            from known
            cross join lateral (
                select id from webhook_deliveries
                where webhook_id = known.webhook_id
                limit {PRUNED_AT_ONCE}
            ) d
            where not exists (select from webhooks w where w.id = known.webhook_id)
        )
        returning position, ordering_key
        """
    )
