"""`/leads`."""

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
from messaging_server.leads import queries, service
from messaging_server.leads.service import LeadChanges, NewLead
from messaging_server.models import Lead, LeadDetails, Page

Search = Annotated[str | None, QueryParameter(min_length=1, max_length=200)]


@get("/leads", tags=["Leads"])
async def list_leads(
    request: Request, search: Search = None, limit: PageLimit = 20, cursor: PageCursor = None
) -> Success[Page[Lead]]:
    """Leads, newest first; `search` is part of name, e-mail or phone."""
    leads, following = await queries.list_leads(
        request.database,
        request.caller,
        text=await request.app.state.lead_search.prepare(search) if search else None,
        limit=limit,
        cursor=decode_cursor(cursor, queries.LeadCursor) if cursor is not None else None,
    )
    return page(leads, following)


@post("/leads", tags=["Leads"])
async def create_lead(request: Request, data: JSONBody[NewLead]) -> Success[Lead]:
    """Create a lead."""
    return Success(data=await service.create_lead(request.database, request.caller, data))


@get("/leads/{lead_id:uuid}", tags=["Leads"])
async def fetch_lead(request: Request, lead_id: FromPath[UUID]) -> Success[LeadDetails]:
    """One lead, with others that may be the same person."""
    return Success(data=await service.fetch_lead(request.database, request.caller, lead_id))


@patch("/leads/{lead_id:uuid}", tags=["Leads"])
async def update_lead(
    request: Request, lead_id: FromPath[UUID], data: JSONBody[LeadChanges]
) -> Success[Lead]:
    """Change a lead; what is left out stays, `attributes` is replaced as a whole."""
    return Success(data=await service.update_lead(request.database, request.caller, lead_id, data))


@delete("/leads/{lead_id:uuid}", opt=ADMIN_ONLY, status_code=200, tags=["Leads"])
async def delete_lead(request: Request, lead_id: FromPath[UUID]) -> Success[None]:
    """Erase a lead with all its conversations and messages."""
    await service.delete_lead(request.database, lead_id)
    return Success(data=None)


route_handlers: list[Any] = [list_leads, create_lead, fetch_lead, update_lead, delete_lead]
