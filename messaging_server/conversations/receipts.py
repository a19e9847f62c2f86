"""What an API inbox's system reports about agents' messages: delivered, read or failed."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from msgspec import Meta

from messaging_server.conversations import receipt_queries
from messaging_server.conversations.message_queries import DELIVERY
from messaging_server.conversations.visitors import publish_delivery
from messaging_server.database import Database
from messaging_server.errors import ValidationFailed
from messaging_server.models import DeliveryStatus, KeyIdentity, Model, Request

REPORTED = (DeliveryStatus.FAILED, DeliveryStatus.DELIVERED, DeliveryStatus.READ)


class Receipt(Request, frozen=True):
    """`error` says, for people, why a message failed."""

    message_id: UUID
    status: DeliveryStatus
    error: Annotated[str, Meta(min_length=1, max_length=500)] | None = None


class Receipts(Request, frozen=True):
    receipts: Annotated[list[Receipt], Meta(min_length=1, max_length=100)]


class ReceiptsResult(Model, frozen=True):
    """Message ids by what became of their receipts.

    `unchanged` had got as far already; `unknown` are no agent's messages of this inbox.
    """

    updated: Sequence[UUID]
    unchanged: Sequence[UUID]
    unknown: Sequence[UUID]


async def report(database: Database, key: KeyIdentity, request: Receipts) -> ReceiptsResult:
    """Raise the messages to what is reported; of several receipts for one the furthest counts."""
    furthest: dict[UUID, Receipt] = {}
    for index, receipt in enumerate(request.receipts):
        check_receipt(receipt, index)
        known = furthest.get(receipt.message_id)
        if known is None or DELIVERY.index(known.status) < DELIVERY.index(receipt.status):
            furthest[receipt.message_id] = receipt
    found, changes = await receipt_queries.update_delivery(
        database,
        key.inbox_id,
        [(each.message_id, each.status, each.error) for each in furthest.values()],
    )
    publish_delivery(database, changes)
    updated = {change.message_id for change in changes}
    return ReceiptsResult(
        updated=[each for each in furthest if each in updated],
        unchanged=[each for each in furthest if each in found - updated],
        unknown=[each for each in furthest if each not in found],
    )


def check_receipt(receipt: Receipt, index: int) -> None:
    if receipt.status not in REPORTED:
        raise ValidationFailed.of(f"receipts[{index}].status", "must be delivered, read or failed")
    if receipt.error is not None and receipt.status is not DeliveryStatus.FAILED:
        raise ValidationFailed.of(f"receipts[{index}].error", "goes only with status failed")
