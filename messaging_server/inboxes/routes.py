"""`/inbound` and `/api-keys`."""

from typing import Any
from uuid import UUID

from litestar import Response, delete, get, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody

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
from messaging_server.inboxes import queries, service
from messaging_server.inboxes.service import Inbound, InboundResult, NewApiKey, ShownApiKey
from messaging_server.models import ApiKey, Page

RECEIVED_BEFORE = ResponseSpec(
    Success[InboundResult],
    description="This `externalId` came before: the first result.",
    generate_examples=False,
)


@post("/inbound", opt=API_KEY, tags=["Inbound"], responses={200: RECEIVED_BEFORE})
async def receive(request: Request, data: JSONBody[Inbound]) -> Response[Success[InboundResult]]:
    """A lead's message in one call, with an API key; a repeated `externalId` answers 200."""
    received = await service.receive(
        request.database, request.api_key.inbox_id, data, debounce=request.app.state.debounce
    )
    return Response(Success(data=received.result), status_code=201 if received.created else 200)


@get("/api-keys", opt=ADMIN_ONLY, tags=["Inbound"])
async def list_api_keys(
    request: Request, limit: PageLimit = 20, cursor: PageCursor = None
) -> Success[Page[ApiKey]]:
    """All API keys, without their secrets."""
    keys, following = await queries.list_api_keys(
        request.database,
        limit=limit,
        cursor=decode_cursor(cursor, queries.ApiKeyCursor) if cursor else None,
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


route_handlers: list[Any] = [receive, list_api_keys, create_api_key, delete_api_key]
