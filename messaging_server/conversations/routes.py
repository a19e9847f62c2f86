"""`/conversations` and their messages."""

from typing import Annotated, Any, cast
from uuid import UUID

from litestar import Response, get, patch, post
from litestar.openapi import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter

from messaging_server.conversations import messages, service
from messaging_server.conversations.filters import ConversationCursor, Filters, Sort
from messaging_server.conversations.message_queries import MessageCursor
from messaging_server.conversations.messages import NewMessage
from messaging_server.conversations.service import (
    AssignmentRequest,
    ConversationChanges,
    NewConversation,
    ReadMark,
    ReadRequest,
)
from messaging_server.errors import ValidationFailed
from messaging_server.http import (
    ADMIN_ONLY,
    DIRECT,
    Failure,
    PageCursor,
    PageLimit,
    Request,
    Success,
    decode_cursor,
    page,
)
from messaging_server.models import Conversation, Message, Page, Priority, Status

Tag = Annotated[str | None, QueryParameter(min_length=1, max_length=50)]
Agent = Annotated[UUID | None, QueryParameter(name="assignedAgentId")]
AfterSeq = Annotated[int | None, QueryParameter(name="afterSeq", ge=0, le=2_147_483_647)]

NO_SUCH_LEAD = ResponseSpec(
    Failure, description="`not_found`: no such `leadId`.", generate_examples=False
)
SENT_BEFORE = ResponseSpec(
    Success[Message],
    description="This `clientMessageId` was sent before: the first message.",
    generate_examples=False,
)


@get("/conversations", opt=DIRECT, tags=["Conversations"])
async def list_conversations(
    request: Request,
    sort: Annotated[Sort, QueryParameter()] = Sort.ACTIVITY,
    priority: Annotated[Priority | None, QueryParameter()] = None,
    tag: Tag = None,
    status: Annotated[Status | None, QueryParameter()] = None,
    assigned_agent_id: Agent = None,
    unassigned: Annotated[bool | None, QueryParameter()] = None,
    unreplied: Annotated[bool | None, QueryParameter()] = None,
    search_text: Annotated[
        str | None, QueryParameter(name="search", min_length=1, max_length=200)
    ] = None,
    limit: PageLimit = 20,
    cursor: PageCursor = None,
) -> Success[Page[Conversation]]:
    """Conversations for which all given filters hold; by urgency only those that need a reply."""
    encoded, following = await request.app.state.conversation_list.fetch_page(
        request.caller,
        Filters(
            sort=sort,
            priority=priority,
            tag=tag,
            status=status,
            assigned_agent_id=assigned_agent_id,
            unassigned=unassigned,
            unreplied=unreplied,
            search=search_text,
        ),
        limit=limit,
        cursor=decode_cursor(cursor, ConversationCursor) if cursor is not None else None,
    )
    return page(cast("list[Conversation]", encoded), following)  # what the document is to say


@post("/conversations", tags=["Conversations"], responses={404: NO_SUCH_LEAD})
async def create_conversation(
    request: Request, data: JSONBody[NewConversation]
) -> Success[Conversation]:
    """Start a conversation with a known lead (`leadId`) or a new one (`lead`)."""
    return Success(data=await service.create_conversation(request.database, request.caller, data))


@get("/conversations/{conversation_id:uuid}", opt=DIRECT, tags=["Conversations"])
async def fetch_conversation(
    request: Request, conversation_id: FromPath[UUID]
) -> Success[Conversation]:
    """One conversation."""
    return Success(
        data=await service.fetch_conversation(request.database, request.caller, conversation_id)
    )


@patch("/conversations/{conversation_id:uuid}", tags=["Conversations"])
async def update_conversation(
    request: Request, conversation_id: FromPath[UUID], data: JSONBody[ConversationChanges]
) -> Success[Conversation]:
    """Change status, priority, tags or snooze; null hands priority or tags back to the AI."""
    return Success(
        data=await service.update_conversation(
            request.database, request.caller, conversation_id, data
        )
    )


@post(
    "/conversations/{conversation_id:uuid}/assign",
    opt=ADMIN_ONLY,
    status_code=200,
    tags=["Conversations"],
)
async def assign_conversation(
    request: Request, conversation_id: FromPath[UUID], data: JSONBody[AssignmentRequest]
) -> Success[Conversation]:
    """Assign to an active user; null unassigns."""
    return Success(
        data=await service.assign_conversation(
            request.database, request.caller, conversation_id, data.agent_id
        )
    )


@post("/conversations/{conversation_id:uuid}/read", status_code=200, tags=["Conversations"])
async def mark_read(
    request: Request, conversation_id: FromPath[UUID], data: JSONBody[ReadRequest]
) -> Success[ReadMark]:
    """Move the caller's read mark forward to `seq`."""
    return Success(
        data=await service.mark_read(request.database, request.caller, conversation_id, data.seq)
    )


@get("/conversations/{conversation_id:uuid}/messages", opt=DIRECT, tags=["Messages"])
async def list_messages(
    request: Request,
    conversation_id: FromPath[UUID],
    limit: PageLimit = 50,
    cursor: PageCursor = None,
    after_seq: AfterSeq = None,
) -> Success[Page[Message]]:
    """The log: newest first, or with `afterSeq` oldest first from there on."""
    if cursor is not None and after_seq is not None:
        raise ValidationFailed.of("cursor", "does not go with afterSeq")
    position = decode_cursor(cursor, MessageCursor) if cursor is not None else None
    if after_seq is not None:
        position = MessageCursor(after_seq, ascending=True)
    found, following = await messages.list_messages(
        request.database, request.caller, conversation_id, limit=limit, cursor=position
    )
    return page(found, following)


@post(
    "/conversations/{conversation_id:uuid}/messages",
    opt=DIRECT,
    tags=["Messages"],
    responses={200: SENT_BEFORE},
)
async def send_message(
    request: Request, conversation_id: FromPath[UUID], data: JSONBody[NewMessage]
) -> Response[Success[Message]]:
    """Send a message. 201 once it is committed; 200 when this `clientMessageId` was sent before."""
    sent = await messages.send_message(
        request.database, request.app.state.appender, request.caller, conversation_id, data
    )
    return Response(Success(data=sent.message), status_code=201 if sent.created else 200)


route_handlers: list[Any] = [
    list_conversations,
    create_conversation,
    fetch_conversation,
    update_conversation,
    assign_conversation,
    mark_read,
    list_messages,
    send_message,
]
