"""Makes deliveries of the facts in the outbox: one for each webhook that wants to know.

One transaction removes the facts and writes their deliveries, so that none is lost or doubled.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
from loguru import logger

from messaging_server import metrics
from messaging_server.database import Database
from messaging_server.errors import Unavailable
from messaging_server.webhooks import outbox_queries
from messaging_server.webhooks.outbox_queries import Listener, NewDelivery
from messaging_server.webhooks.payloads import OutboxEntry, Sources, render

OUTBOX_AT_ONCE = 500


async def empty_outbox(database: Database) -> int | None:
    """The oldest facts; how many they were, None when somebody else is at it."""
    async with database.transaction():
        if not await outbox_queries.try_lock_outbox(database):
            return None
        rows = await outbox_queries.take_outbox(database, limit=OUTBOX_AT_ONCE)
        listeners = await outbox_queries.fetch_listeners(database)
        deliveries, bodies = await _prepare(database, rows, listeners)
        if deliveries:
            await outbox_queries.insert_deliveries(database, deliveries, bodies)
    return len(rows)


async def _prepare(
    database: Database, rows: Sequence[Mapping[str, Any]], listeners: Sequence[Listener]
) -> tuple[list[NewDelivery], dict[int, str]]:
    """As `_deliveries_of`; what can't be told is dropped, so that it holds up nothing else."""
    try:
        entries = [outbox_queries.to_entry(row) for row in rows]
        sources = await outbox_queries.fetch_sources(database, entries)
        return _deliveries_of(entries, listeners, sources)
    except (Unavailable, asyncpg.PostgresError):
        raise
    except Exception as defect:  # noqa: BLE001  # whatever it is, it is one entry's
        if len(rows) == 1:
            _drop(rows[0], defect)
            return [], {}
    middle = len(rows) // 2
    first, first_bodies = await _prepare(database, rows[:middle], listeners)
    second, second_bodies = await _prepare(database, rows[middle:], listeners)
    return first + second, first_bodies | second_bodies


def _deliveries_of(
    entries: Sequence[OutboxEntry], listeners: Sequence[Listener], sources: Sources
) -> tuple[list[NewDelivery], dict[int, str]]:
    """One for each webhook that wants to know, and the bodies by the positions of the entries.

    What has been erased is told to nobody.
    """
    deliveries: list[NewDelivery] = []
    bodies: dict[int, str] = {}
    for entry in entries:
        message = sources.messages.get(entry.subject_id)
        private = message is not None and message.private
        wanting = [
            listener.id
            for listener in listeners
            if (not listener.events or entry.event in listener.events)
            and (listener.include_private_notes or not private)
        ]
        body = render(entry, sources) if wanting else None
        if body is not None:
            bodies[entry.position] = body
            deliveries += [NewDelivery(webhook_id, entry, private) for webhook_id in wanting]
    return deliveries, bodies


def _drop(row: Mapping[str, Any], defect: Exception) -> None:
    """Only the kind of the defect is logged: its text may repeat what must not be in a log."""
    metrics.WEBHOOK_DROPPED.inc()
    logger.bind(
        event=row["event"], position=row["position"], subject_id=str(row["subject_id"])
    ).error("A webhook event can't be told: {}", type(defect).__name__)
