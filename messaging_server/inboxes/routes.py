"""`/inboxes`, `/api-keys`, `/inbound` and `/receipts`."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Response, delete, get, patch, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter

from messaging_server.conversations import receipts
from messaging_server.conversations.receipts import Receipts, ReceiptsResult
from messaging_server.http import (
    ADMIN_ONLY,
    API_KEY,
    PageCursor,
    PageLimit,
    Request,
    Success,
    decode_cursor,
    page,
)
from messaging_server.inboxes import queries, service, settings
from messaging_server.inboxes.service import Inbound, InboundResult, NewApiKey, ShownApiKey
from messaging_server.inboxes.settings import InboxChanges, NewInbox, ShownInbox
from messaging_server.models import ApiKey, Inbox, Page

RECEIVED_BEFORE = ResponseSpec(
    Success[InboundResult],
    description="This `externalId` came before: the first result.",
    generate_examples=False,
)


@post("/inbound", opt=API_KEY, tags=["Inbound"], responses={200: RECEIVED_BEFORE})
async def receive(request: Request, data: JSONBody[Inbound]) -> Response[Success[InboundResult]]:
    """A lead's message in one call, with an API key; a repeated `externalId` answers 200."""
    received = await service.receive(
        request.database, request.app.state.appender, request.api_key.inbox_id, data
    )
    return Response(Success(data=received.result), status_code=201 if received.created else 200)


@post("/receipts", opt=API_KEY, status_code=200, tags=["Inbound"])
async def report_receipts(request: Request, data: JSONBody[Receipts]) -> Success[ReceiptsResult]:
    """Say how far agents' messages got on their way to the lead; none ever goes back."""
    return Success(data=await receipts.report(request.database, request.api_key, data))


@get("/inboxes", opt=ADMIN_ONLY, tags=["Inboxes"])
async def list_inboxes(
    request: Request, limit: PageLimit = 20, cursor: PageCursor = None
) -> Success[Page[Inbox]]:
    """All inboxes, oldest first, without their secrets."""
    inboxes, following = await queries.list_inboxes(
        request.database,
        limit=limit,
        cursor=decode_cursor(cursor, queries.InboxCursor) if cursor is not None else None,
    )
    return page(inboxes, following)


@post("/inboxes", opt=ADMIN_ONLY, tags=["Inboxes"])
async def create_inbox(request: Request, data: JSONBody[NewInbox]) -> Success[ShownInbox]:
    """Make an inbox; the answer shows its secret this once."""
    return Success(
        data=await settings.create_inbox(request.database, request.app.state.origins, data)
    )


@get("/inboxes/{inbox_id:uuid}", opt=ADMIN_ONLY, tags=["Inboxes"])
async def fetch_inbox(request: Request, inbox_id: FromPath[UUID]) -> Success[Inbox]:
    """One inbox."""
    return Success(data=await settings.fetch_inbox(request.database, inbox_id))


@patch("/inboxes/{inbox_id:uuid}", opt=ADMIN_ONLY, tags=["Inboxes"])
async def update_inbox(
    request: Request, inbox_id: FromPath[UUID], data: JSONBody[InboxChanges]
) -> Success[Inbox]:
    """Change name, origins or greeting; what is left out stays."""
    return Success(
        data=await settings.update_inbox(
            request.database, request.app.state.origins, inbox_id, data
        )
    )


@post("/inboxes/{inbox_id:uuid}/rotate-secret", opt=ADMIN_ONLY, status_code=200, tags=["Inboxes"])
async def rotate_secret(request: Request, inbox_id: FromPath[UUID]) -> Success[ShownInbox]:
    """Make a new secret, shown this once; the one until now stays valid for 24 hours."""
    return Success(data=await settings.rotate_secret(request.database, inbox_id))


@delete("/inboxes/{inbox_id:uuid}", opt=ADMIN_ONLY, status_code=200, tags=["Inboxes"])
async def delete_inbox(request: Request, inbox_id: FromPath[UUID]) -> Success[None]:
    """Delete an inbox with its keys and sessions; leads and conversations stay."""
    state = request.app.state
    await settings.delete_inbox(request.database, state.origins, state.api_keys, inbox_id)
    return Success(data=None)


@get("/api-keys", opt=ADMIN_ONLY, tags=["Inbound"])
async def list_api_keys(
    request: Request,
    inbox_id: Annotated[UUID | None, QueryParameter(name="inboxId")] = None,
    limit: PageLimit = 20,
    cursor: PageCursor = None,
) -> Success[Page[ApiKey]]:
    """API keys, of one inbox or all, without their secrets."""
    keys, following = await queries.list_api_keys(
        request.database,
        inbox_id=inbox_id,
        limit=limit,
        cursor=decode_cursor(cursor, queries.ApiKeyCursor) if cursor is not None else None,
    )
    return page(keys, following)


@post("/api-keys", opt=ADMIN_ONLY, tags=["Inbound"])
async def create_api_key(request: Request, data: JSONBody[NewApiKey]) -> Success[ShownApiKey]:
    """Make an API key; the answer shows it this once."""
    return Success(data=await service.create_api_key(request.database, request.caller, data))


@delete("/api-keys/{key_id:uuid}", opt=ADMIN_ONLY, status_code=200, tags=["Inbound"])
async def delete_api_key(request: Request, key_id: FromPath[UUID]) -> Success[None]:
    """Delete an API key; it stops working at once."""
    await service.delete_api_key(request.database, request.app.state.api_keys, key_id)
    return Success(data=None)


route_handlers: list[Any] = [
    receive,
    report_receipts,
    list_inboxes,
    create_inbox,
    fetch_inbox,
    update_inbox,
    rotate_secret,
    delete_inbox,
    list_api_keys,
    create_api_key,
    delete_api_key,
]
