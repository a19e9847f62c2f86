"""Every event arrives when its fact happens, signed, in its shape, and nothing that is private."""

import asyncio
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from standardwebhooks import WebhookVerificationError

from messaging_server.webhooks.outbox_queries import OUTBOX_LOCK
from tests.api import shapes
from tests.api.shapes import check
from tests.client import Api, wait_until
from tests.public.site import Site
from tests.webhooks.conftest import Hooks
from tests.webhooks.receiver import Received, Receiver, Reply, verified

TOLD_CONVERSATION = {
    key: shapes.CONVERSATION[key]
    for key in shapes.CONVERSATION
    if key not in ("lead", "lastMessage", "lastSeq", "unreadCount", "urgency")
}
TOLD_LEAD = {**shapes.LEAD, "verified": bool}
FLAGS = re.DOTALL | re.MULTILINE
ABOUT = {"conversation": TOLD_CONVERSATION, "lead": TOLD_LEAD, "truncated": bool}
AGENT = shapes.CONVERSATION["assignedAgent"]
STATUS = shapes.one_of("failed", "delivered", "read")
DATA: dict[str, dict[str, Any]] = {
    "message.created": {"message": shapes.MESSAGE, **ABOUT},
    "message.status": {
        "message": shapes.MESSAGE,
        "status": STATUS,
        "error": (str, None),
        **ABOUT,
    },
    "conversation.created": ABOUT,
    "conversation.updated": {"changed": [str], **ABOUT},
    "conversation.assigned": {"assignedAgent": AGENT, "previousAgent": AGENT, **ABOUT},
    "conversation.status_changed": {"status": str, "previousStatus": str, **ABOUT},
    "conversation.ai_updated": ABOUT,
    "lead.created": {"lead": TOLD_LEAD, "truncated": bool},
    "lead.updated": {"lead": TOLD_LEAD, "changed": [str], "truncated": bool},
    "lead.merged": {"lead": TOLD_LEAD, "mergedLeadId": str, "truncated": bool},
}


def data_of(received: Received) -> dict[str, Any]:
    check(received.json, {"type": str, "timestamp": shapes.time, "data": dict}, "payload")
    data: dict[str, Any] = received.json["data"]
    check(data, DATA[received.type], received.type)
    return data


def wait_for(receiver: Receiver, event: str, count: int = 1) -> list[dict[str, Any]]:
    """The data of the first so many of this event."""
    found = wait_until(
        lambda: (
            len(of := [each for each in receiver.requests if each.type == event]) >= count and of
        )
    )
    return [data_of(each) for each in found]


