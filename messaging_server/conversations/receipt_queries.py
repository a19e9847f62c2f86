"""SQL about receipts; which messages an inbox may report on is part of the statement."""

from collections.abc import Sequence
from uuid import UUID

from messaging_server.conversations.message_queries import DELIVERY
from messaging_server.conversations.visitor_queries import DeliveryChange
from messaging_server.database import Database
from messaging_server.models import DeliveryStatus


async def update_delivery(
    database: Database,
    inbox_id: UUID,
    receipts: Sequence[tuple[UUID, DeliveryStatus, str | None]],
) -> tuple[set[UUID], list[DeliveryChange]]:
    """The ids that are agents' public messages of the inbox, and those that got further.

    Each message at most once in `receipts`.
    """
    rows = await database.fetch(
        """
        with found as (
            select m.id, r.delivery, r.error
            from unnest($2::uuid[], $3::smallint[], $4::text[]) as r (id, delivery, error)
            join messages m on m.id = r.id
            join conversations c on c.id = m.conversation_id
            where c.inbox_id = $1 and m.sender_type = 'AGENT' and not m.private
            order by m.id
            for no key update of m
        ),
        changed as (
            update messages m
            set delivery = f.delivery, delivery_error = f.error
            from found f
            where m.id = f.id and m.delivery < f.delivery
            returning m.id, m.conversation_id, m.seq, m.delivery, m.delivery_error
        )
        select f.id, c.conversation_id, c.seq, c.delivery, c.delivery_error
        from found f left join changed c on c.id = f.id
        order by c.conversation_id, c.seq
        """,
        inbox_id,
        [message_id for message_id, _, _ in receipts],
        [DELIVERY.index(status) for _, status, _ in receipts],
        [error for _, _, error in receipts],
    )
    changes = [
        DeliveryChange(
            row["conversation_id"],
            row["id"],
            row["seq"],
            DELIVERY[row["delivery"]],
            row["delivery_error"],
        )
        for row in rows
        if row["seq"] is not None
    ]
    return {row["id"] for row in rows}, changes
