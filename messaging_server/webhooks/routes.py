"""`/webhooks`: all of it is for ADMINs."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from litestar import delete, get, patch, post
from litestar.params import FromPath, JSONBody, QueryParameter

from messaging_server.http import (
    ADMIN_ONLY,
    PageCursor,
    PageLimit,
    Request,
    Success,
    decode_cursor,
    page,
)
from messaging_server.models import Page, Webhook, WebhookDelivery, WebhookDeliveryStatus
from messaging_server.webhooks import queries, service
from messaging_server.webhooks.delivery import Webhooks
from messaging_server.webhooks.service import (
    NewWebhook,
    Replayed,
    ReplayRequest,
    ShownSecret,
    ShownWebhook,
    TestOutcome,
    WebhookChanges,
)

TAGS = ["Webhooks"]


def _webhooks(request: Request) -> Webhooks:
    webhooks: Webhooks = request.app.state.webhooks
    return webhooks


def _allowed_networks(request: Request) -> Sequence[str]:
    networks: Sequence[str] = request.app.state.config.webhooks.allowed_networks
    return networks


@get("/webhooks", opt=ADMIN_ONLY, tags=TAGS)
async def list_webhooks(
    request: Request, limit: PageLimit = 20, cursor: PageCursor = None
) -> Success[Page[Webhook]]:
    """All webhooks, oldest first, without their secrets."""
    webhooks, following = await queries.list_webhooks(
        request.database,
        limit=limit,
        cursor=decode_cursor(cursor, queries.WebhookCursor) if cursor is not None else None,
    )
    return page(webhooks, following)


@post("/webhooks", opt=ADMIN_ONLY, tags=TAGS)
async def create_webhook(request: Request, data: JSONBody[NewWebhook]) -> Success[ShownWebhook]:
    """Tell an address of events from now on; the answer shows the secret this once."""
    webhook = await service.create_webhook(
        request.database,
        _webhooks(request),
        request.caller,
        data,
        allowed_networks=_allowed_networks(request),
    )
    return Success(data=webhook)


@get("/webhooks/{webhook_id:uuid}", opt=ADMIN_ONLY, tags=TAGS)
async def fetch_webhook(request: Request, webhook_id: FromPath[UUID]) -> Success[Webhook]:
    """One webhook, with the reason if the server has disabled it."""
    return Success(data=await service.fetch_webhook(request.database, webhook_id))


@patch("/webhooks/{webhook_id:uuid}", opt=ADMIN_ONLY, tags=TAGS)
async def update_webhook(
    request: Request, webhook_id: FromPath[UUID], data: JSONBody[WebhookChanges]
) -> Success[Webhook]:
    """Change a webhook; one that is not `enabled` is paused and gets everything later."""
    webhook = await service.update_webhook(
        request.database,
        _webhooks(request),
        webhook_id,
        data,
        allowed_networks=_allowed_networks(request),
    )
    return Success(data=webhook)


@delete("/webhooks/{webhook_id:uuid}", opt=ADMIN_ONLY, status_code=200, tags=TAGS)
async def delete_webhook(request: Request, webhook_id: FromPath[UUID]) -> Success[None]:
    """Delete a webhook with all its deliveries; what is under way may still arrive."""
    await service.delete_webhook(request.database, webhook_id)
    return Success(data=None)


@post("/webhooks/{webhook_id:uuid}/test", opt=ADMIN_ONLY, status_code=200, tags=TAGS)
async def send_test(request: Request, webhook_id: FromPath[UUID]) -> Success[TestOutcome]:
    """Send a `webhook.test` event now and say what came of it, after 15 seconds at most."""
    outcome = await service.test_webhook(request.database, _webhooks(request), webhook_id)
    return Success(data=outcome)


@post("/webhooks/{webhook_id:uuid}/rotate-secret", opt=ADMIN_ONLY, status_code=200, tags=TAGS)
async def rotate_secret(request: Request, webhook_id: FromPath[UUID]) -> Success[ShownSecret]:
    """Make a new secret; for 24 hours deliveries are signed with the old one too."""
    return Success(data=await service.rotate_secret(request.database, webhook_id))


@get("/webhooks/{webhook_id:uuid}/deliveries", opt=ADMIN_ONLY, tags=TAGS)
async def list_deliveries(
    request: Request,
    webhook_id: FromPath[UUID],
    status: Annotated[WebhookDeliveryStatus | None, QueryParameter()] = None,
    limit: PageLimit = 20,
    cursor: PageCursor = None,
) -> Success[Page[WebhookDelivery]]:
    """What was and will be delivered, newest first."""
    await service.fetch_webhook(request.database, webhook_id)
    deliveries, following = await queries.list_deliveries(
        request.database,
        webhook_id,
        status=status,
        limit=limit,
        cursor=decode_cursor(cursor, queries.DeliveryCursor) if cursor is not None else None,
    )
    return page(deliveries, following)


@post(
    "/webhooks/{webhook_id:uuid}/deliveries/{delivery_id:uuid}/retry",
    opt=ADMIN_ONLY,
    status_code=200,
    tags=TAGS,
)
async def retry_delivery(
    request: Request, webhook_id: FromPath[UUID], delivery_id: FromPath[UUID]
) -> Success[WebhookDelivery]:
    """Attempt a delivery again now, whatever came of it before."""
    delivery = await service.retry_delivery(
        request.database, _webhooks(request), webhook_id, delivery_id
    )
    return Success(data=delivery)


@post("/webhooks/{webhook_id:uuid}/replay", opt=ADMIN_ONLY, status_code=200, tags=TAGS)
async def replay(
    request: Request, webhook_id: FromPath[UUID], data: JSONBody[ReplayRequest]
) -> Success[Replayed]:
    """Deliver everything since a time once more, in order, with the same ids."""
    replayed = await service.replay(request.database, _webhooks(request), webhook_id, data)
    return Success(data=replayed)


route_handlers: list[Any] = [
    list_webhooks,
    create_webhook,
    fetch_webhook,
    update_webhook,
    delete_webhook,
    send_test,
    rotate_secret,
    list_deliveries,
    retry_delivery,
    replay,
]
