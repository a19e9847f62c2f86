"""What a visitor writes and reads: idempotent, one conversation, numbers without holes."""

from typing import Any
from uuid import uuid4

import pytest

from tests.api import shapes
from tests.api.shapes import check
from tests.client import Api, together, wait_until
from tests.public.site import PublicApi, Site

PUBLIC_MESSAGE = {
    "id": shapes.uuid7,
    "conversationId": shapes.uuid7,
    "seq": int,
    "senderType": shapes.SENDER_TYPE,
    "sender": ({"name": str}, None),
    "contentType": shapes.CONTENT_TYPE,
    "contentText": (str, None),
    "mediaUrl": (str, None),
    "attachments": list,
    "clientMessageId": (str, None),
    "createdAt": shapes.time,
}


# --- Writing ----------------------------------------------------------------------------------


def test_a_first_message(api: Api, site: Site) -> None:
    visitor = site.visitor(name="Ana")
    assert visitor.get("/messages") == {"items": [], "nextCursor": None}
    message = visitor.send("hello", clientMessageId="m1")
    check(message, PUBLIC_MESSAGE)
    assert (message["seq"], message["senderType"]) == (1, "LEAD")
    assert (message["sender"], message["clientMessageId"]) == ({"name": "Ana"}, "m1")
    conversation = api.get(f"/conversations/{message['conversationId']}")
    assert conversation["inboxId"] == site.id
    assert conversation["assignedAgent"] is None
    assert (conversation["unreadCount"], conversation["status"]) == (1, "OPEN")
    assert conversation["waitingSince"] == message["createdAt"]
    (stored,) = api.get(f"/conversations/{message['conversationId']}/messages")["items"]
    check(stored, shapes.MESSAGE)
    assert stored["sender"] == {"id": visitor.lead_id, "name": "Ana"}
    assert stored["status"] is None
    assert visitor.messages() == [message]


def test_what_a_visitor_writes_is_analysed_and_reopens(api: Api, site: Site) -> None:
    visitor = site.visitor()
    path = f"/conversations/{visitor.send('I want my money back, now!')['conversationId']}"
    wait_until(lambda: api.get(path)["ai"])
    api.patch(path, {"status": "RESOLVED"})
    visitor.send("still waiting")
    assert api.get(path)["status"] == "OPEN"


def test_media(site: Site) -> None:
    visitor = site.visitor()
    image = {"contentType": "IMAGE", "mediaUrl": "https://example.com/a.png"}
    assert visitor.post("/messages", image, expect=201)["mediaUrl"] == image["mediaUrl"]
    visitor.post("/messages", {"contentType": "IMAGE"}, expect=400)
    visitor.post("/messages", {**image, "mediaUrl": "javascript:alert(1)"}, expect=400)


def test_a_repeated_message_is_stored_once(site: Site) -> None:
    visitor = site.visitor()
    body = {"contentText": "hello", "clientMessageId": "m1"}
    answers = together([lambda: visitor.http.post("/messages", json=body)] * 50, threads=50)
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.text for answer in answers}) == 1
    error = visitor.post("/messages", {**body, "contentText": "other"}, expect=409)
    assert error["code"] == "conflict"
    assert len(visitor.messages()) == 1


def test_50_first_messages_make_one_conversation(api: Api, site: Site) -> None:
    visitor = site.visitor(name=f"Ana {uuid4().hex}")
    second = site.page(site.open(visitorToken=visitor.visitor_token))
    pages = [visitor, second]
    sent = together(
        [lambda n=n: pages[n % 2].send(f"hello {n}", clientMessageId=f"m{n}") for n in range(50)],
        threads=50,
    )
    assert sorted(message["seq"] for message in sent) == list(range(1, 51))
    assert len({message["conversationId"] for message in sent}) == 1
    found = api.get("/conversations", search=visitor.session["lead"]["name"])["items"]
    assert [item["id"] for item in found] == [sent[0]["conversationId"]]


def test_a_visitors_client_ids_are_its_own(site: Site) -> None:
    first, second = site.visitor(), site.visitor()
    mine = first.send("mine", clientMessageId="m1")
    theirs = second.send("theirs", clientMessageId="m1")
    assert mine["conversationId"] != theirs["conversationId"]


# --- Reading ----------------------------------------------------------------------------------


def talk(api: Api, visitor: PublicApi, count: int) -> str:
    """`count` public messages, with a private note after each; the conversation's id."""
    conversation_id = ""
    for number in range(1, count + 1):
        if number == 1 or number % 3 == 0:
            conversation_id = visitor.send(f"public {number}")["conversationId"]
        else:
            api.send(conversation_id, f"public {number}")
        api.send(conversation_id, f"secret {number}", private=True)
    return conversation_id


def test_pages_have_no_holes_in_spite_of_private_notes(api: Api, site: Site) -> None:
    visitor = site.visitor()
    talk(api, visitor, 11)
    seen: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 3}
    while True:
        page = visitor.get("/messages", **query)
        seen += page["items"]
        if page["nextCursor"] is None:
            break
        query = {"limit": 3, "cursor": page["nextCursor"]}
    assert [message["seq"] for message in seen] == list(range(11, 0, -1))
    assert [message["contentText"] for message in seen] == [f"public {n}" for n in range(11, 0, -1)]
    for after in (0, 1, 5, 10, 11, 12, 2**31 - 1):
        items = visitor.messages(afterSeq=after, limit=100)
        assert [message["seq"] for message in items] == list(range(after + 1, 12))
    first = visitor.get("/messages", afterSeq=2, limit=4)
    second = visitor.get("/messages", cursor=first["nextCursor"], limit=100)
    numbers = [message["seq"] for message in first["items"] + second["items"]]
    assert numbers == list(range(3, 12))


