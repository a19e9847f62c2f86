"""`/api/public/v1`: what a website's visitors call."""

from typing import Any
from uuid import UUID

from litestar import Response, get, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody

from messaging_server.conversations import visitors as visitor_service
from messaging_server.conversations.routes import AfterSeq
from messaging_server.conversations.service import ReadRequest
from messaging_server.conversations.visitor_queries import PublicMessageCursor
from messaging_server.conversations.visitors import NewVisitorMessage
from messaging_server.errors import ValidationFailed
from messaging_server.http import (
    PUBLIC,
    VISITOR,
    Failure,
    PageCursor,
    PageLimit,
    Request,
    Success,
    decode_cursor,
    page,
)
from messaging_server.inboxes import settings, visitors
from messaging_server.inboxes.settings import PublicInbox
from messaging_server.inboxes.visitors import NewSession, VisitorSession
from messaging_server.models import Page, PublicMessage

SENT_BEFORE = ResponseSpec(
    Success[PublicMessage],
    description="This `clientMessageId` was sent before: the first message.",
    generate_examples=False,
)
REFUSED_ORIGIN = ResponseSpec(
    Failure,
    description="`forbidden`: the inbox does not know the website that calls.",
    generate_examples=False,
)


@get("/inboxes/{inbox_id:uuid}", opt=PUBLIC, tags=["Widget"], responses={403: REFUSED_ORIGIN})
async def fetch_public_inbox(request: Request, inbox_id: FromPath[UUID]) -> Success[PublicInbox]:
    """What a widget shows before the visitor writes."""
    state = request.app.state
    limit = state.config.limits.calls_per_minute_per_visitor
    state.limiter.check(limit, "inbox", request.network)
    await state.origins.check(request.scope["headers"], inbox_id)
    return Success(data=await settings.fetch_public_inbox(request.database, inbox_id))


@post("/inboxes/{inbox_id:uuid}/sessions", opt=PUBLIC, tags=["Widget"])
async def open_session(
    request: Request, inbox_id: FromPath[UUID], data: JSONBody[NewSession]
) -> Success[VisitorSession]:
    """Begin a session: of a verified lead, of a known visitor, or of a new one."""
    state = request.app.state
    limit = state.config.limits.sessions_per_minute_per_address
    state.limiter.check(limit, "session", request.network)
    await state.origins.check(request.scope["headers"], inbox_id)
    return Success(
        data=await visitors.open_session(request.database, state.visitor_tokens, inbox_id, data)
    )


@get("/messages", opt=VISITOR, tags=["Widget"])
async def list_public_messages(
    request: Request,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    after_seq: AfterSeq = None,
) -> Success[Page[PublicMessage]]:
    """The visitor's messages: newest first, or with `afterSeq` oldest first from there on."""
    if cursor is not None and after_seq is not None:
        raise ValidationFailed.of("cursor", "does not go with afterSeq")
    position = decode_cursor(cursor, PublicMessageCursor) if cursor is not None else None
    if after_seq is not None:
        position = PublicMessageCursor(None, after_seq, ascending=True)
    messages, following = await visitor_service.list_public_messages(
        request.database, request.visitor, limit=limit, cursor=position
    )
    if after_seq:
        await visitor_service.mark_delivered(request.database, request.visitor, after_seq)
    return page(messages, following)


@post("/messages", opt=VISITOR, tags=["Widget"], responses={200: SENT_BEFORE})
async def send_public_message(
    request: Request, data: JSONBody[NewVisitorMessage]
) -> Response[Success[PublicMessage]]:
    """Write to the inbox. 201 once it is committed; 200 when it was sent before."""
    state, visitor = request.app.state, request.visitor
    limits = state.config.limits
    state.limiter.check(limits.messages_per_minute_per_visitor, "message", str(visitor.lead_id))
    state.limiter.check(limits.messages_per_minute_per_address, "message", request.network)
    sent = await visitor_service.send_visitor_message(
        request.database, state.appender, visitor, data
    )
    return Response(Success(data=sent.message), status_code=201 if sent.created else 200)


@post("/seen", opt=VISITOR, status_code=200, tags=["Widget"])
async def mark_seen(request: Request, data: JSONBody[ReadRequest]) -> Success[None]:
    """The visitor has seen all messages through `seq`."""
    await visitor_service.mark_read(request.database, request.visitor, data.seq)
    return Success(data=None)


route_handlers: list[Any] = [
    fetch_public_inbox,
    open_session,
    list_public_messages,
    send_public_message,
    mark_seen,
]
