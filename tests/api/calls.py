"""Every call with a body, with a good one, and what sends it."""

import json
from typing import Any
from uuid import uuid4

import httpx

from tests.client import PASSWORD, Api

PUBLIC = "/api/public/v1"
WITH_KEY = ("/inbound", "/receipts")


class Call:
    """A call with a good body; `fields` says what each of them accepts, and `required`."""

    def __init__(
        self,
        method: str,
        path: str,
        body: dict[str, Any],
        fields: dict[str, str],
        required: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.body = body
        self.fields = {name: set(kinds.split()) for name, kinds in fields.items()}
        self.required = required.split()


MESSAGE = {"contentText": "string null", "contentType": "string", "mediaUrl": "string null"}
LEAD = {"name": "string", "email": "string null", "phone": "string null"}
CALLS = {
    "register": Call(
        "POST",
        "/auth/register",
        {"email": "", "password": PASSWORD, "name": "Eva", "role": "SALES_AGENT"},
        {"email": "string", "password": "string", "name": "string null", "role": "string null"},
        required="email password",
    ),
    "login": Call(
        "POST",
        "/auth/login",
        {"email": "x@example.com", "password": PASSWORD},
        {"email": "string", "password": "string"},
        required="email password",
    ),
    "password": Call(
        "POST",
        "/auth/password",
        {"currentPassword": "wrong horse", "newPassword": PASSWORD},
        {"currentPassword": "string", "newPassword": "string"},
        required="currentPassword newPassword",
    ),
    "user": Call(
        "PATCH",
        "/users/{user}",
        {"name": "Eva", "role": "SALES_AGENT", "active": True},
        {"name": "string null", "role": "string", "active": "boolean"},
    ),
    "new lead": Call(
        "POST",
        "/leads",
        {"name": "Ana", "email": "a@b.de", "phone": "1", "attributes": {"a": 1}},
        {**LEAD, "attributes": "object null"},
        required="name",
    ),
    "lead": Call(
        "PATCH",
        "/leads/{lead}",
        {"name": "Ana", "email": "a@b.de", "phone": "1", "attributes": {"a": 1}},
        {**LEAD, "attributes": "object"},
    ),
    "new conversation": Call(
        "POST",
        "/conversations",
        {"lead": {"name": "Ana", "email": "a@b.de", "phone": "1"}, "assignedAgentId": None},
        {"lead": "object", "assignedAgentId": "string null"}
        | {f"lead.{field}": kinds for field, kinds in LEAD.items()},
        required="lead lead.name",
    ),
    "conversation of a known lead": Call(
        "POST", "/conversations", {"leadId": "{lead}"}, {"leadId": "string"}, required="leadId"
    ),
    "conversation": Call(
        "PATCH",
        "/conversations/{conversation}",
        {"status": "OPEN", "priority": "LOW", "tags": ["a"]},
        {"status": "string", "priority": "string null", "tags": "list null"},
    ),
    "snooze": Call(
        "PATCH",
        "/conversations/{conversation}",
        {"snoozedUntil": "2999-01-01T00:00:00Z"},
        {"snoozedUntil": "string null"},
    ),
    "assign": Call(
        "POST",
        "/conversations/{conversation}/assign",
        {"agentId": None},
        {"agentId": "string null"},
        required="agentId",
    ),
    "read": Call(
        "POST", "/conversations/{conversation}/read", {"seq": 0}, {"seq": "number"}, required="seq"
    ),
    "message": Call(
        "POST",
        "/conversations/{conversation}/messages",
        {
            "contentText": "x",
            "contentType": "IMAGE",
            "mediaUrl": "https://example.com/a",
            "attachmentIds": None,
            "private": False,
            "clientMessageId": None,
            "expectedLastSeq": 2**31 - 1,
        },
        {
            **MESSAGE,
            "attachmentIds": "list null",
            "private": "boolean",
            "clientMessageId": "string null",
            "expectedLastSeq": "number null",
        },
    ),
    "inbound": Call(
        "POST",
        "/inbound",
        {
            "externalId": "",
            "lead": {"name": "Ana", "email": "a@b.de", "phone": "1", "externalId": "{lead}"},
            "conversationExternalId": None,
            "message": {"contentText": "x", "contentType": "TEXT", "mediaUrl": None},
        },
        {
            "externalId": "string",
            "lead": "object",
            "conversationExternalId": "string null",
            "message": "object",
            "lead.externalId": "string null",
        }
        | {f"lead.{field}": kinds for field, kinds in LEAD.items()}
        | {f"message.{field}": kinds for field, kinds in MESSAGE.items()},
        required="externalId lead lead.name message",
    ),
    "new webhook": Call(
        "POST",
        "/webhooks",
        {
            "url": "https://webhook.invalid/",
            "description": "x",
            "events": ["lead.merged"],
            "includePrivateNotes": False,
        },
        {
            "url": "string",
            "description": "string null",
            "events": "list",
            "includePrivateNotes": "boolean",
        },
        required="url",
    ),
    "webhook": Call(
        "PATCH",
        "/webhooks/{webhook}",
        {
            "url": "https://webhook.invalid/",
            "description": "x",
            "events": ["lead.merged"],
            "includePrivateNotes": False,
            "enabled": False,
        },
        {
            "url": "string",
            "description": "string null",
            "events": "list",
            "includePrivateNotes": "boolean",
            "enabled": "boolean",
        },
    ),
    "replay": Call(
        "POST",
        "/webhooks/{webhook}/replay",
        {"since": "2999-01-01T00:00:00Z"},
        {"since": "string"},
        required="since",
    ),
    "API key": Call(
        "POST",
        "/api-keys",
        {"name": "shop", "inboxId": None},
        {"name": "string", "inboxId": "string null"},
        required="name",
    ),
    "new inbox": Call(
        "POST",
        "/inboxes",
        {"name": "Shop", "kind": "API", "allowedOrigins": ["https://a.de"], "greeting": "Hi"},
        {"name": "string", "kind": "string", "allowedOrigins": "list", "greeting": "string null"},
        required="name kind",
    ),
    "inbox": Call(
        "PATCH",
        "/inboxes/{inbox}",
        {"name": "Shop", "allowedOrigins": ["*"], "greeting": None},
        {"name": "string", "allowedOrigins": "list", "greeting": "string null"},
    ),
    "receipts": Call(
        "POST",
        "/receipts",
        {"receipts": [{"messageId": "{lead}", "status": "failed", "error": "x"}]},
        {"receipts": "list"},
        required="receipts",
    ),
    "session": Call(
        "POST",
        f"{PUBLIC}/inboxes/{{inbox}}/sessions",
        {"visitorToken": None, "identityToken": None, "name": "Ana", "email": "a@b.de"},
        {
            "visitorToken": "string null",
            "identityToken": "string null",
            "name": "string null",
            "email": "string null",
        },
    ),
    "visitor's message": Call(
        "POST",
        f"{PUBLIC}/messages",
        {
            "contentText": "x",
            "contentType": "IMAGE",
            "mediaUrl": "https://example.com/a",
            "attachmentIds": None,
            "clientMessageId": None,
        },
        {**MESSAGE, "attachmentIds": "list null", "clientMessageId": "string null"},
    ),
    "seen": Call("POST", f"{PUBLIC}/seen", {"seq": 0}, {"seq": "number"}, required="seq"),
}


def a_webhook(api: Api) -> str:
    body = {"url": "https://webhook.invalid/", "events": ["lead.merged"]}
    webhook_id: str = api.post("/webhooks", body)["id"]
    return webhook_id


class Sender:
    """Sends the calls, with the ids of things that are there."""

    def __init__(self, api: Api, key: Api) -> None:
        self.api = api
        self.key = key
        conversation = api.new_conversation()
        inbox = api.post("/inboxes", {"name": "Website", "kind": "WIDGET"})["id"]
        session = httpx.post(f"{api.url}{PUBLIC}/inboxes/{inbox}/sessions", json={}).json()
        self.visitor_token = session["data"]["sessionToken"]
        self.ids = {
            "{inbox}": inbox,
            "{conversation}": conversation["id"],
            "{lead}": conversation["lead"]["id"],
            "{user}": api.new_user().user["id"],
            "{webhook}": a_webhook(api),
        }

    def filled(self, text: str) -> str:
        for name, value in self.ids.items():
            text = text.replace(name, value)
        return text

    def good_body(self, call: Call) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.filled(json.dumps(call.body)))
        if "externalId" in body:
            body["externalId"] = uuid4().hex
        if "email" in body and call.path == "/auth/register":
            body["email"] = f"{uuid4().hex}@example.com"
        return body

    def send(self, call: Call, content: bytes, **headers: str) -> httpx.Response:
        user = self.key if call.path in WITH_KEY else self.api
        all_headers = {"Content-Type": "application/json", **headers}
        path = self.filled(call.path)
        if call.path.startswith(PUBLIC):
            all_headers["Authorization"] = f"Bearer {self.visitor_token}"
            path = self.api.url + path
        return user.http.request(call.method, path, content=content, headers=all_headers)


def named(error: dict[str, Any], field: str) -> bool:
    """Whether the answer points to this field: `lead.name`, or what it holds."""
    fields = [detail["field"] for detail in error["details"]]
    if field == "leadId" and "lead" in fields:  # exactly one of the two
        return True
    return any(name == field or name.startswith((f"{field}.", f"{field}[")) for name in fields)