def test_cursors_of_others_open_nothing(api: Api, site: Site) -> None:
    visitor, stranger = site.visitor(), site.visitor()
    conversation_id = talk(api, visitor, 3)
    cursor = visitor.get("/messages", limit=1)["nextCursor"]
    assert stranger.messages(cursor=cursor) == []
    stranger.send("hello")
    assert stranger.messages(cursor=cursor) == []
    agents = api.get(f"/conversations/{conversation_id}/messages", limit=1)["nextCursor"]
    visitor.get("/messages", cursor=agents, expect=400)
    visitor.get("/messages", cursor=cursor, afterSeq=1, expect=400)
    assert len(visitor.messages(cursor=cursor)) == 2


def test_who_the_agent_is(api: Api, site: Site) -> None:
    visitor = site.visitor()
    conversation_id = visitor.send()["conversationId"]
    named = api.new_user("ADMIN", name="Eva")
    api.send(conversation_id, "from one without a name")
    named.send(conversation_id, "from Eva", clientMessageId="the-agents-own")
    by_eva, by_nobody, _ = visitor.messages()
    assert by_nobody["sender"] == {"name": "Agent"}
    assert by_eva["sender"] == {"name": "Eva"}
    assert by_eva["clientMessageId"] is None


SECRETS = (
    "secret-note", "admin@", "@example.com", "typed@lead", "private", "priority", "summary",
    "tags", "urgency", "assigned", "email", "phone", "attributes", "status\":\"delivered",
    "status\":\"read", "unread", "waiting", "version", "provider", "555-secret",
)  # fmt: skip


def test_no_answer_tells_what_is_not_for_visitors(api: Api, site: Site) -> None:
    agent = api.new_user("ADMIN")
    visitor = site.visitor(email="typed@lead.test", name="Ana")
    conversation_id = visitor.send("please help", clientMessageId="m1")["conversationId"]
    path = f"/conversations/{conversation_id}"
    wait_until(lambda: api.get(path)["ai"])
    api.patch(path, {"priority": "HIGH", "tags": ["vip"]})
    agent.send(conversation_id, "secret-note", private=True)
    agent.send(conversation_id, "an answer")
    agent.send(conversation_id, "secret-note", private=True)
    api.patch(f"/leads/{visitor.lead_id}", {"phone": "555-secret", "attributes": {"a": 1}})
    answers = [
        visitor.http.get("/messages"),
        visitor.http.get("/messages", params={"afterSeq": 1}),
        visitor.http.post(
            "/messages", json={"contentText": "please help", "clientMessageId": "m1"}
        ),
        visitor.http.post("/messages", json={"contentText": "more"}),
        visitor.http.post("/seen", json={"seq": 3}),
        visitor.http.get(f"/inboxes/{site.id}"),
        visitor.http.post(site.path, json={"visitorToken": visitor.visitor_token}),
        visitor.http.post(site.path, json={"identityToken": site.identity("x", email="y@z.test")}),
        visitor.http.post("/messages", json={"contentText": "other", "clientMessageId": "m1"}),
        visitor.http.post("/seen", json={"seq": -1}),
    ]
    assert [answer.status_code for answer in answers[-2:]] == [409, 400]
    for answer in answers:
        told = answer.text.replace(agent.user["id"], "SECRET id").lower()
        assert "secret id" not in told
        for secret in SECRETS:
            assert secret not in told, f"{secret}: {answer.text}"


# --- Erasure ----------------------------------------------------------------------------------


def test_an_erased_lead_has_no_session(api: Api, site: Site) -> None:
    visitor = site.visitor()
    visitor.send()
    api.delete(f"/leads/{visitor.lead_id}")
    for call in (
        visitor.http.get("/messages"),
        visitor.http.post("/messages", json={"contentText": "x"}),
    ):
        assert call.status_code == 401
    again = site.open(visitorToken=visitor.visitor_token)
    assert again["lead"]["id"] != visitor.lead_id
    assert again["conversationId"] is None


@pytest.mark.parametrize("verified", [False, True])
def test_a_deleted_inbox_has_no_sessions(api: Api, verified: bool) -> None:
    site = Site(api)
    body = {"identityToken": site.identity("u")} if verified else {}
    visitor = site.visitor(**body)
    conversation_id = visitor.send("hello")["conversationId"]
    assert api.delete(f"/inboxes/{site.id}", expect=200) is None
    assert visitor.http.get("/messages").status_code == 401
    visitor.post(site.path, {}, expect=404)
    kept = api.get(f"/conversations/{conversation_id}")
    assert kept["inboxId"] == site.id
    assert kept["lead"]["id"] == visitor.lead_id
    assert api.get(f"/conversations/{conversation_id}/messages")["items"]
    site.close()
