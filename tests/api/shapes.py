"""The contract's shapes, and a comparison that names what differs."""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def time(value: Any) -> bool:
    """RFC 3339, UTC, with `Z` and milliseconds."""
    return isinstance(value, str) and TIMESTAMP.fullmatch(value) is not None


def uuid7(value: Any) -> bool:
    return isinstance(value, str) and str(UUID(value)) == value and UUID(value).version == 7


def uuid_of_any_version(value: Any) -> bool:
    """The inboxes of a new installation are made by SQL."""
    return isinstance(value, str) and str(UUID(value)) == value


def one_of(*values: str) -> Callable[[Any], bool]:
    return lambda value: value in values


def check(value: Any, shape: Any, path: str = "data") -> None:
    """A shape is a dict (exactly these keys), `[shape]`, a tuple of alternatives, a type, None
    or a function that says yes."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), f"{path} is {value!r}"
        assert set(value) == set(shape), f"{path} has {sorted(set(value) ^ set(shape))} or has not"
        for key, part in shape.items():
            check(value[key], part, f"{path}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{path} is {value!r}"
        for index, item in enumerate(value):
            check(item, shape[0], f"{path}[{index}]")
    elif isinstance(shape, tuple):
        check_alternatives(value, shape, path)
    elif isinstance(shape, type):
        assert type(value) is shape, f"{path} is {value!r}"
    elif shape is None:
        assert value is None, f"{path} is {value!r}"
    else:
        assert shape(value), f"{path} is {value!r}, not {shape.__name__}"


def check_alternatives(value: Any, shapes: tuple[Any, ...], path: str) -> None:
    if value is None:
        assert None in shapes, f"{path} is null"
        return
    failures = []
    for shape in shapes:
        try:
            check(value, shape, path)
        except AssertionError as error:
            failures.append(str(error))
        else:
            return
    raise AssertionError("; ".join(failures))


def page_of(shape: Any) -> dict[str, Any]:
    return {"items": [shape], "nextCursor": (str, None)}


ROLE = one_of("ADMIN", "SALES_AGENT")
PRIORITY = one_of("HIGH", "MEDIUM", "LOW")
SOURCE = one_of("AI", "HUMAN")
SENDER_TYPE = one_of("LEAD", "AGENT", "SYSTEM")
CONTENT_TYPE = one_of("TEXT", "IMAGE", "FILE", "AUDIO", "VIDEO")

IDENTITY = {"id": uuid7, "email": str, "name": (str, None), "role": ROLE}
USER = {**IDENTITY, "active": bool, "createdAt": time, "updatedAt": time}
LOGIN = {"token": str, "expiresAt": time, "user": IDENTITY}
LEAD = {
    "id": uuid7,
    "name": str,
    "email": (str, None),
    "phone": (str, None),
    "attributes": lambda value: isinstance(value, dict),
    "createdAt": time,
    "updatedAt": time,
}
LEAD_DETAILS = {**LEAD, "verified": bool, "possibleDuplicates": [LEAD]}
AI = {
    "summary": str,
    "priority": PRIORITY,
    "tags": [str],
    "updatedAt": time,
    "analyzedThroughSeq": int,
    "provider": str,
}
LAST_MESSAGE = {
    "seq": int,
    "senderType": SENDER_TYPE,
    "contentType": CONTENT_TYPE,
    "preview": str,
    "createdAt": time,
}
URGENCY = {"score": float, "reason": str}
CONVERSATION = {
    "id": uuid7,
    "inboxId": (uuid_of_any_version, None),
    "lead": LEAD,
    "assignedAgent": ({"id": uuid7, "email": str, "name": (str, None)}, None),
    "status": one_of("OPEN", "SNOOZED", "RESOLVED"),
    "priority": (PRIORITY, None),
    "prioritySource": SOURCE,
    "tags": [str],
    "tagsSource": SOURCE,
    "summary": (str, None),
    "ai": (AI, None),
    "lastMessage": (LAST_MESSAGE, None),
    "lastSeq": int,
    "unreadCount": int,
    "waitingSince": (time, None),
    "urgency": (URGENCY, None),
    "snoozedUntil": (time, None),
    "createdAt": time,
    "updatedAt": time,
    "version": int,
}
ATTACHMENT = {
    "id": uuid7,
    "fileName": str,
    "contentType": str,
    "sizeBytes": int,
    "url": str,
    "width": (int, None),
    "height": (int, None),
    "thumbnailUrl": (str, None),
}
MESSAGE = {
    "id": uuid7,
    "conversationId": uuid7,
    "seq": int,
    "senderType": SENDER_TYPE,
    "sender": ({"id": uuid7, "name": str}, None),
    "contentType": CONTENT_TYPE,
    "contentText": (str, None),
    "mediaUrl": (str, None),
    "attachments": [ATTACHMENT],
    "private": bool,
    "status": (one_of("sent", "failed", "delivered", "read"), None),
    "clientMessageId": (str, None),
    "createdAt": time,
}
READ_MARK = {"conversationId": uuid7, "seq": int, "unreadCount": int}
INBOUND = {"leadId": uuid7, "conversationId": uuid7, "message": MESSAGE}
API_KEY = {
    "id": uuid7,
    "inboxId": uuid_of_any_version,
    "name": str,
    "prefix": str,
    "createdAt": time,
    "lastUsedAt": (time, None),
}
INBOX = {
    "id": uuid_of_any_version,
    "name": str,
    "kind": one_of("WIDGET", "API"),
    "allowedOrigins": [str],
    "greeting": (str, None),
    "secretPrefix": str,
    "previousSecretValidUntil": (time, None),
    "createdAt": time,
    "updatedAt": time,
}
SHOWN_INBOX = {**INBOX, "secret": str}
SHOWN_API_KEY = {"id": uuid7, "inboxId": uuid_of_any_version, "name": str, "key": str}
EVENTS = one_of(
    "message.created",
    "message.status",
    "conversation.created",
    "conversation.updated",
    "conversation.assigned",
    "conversation.status_changed",
    "conversation.ai_updated",
    "lead.created",
    "lead.updated",
    "lead.merged",
)
WEBHOOK = {
    "id": uuid7,
    "url": str,
    "description": (str, None),
    "events": [EVENTS],
    "includePrivateNotes": bool,
    "enabled": bool,
    "disabledReason": (str, None),
    "failingSince": (time, None),
    "createdAt": time,
    "updatedAt": time,
}
SHOWN_WEBHOOK = {**WEBHOOK, "secret": str}
SHOWN_WEBHOOK_SECRET = {"id": uuid7, "secret": str, "previousSecretValidUntil": time}
WEBHOOK_TEST = {
    "succeeded": bool,
    "responseStatus": (int, None),
    "durationMilliseconds": int,
    "error": (str, None),
}
WEBHOOK_DELIVERY = {
    "id": uuid7,
    "event": EVENTS,
    "status": one_of("PENDING", "SUCCEEDED", "FAILED"),
    "attempts": int,
    "nextAttemptAt": (time, None),
    "responseStatus": (int, None),
    "error": (str, None),
    "createdAt": time,
    "finishedAt": (time, None),
}
METRICS = {
    "totalConversations": int,
    "totalUnreplied": int,
    "priorityBreakdown": {"high": int, "medium": int, "low": int, "unanalyzed": int},
    "open": int,
    "snoozed": int,
    "resolved": int,
    "unassigned": int,
    "medianFirstReplySeconds": (float, int, None),
    "ai": {"provider": str, "model": str, "fallback": str, "budgetSpent": bool},
}
FEEDBACK = {
    "verdict": one_of("correct", "wrong"),
    "priority": (PRIORITY, None),
    "tags": ([str], None),
    "userId": (uuid7, None),
    "createdAt": time,
}
ANALYSIS = {
    "id": uuid7,
    "conversationId": uuid7,
    "status": one_of("RUNNING", "SUCCEEDED", "FAILED", "INTERRUPTED"),
    "trigger": one_of("message", "manual"),
    "provider": str,
    "model": str,
    "promptVersion": (str, None),
    "throughSeq": int,
    "attempt": int,
    "summary": (str, None),
    "priority": (PRIORITY, None),
    "priorityReason": (str, None),
    "tags": [str],
    "language": (str, None),
    "suggestedReply": (str, None),
    "error": (str, None),
    "calls": int,
    "tokensIn": int,
    "tokensOut": int,
    "tokensCached": int,
    "costMicroDollars": int,
    "latencyMilliseconds": (int, None),
    "feedback": (FEEDBACK, None),
    "createdAt": time,
}
USAGE = {
    "analyses": int,
    "calls": int,
    "tokensIn": int,
    "tokensOut": int,
    "tokensCached": int,
    "costMicroDollars": int,
    "costDollars": float,
}
ANALYSIS_USAGE = {
    "from": str,
    "to": str,
    "total": USAGE,
    "budget": {
        "dailyDollars": float,
        "monthlyDollars": float,
        "spentTodayDollars": float,
        "spentThisMonthDollars": float,
        "spent": bool,
    },
    "items": [{**USAGE, "day": str, "provider": str, "model": str, "trigger": str}],
}
ERROR = {
    "code": str,
    "message": str,
    "details": [{"field": str, "message": str}],
    "requestId": str,
}