def test_messages(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    webhook = hooks.make(receiver.url, events=["message.created"])
    conversation = api.new_conversation()
    sent = api.send(conversation["id"], "hello", clientMessageId="m1")
    (data,) = wait_for(receiver, "message.created")
    assert data["message"] == sent
    assert data["conversation"]["id"] == conversation["id"]
    assert data["lead"] == {**conversation["lead"], "verified": True}
    assert data["truncated"] is False
    received = receiver.requests[0]
    assert verified(received, webhook["secret"])["data"] == data
    assert received.headers["content-type"] == "application/json"
    assert received.json["timestamp"] == sent["createdAt"]
    with pytest.raises(WebhookVerificationError):
        verified(received, "whsec_" + "A" * 43 + "=")
    (delivery,) = wait_until(lambda: hooks.deliveries(webhook["id"], status="SUCCEEDED"))
    check(delivery, shapes.WEBHOOK_DELIVERY)
    assert (delivery["id"], delivery["attempts"]) == (received.id, 1)
    assert (delivery["responseStatus"], delivery["error"]) == (200, None)


def test_messages_of_leads(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    hooks.make(receiver.url, events=["message.created", "conversation.created", "lead.created"])
    with api.new_key() as key:
        inbound = key.inbound("hola")
    wait_until(lambda: len(receiver.requests) == 3)
    by_type = {each.type: data_of(each) for each in receiver.requests}
    assert by_type["message.created"]["message"]["senderType"] == "LEAD"
    assert by_type["message.created"]["lead"]["id"] == inbound["leadId"]
    assert by_type["conversation.created"]["conversation"]["id"] == inbound["conversationId"]
    assert by_type["lead.created"]["lead"]["name"] == "Luis"
    of_conversation = [each.type for each in receiver.requests if each.type != "lead.created"]
    assert of_conversation == ["conversation.created", "message.created"]


def test_conversations(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    hooks.make(receiver.url)
    agent = api.new_user(name="Eva")
    conversation = api.new_conversation()
    path = f"/conversations/{conversation['id']}"
    wait_for(receiver, "conversation.created")
    wait_for(receiver, "lead.created")

    api.post(f"{path}/assign", {"agentId": agent.user["id"]})
    (assigned,) = wait_for(receiver, "conversation.assigned")
    assert assigned["assignedAgent"]["id"] == agent.user["id"]
    assert assigned["previousAgent"] is None
    assert assigned["conversation"]["assignedAgent"] == assigned["assignedAgent"]

    api.patch(path, {"status": "RESOLVED"})
    (changed,) = wait_for(receiver, "conversation.status_changed")
    assert (changed["status"], changed["previousStatus"]) == ("RESOLVED", "OPEN")

    updated = api.patch(path, {"priority": "HIGH", "tags": ["vip"]})
    (told,) = wait_for(receiver, "conversation.updated")
    assert sorted(told["changed"]) == ["priority", "tags"]
    assert told["conversation"]["version"] == updated["version"]
    assert (told["conversation"]["priority"], told["conversation"]["tags"]) == ("HIGH", ["vip"])

    api.send(conversation["id"], "please help me with my invoice")
    wait_for(receiver, "message.created")
    api.post(f"{path}/analyze")
    analysed = wait_for(receiver, "conversation.ai_updated")[0]
    assert analysed["conversation"]["ai"]["provider"] == "local"
    assert len(wait_for(receiver, "conversation.updated")) == 1


def test_waking_from_a_snooze(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    hooks.make(receiver.url, events=["conversation.status_changed"])
    conversation = api.new_conversation()
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    api.patch(f"/conversations/{conversation['id']}", {"snoozedUntil": soon})
    wait_until(lambda: len(receiver.requests) == 2, 15)
    told = [data_of(each) for each in receiver.requests]
    assert [each["status"] for each in told] == ["SNOOZED", "OPEN"]


def test_leads(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    hooks.make(receiver.url, events=["lead.created", "lead.updated"])
    lead = api.post("/leads", {"name": "Ana", "email": "a@example.com"})
    changed = api.patch(f"/leads/{lead['id']}", {"name": "Eva", "attributes": {"plan": "pro"}})
    api.patch(f"/leads/{lead['id']}", {"name": "Eva"})  # nothing new
    api.patch(f"/leads/{lead['id']}", {"phone": "1"})
    wait_until(lambda: len(receiver.requests) == 3)
    created, first, second = (data_of(each) for each in receiver.requests)
    assert created["lead"]["id"] == lead["id"]
    assert first["changed"] == ["name", "attributes"]
    assert first["lead"]["attributes"] == changed["attributes"]
    assert second["changed"] == ["phone"]


@pytest.fixture
def site(api: Api) -> Iterator[Site]:
    site = Site(api)
    yield site
    site.close()


def test_merged_leads(api: Api, site: Site, hooks: Hooks, receiver: Receiver) -> None:
    """A visitor who has written anonymously, and then logs in on the website."""
    hooks.make(receiver.url, events=["lead.created", "lead.merged", "conversation.updated"])
    site.open(identityToken=site.identity("ana"))  # as she is known from another device
    (known,) = wait_for(receiver, "lead.created")
    anonymous = site.visitor()
    anonymous.send("hello")
    merged = site.open(visitorToken=anonymous.visitor_token, identityToken=site.identity("ana"))
    (data,) = wait_for(receiver, "lead.merged")
    assert data["mergedLeadId"] == anonymous.lead_id
    assert data["lead"]["id"] == known["lead"]["id"] == merged["lead"]["id"]
    (moved,) = wait_for(receiver, "conversation.updated")
    assert moved["changed"] == ["lead"]
    assert moved["lead"]["id"] == known["lead"]["id"]


def test_a_typed_address_is_not_a_true_one(
    api: Api, site: Site, hooks: Hooks, receiver: Receiver
) -> None:
    """A visitor types an e-mail; then the website says who it is, with the same one."""
    hooks.make(receiver.url, events=["lead.created", "lead.updated"])
    visitor = site.visitor(name="Ana", email="ana@example.com")
    visitor.send("hello")
    (typed,) = wait_for(receiver, "lead.created")
    assert (typed["lead"]["email"], typed["lead"]["verified"]) == ("ana@example.com", False)
    identity = site.identity(uuid4().hex, name="Ana", email="ana@example.com")
    site.open(visitorToken=visitor.visitor_token, identityToken=identity)
    (told,) = wait_for(receiver, "lead.updated")
    assert told["changed"] == ["verified"]
    assert told["lead"] == {
        **typed["lead"],
        "verified": True,
        "updatedAt": told["lead"]["updatedAt"],
    }


def test_delivery_status(api: Api, site: Site, hooks: Hooks, receiver: Receiver) -> None:
    hooks.make(receiver.url, events=["message.created", "message.status"])
    visitor = site.visitor()
    conversation_id = visitor.send("hello")["conversationId"]
    reply = api.send(conversation_id, "hi")
    visitor.post("/seen", {"seq": 2}, expect=200)
    (told,) = wait_for(receiver, "message.status")
    assert (told["status"], told["error"]) == ("read", None)
    assert told["message"] == {**reply, "status": "read"}
    assert [each.type for each in receiver.requests] == [
        "message.created",
        "message.created",
        "message.status",
    ]


def test_private_notes(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    with Receiver().serving() as trusted:
        hooks.make(receiver.url)
        hooks.make(trusted.url, includePrivateNotes=True)
        conversation = api.new_conversation()
        secret = uuid4().hex
        note = api.send(conversation["id"], secret, private=True)
        public = api.send(conversation["id"], "hello")
        api.patch(f"/conversations/{conversation['id']}", {"priority": "LOW"})
        wait_for(receiver, "conversation.updated")
        wait_for(trusted, "conversation.updated")
        assert [each["message"] for each in wait_for(receiver, "message.created")] == [public]
        assert [each["message"] for each in wait_for(trusted, "message.created")] == [note, public]
        assert not any(secret in each.body.decode() for each in receiver.requests)


def test_notes_are_taken_back(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    """Pending and finished ones, of this webhook only, and what waits behind them goes on."""
    other = hooks.make(receiver.url, events=["message.created"], includePrivateNotes=True)
    api.patch(f"/webhooks/{other['id']}", {"enabled": False})
    receiver.decide = lambda _: Reply(status=200 if len(receiver.requests) == 1 else 500)
    webhook = hooks.make(receiver.url, events=["message.created"], includePrivateNotes=True)
    path = f"/webhooks/{webhook['id']}"
    conversation = api.new_conversation()
    for text, private in (("sent", True), ("stuck", True), ("behind", False), ("last", True)):
        api.send(conversation["id"], text, private=private)
    notes = wait_until(
        lambda: (
            len(of := [each for each in hooks.deliveries(webhook["id"]) if each["attempts"]]) == 2
            and of
        )
    )
    wait_until(lambda: len(hooks.deliveries(webhook["id"])) == 4)
    assert [each.text for each in receiver.requests] == ["sent", "stuck"]
    receiver.decide = lambda _: Reply()
    api.patch(path, {"includePrivateNotes": False})
    assert len(hooks.deliveries(webhook["id"])) == 1
    for each in notes:
        api.post(f"{path}/deliveries/{each['id']}/retry", expect=404)
    wait_until(lambda: hooks.deliveries(webhook["id"], status="SUCCEEDED"))
    assert api.post(f"{path}/replay", {"since": "2026-01-01T00:00:00Z"}) == {"count": 1}
    wait_until(lambda: len(receiver.requests) == 4)
    assert [each.text for each in receiver.requests[2:]] == ["behind", "behind"]
    assert len(hooks.deliveries(other["id"])) == 4
    api.patch(f"/webhooks/{other['id']}", {"enabled": True})
    wait_until(lambda: len(receiver.requests) == 8)
    assert [each.text for each in receiver.requests[4:]] == ["sent", "stuck", "behind", "last"]


def test_a_note_that_is_being_made_a_delivery_is_taken_back_too(
    api: Api, module_dsn: str, hooks: Hooks, receiver: Receiver
) -> None:
    webhook = hooks.make(receiver.url, events=["lead.updated"], includePrivateNotes=True)
    path = f"/webhooks/{webhook['id']}"
    api.patch(path, {"enabled": False})

    async def scenario() -> None:
        connection = await asyncpg.connect(module_dsn)
        try:
            async with connection.transaction():
                await connection.execute("select pg_advisory_xact_lock($1)", OUTBOX_LOCK)
                changes = {"includePrivateNotes": False}
                patch = asyncio.create_task(asyncio.to_thread(api.patch, path, changes))
                await asyncio.sleep(0.3)
                await connection.execute(
                    """
                    insert into webhook_deliveries
                        (position, webhook_id, event, ordering_key, private, created_at)
                    values (1, $1, 'message.created', gen_random_uuid(), true, now())
                    """,
                    webhook["id"],
                )
            await patch
        finally:
            await connection.close()

    asyncio.run(scenario())
    assert hooks.deliveries(webhook["id"]) == []


def test_a_long_text_is_cut(api: Api, hooks: Hooks, receiver: Receiver) -> None:
    hooks.make(receiver.url, events=["message.created"])
    lead = {"name": "ñ" * 200, "attributes": {f"key {n}": "value " * 20 for n in range(100)}}
    conversation = api.post("/conversations", {"lead": lead})
    text = "\u0001ñ\U0001f600" * 3_333
    api.send(conversation["id"], text)
    (data,) = wait_for(receiver, "message.created")
    assert len(receiver.requests[0].body) < 20_000
    assert data["truncated"] is True
    cut = data["message"]["contentText"]
    assert cut.endswith("…")
    assert len(cut) >= 500
    assert text.startswith(cut[:-1])


def test_what_was_erased_is_told_no_more(
    api: Api, module_dsn: str, hooks: Hooks, receiver: Receiver
) -> None:
    told = ["lead.created", "conversation.created", "message.created"]  # nothing comes late
    webhook = hooks.make(receiver.url, events=told)
    api.patch(f"/webhooks/{webhook['id']}", {"enabled": False})
    secret = uuid4().hex
    conversation = api.new_conversation(name=secret)
    api.send(conversation["id"], secret)
    wait_until(lambda: len(hooks.deliveries(webhook["id"])) == len(told))
    api.delete(f"/leads/{conversation['lead']['id']}")
    assert hooks.deliveries(webhook["id"]) == []
    api.patch(f"/webhooks/{webhook['id']}", {"enabled": True})
    api.post("/leads", {"name": "Ana"})
    wait_for(receiver, "lead.created")
    assert not any(secret in each.body.decode() for each in receiver.requests)


def test_without_webhooks_nothing_is_written(api: Api, module_dsn: str, hooks: Hooks) -> None:
    count = "select count(*) from webhook_outbox"

    async def fetch() -> int:
        connection = await asyncpg.connect(module_dsn)
        try:
            return int(await connection.fetchval(count))
        finally:
            await connection.close()

    assert api.get("/webhooks")["items"] == []
    api.send(api.new_conversation()["id"])
    assert asyncio.run(fetch()) == 0


def test_the_documented_verifier_works(
    api: Api, hooks: Hooks, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    webhook = hooks.make(receiver.url, events=["message.created"])
    api.send(api.new_conversation()["id"])
    (received,) = wait_until(lambda: receiver.requests)
    page = Path(__file__).parents[2] / "docs" / "webhooks.md"
    (example,) = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), FLAGS)
    names: dict[str, Any] = {}
    exec(example.replace("whsec_…", webhook["secret"]), names)  # noqa: S102  # our own page
    assert names["handle"](received.body, received.headers) == 204
    assert received.id in capsys.readouterr().out
    assert names["handle"](received.body + b" ", received.headers) == 401
