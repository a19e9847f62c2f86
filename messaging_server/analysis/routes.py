"""`/conversations/{id}/analyze`, `/conversations/{id}/analyses` and `/analysis/queue`."""

from typing import Any
from uuid import UUID

from litestar import get, post
from litestar.params import FromPath

from messaging_server.analysis import service
from messaging_server.analysis.queries import AnalysisCursor, AnalysisQueue
from messaging_server.analysis.service import AnalysisAccepted
from messaging_server.http import (
    ADMIN_ONLY,
    PageCursor,
    PageLimit,
    Request,
    Success,
    decode_cursor,
    page,
)
from messaging_server.models import Analysis, Page


@post("/conversations/{conversation_id:uuid}/analyze", status_code=202, tags=["Analysis"])
async def request_analysis(
    request: Request, conversation_id: FromPath[UUID]
) -> Success[AnalysisAccepted]:
    """Analyse a conversation now; earlier failures are forgotten."""
    accepted = await service.request_analysis(request.database, request.caller, conversation_id)
    return Success(data=accepted)


@get("/conversations/{conversation_id:uuid}/analyses", tags=["Analysis"])
async def list_analyses(
    request: Request,
    conversation_id: FromPath[UUID],
    limit: PageLimit = 20,
    cursor: PageCursor = None,
) -> Success[Page[Analysis]]:
    """The analyses of a conversation, newest first, the failed ones among them."""
    analyses, following = await service.list_analyses(
        request.database,
        request.caller,
        conversation_id,
        limit=limit,
        cursor=decode_cursor(cursor, AnalysisCursor) if cursor else None,
    )
    return page(analyses, following)


@get("/analysis/queue", opt=ADMIN_ONLY, tags=["Analysis"])
async def fetch_queue(request: Request) -> Success[AnalysisQueue]:
    """What has failed, runs, is due and waits, with the reasons; at most 100 conversations."""
    return Success(data=await service.fetch_queue(request.database))


route_handlers: list[Any] = [request_analysis, list_analyses, fetch_queue]
