"""`/conversations/{id}/analyze`, `…/analyses`, `…/suggest-reply`, `/analysis/queue`, `…/usage`."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

import msgspec
from litestar import get, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream

from messaging_server.analysis import service
from messaging_server.analysis.feedback_queries import AnalysisCursor
from messaging_server.analysis.queue_queries import AnalysisQueue
from messaging_server.analysis.service import AnalysisAccepted, AnalysisUsage, NewFeedback
from messaging_server.analysis.suggestions import (
    NewSuggestion,
    SuggestionRequest,
    Suggestions,
)
from messaging_server.http import (
    ADMIN_ONLY,
    Failure,
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
        cursor=decode_cursor(cursor, AnalysisCursor) if cursor is not None else None,
    )
    return page(analyses, following)


SUGGESTED = ResponseSpec(
    str,
    media_type="text/event-stream",
    description="Server-sent events: `delta` {text}, then `done` {text} or `error` {code,message}.",
    generate_examples=False,
)
NOT_AVAILABLE = ResponseSpec(
    Failure, description="`not_available`: no language model.", generate_examples=False
)


NO_RESULT = ResponseSpec(
    Failure, description="`conflict`: this analysis has no result.", generate_examples=False
)


@post(
    "/conversations/{conversation_id:uuid}/suggest-reply",
    status_code=200,
    media_type="text/event-stream",
    responses={200: SUGGESTED, 409: NOT_AVAILABLE},
    tags=["Analysis"],
)
async def suggest_reply(
    request: Request, conversation_id: FromPath[UUID], data: JSONBody[SuggestionRequest]
) -> Stream:
    """A language model drafts a reply, as a stream; nothing is sent. Going away ends the call."""
    suggestions: Suggestions = request.app.state.suggestions
    suggestion = await suggestions.prepare(request.caller, conversation_id, data)
    return Stream(
        _server_sent_events(suggestions, suggestion),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _server_sent_events(
    suggestions: Suggestions, suggestion: NewSuggestion
) -> AsyncIterator[bytes]:
    """JSON has no line breaks, so each event is two lines (HTML, 9.2)."""
    async with aclosing(suggestions.stream(suggestion)) as events:
        async for event in events:
            yield b"event: %b\ndata: %b\n\n" % (event.name.encode(), msgspec.json.encode(event))


@post(
    "/conversations/{conversation_id:uuid}/analyses/{analysis_id:uuid}/feedback",
    status_code=200,
    responses={409: NO_RESULT},
    tags=["Analysis"],
)
async def give_feedback(
    request: Request,
    conversation_id: FromPath[UUID],
    analysis_id: FromPath[UUID],
    data: JSONBody[NewFeedback],
) -> Success[Analysis]:
    """Say whether an analysis was right, and what would have been; the latest word counts."""
    analysis = await service.give_feedback(
        request.database, request.caller, conversation_id, analysis_id, data
    )
    return Success(data=analysis)


@get("/analysis/usage", opt=ADMIN_ONLY, tags=["Analysis"])
async def fetch_usage(
    request: Request,
    from_day: Annotated[str | None, QueryParameter(name="from", max_length=40)] = None,
    to_day: Annotated[str | None, QueryParameter(name="to", max_length=40)] = None,
) -> Success[AnalysisUsage]:
    """Calls, tokens and cost by day, model and trigger, and what is left of the budget."""
    config = request.app.state.config.ai
    usage = await service.fetch_usage(request.database, config, first=from_day, last=to_day)
    return Success(data=usage)


@get("/analysis/queue", opt=ADMIN_ONLY, tags=["Analysis"])
async def fetch_queue(request: Request) -> Success[AnalysisQueue]:
    """What has failed, runs, is due and waits, with the reasons; at most 100 conversations."""
    return Success(data=await service.fetch_queue(request.database))


route_handlers: list[Any] = [
    request_analysis,
    list_analyses,
    suggest_reply,
    give_feedback,
    fetch_queue,
    fetch_usage,
]
