"""A visitor's socket: getting in, commands and their errors, joining, and what it hears."""

import hashlib
import hmac
import json
import time
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.client import Api, wait_until
from tests.conftest import SECRET
from tests.public.site import PublicApi, Site
from tests.realtime.conftest import (
    close_code,
    stranger,
    unknown_visitor,
    visitor_socket,
)

ENVIRONMENT = {"MESSAGING_REALTIME__TYPING_SECONDS": "5"}
UNKNOWN = "01900000-0000-7000-8000-00000000dead"
SESSION_KEY = hmac.digest(SECRET.encode(), b"visitor", hashlib.sha256)


def session_token(page: PublicApi, *, key: bytes | str = SESSION_KEY, **claims: Any) -> str:
    """What a session of this page says, changed, signed with the server's own key or another."""
    said = jwt.decode(page.session["sessionToken"], options={"verify_signature": False})
    return jwt.encode({**said, **claims}, key, algorithm="HS256")


def talking(site: Site, **body: Any) -> tuple[PublicApi, str]:
    """A visitor who has written already, and the conversation."""
    page = site.visitor(**body)
    return page, str(page.send()["conversationId"])


# --- Getting in -------------------------------------------------------------------------------


def test_auth_says_who_the_visitor_is(api: Api, site: Site) -> None:
    page = site.visitor(name="Luis")
    lead = {"id": page.lead_id, "name": "Luis", "verified": False}

    def answer() -> dict[str, Any]:
        with unknown_visitor(api) as visitor:
            token = page.session["sessionToken"]
            visitor.send({"id": "a", "event": "auth", "data": {"token": token}})
            reply = visitor.read()
        assert (reply["id"], reply["ok"]) == ("a", True)
        assert 0 < reply["data"].pop("expiresIn") <= 12 * 3600
        data: dict[str, Any] = reply["data"]
        return data

    assert answer() == {"lead": lead, "conversationId": None}
    sent = page.send()
    assert answer() == {"lead": lead, "conversationId": sent["conversationId"]}


def tokens(api: Api, site: Site, other: Site) -> dict[str, str]:
    page, foreign = site.visitor(), other.visitor()
    return {
        "nonsense": "nonsense",
        "an agent's": str(api.token),
        "an API key": str(api.new_key().token),
        "a visitor's long-lived one": page.visitor_token,
        "an identity token": site.identity("user-1"),
        "expired": session_token(page, exp=int(time.time()) - 1),
        "signed with the users' key": session_token(page, key=SECRET),
        "signed with the inbox's secret": session_token(page, key=site.secret),
        "of another inbox": session_token(page, inbox=str(other.id)),
        "of another inbox's lead": session_token(page, sub=foreign.lead_id),
        "of an unknown lead": session_token(page, sub=UNKNOWN),
        "more than is so": session_token(page, verified=True),
        "not an id": session_token(page, sub="x"),
    }


def test_other_tokens_are_refused(api: Api, site: Site) -> None:
    other = Site(api)
    for name, token in tokens(api, site, other).items():
        with unknown_visitor(api) as visitor:
            visitor.send({"id": 1, "event": "auth", "data": {"token": token}})
            reply = visitor.read()
            assert reply.get("error", {}).get("code") == "unauthenticated", (name, reply)
            assert visitor.close_code() == 4401, name
    other.close()


def test_the_forgeries_are_good_but_for_what_is_wrong(api: Api, site: Site) -> None:
    with unknown_visitor(api) as visitor:
        token = session_token(site.visitor())
        visitor.send({"id": 1, "event": "auth", "data": {"token": token}})
        assert visitor.read()["ok"]


def test_a_visitors_token_is_no_users(api: Api, site: Site) -> None:
    with stranger(api) as visitor:
        token = site.visitor().session["sessionToken"]
        visitor.send({"id": 1, "event": "auth", "data": {"token": token}})
        assert visitor.read()["error"]["code"] == "unauthenticated"
        assert visitor.close_code() == 4401


@pytest.mark.parametrize(
    "command",
    [
        *("conversation:join", "conversation:leave", "typing:start", "typing:stop"),
        *("message:delivered", "message:seen"),
    ],
)
def test_first_frame_must_be_auth(api: Api, command: str) -> None:
    data = {"data": {"seq": 1}} if command.startswith("message") else {}
    with unknown_visitor(api) as visitor:
        visitor.send({"id": 1, "event": command, **data})
        assert visitor.read()["error"]["code"] == "unauthenticated"
        assert visitor.close_code() == 4401


def test_token_in_the_handshake(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    headers = {"Authorization": f"Bearer {page.session['sessionToken']}"}
    with unknown_visitor(api, additional_headers=headers) as visitor:
        visitor.send({"id": 1, "event": "conversation:join"})
        assert visitor.read()["data"]["conversationId"] == conversation_id


def test_a_fresh_token_on_a_live_socket(api: Api, site: Site) -> None:
    page, _ = talking(site)
    again = site.open(visitorToken=page.visitor_token)
    with visitor_socket(api, page) as socket:
        assert socket.call("auth", {"token": again["sessionToken"]})["ok"]
        other = site.visitor().session["sessionToken"]
        assert socket.call("auth", {"token": other})["error"]["code"] == "forbidden"
        assert socket.call("auth", {"token": api.token})["error"]["code"] == "unauthenticated"
        assert socket.call("conversation:join")["ok"]


def test_origins(api: Api) -> None:
    """Those of the visitor's inbox, the server's own, or none."""
    site = Site(api, allowedOrigins=["https://shop.example"])
    elsewhere = Site(api, allowedOrigins=["https://elsewhere.example"])
    page = site.visitor()
    for origin in ("https://shop.example", api.url, None):
        with visitor_socket(api, page, origin=origin) as socket:
            assert socket.call("conversation:join")["ok"]
    for origin in ("https://elsewhere.example", "https://evil.example", "null"):
        with unknown_visitor(api, origin=origin) as visitor:
            token = page.session["sessionToken"]
            visitor.send({"id": 1, "event": "auth", "data": {"token": token}})
            assert visitor.read()["error"]["code"] == "forbidden"
            assert visitor.close_code() == 4403
    site.close()
    elsewhere.close()


def test_plain_http_is_told_what_this_is(api: Api) -> None:
    response = httpx.get(f"{api.url}/ws/public")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "validation_error"


# --- Frames -----------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [b"\0\1", "hello", "[1]", "null"])
def test_other_protocols_are_refused(api: Api, frame: str | bytes) -> None:
    with unknown_visitor(api) as visitor:
        visitor.send(frame)
        assert visitor.close_code() == 4400


@pytest.mark.parametrize(
    ("event", "data", "field"),
    [
        ("shout", None, "event"),
        ("conversation:join", 5, "data"),
        ("conversation:join", {"conversationId": 5}, "data.conversationId"),
        ("conversation:join", {"afterSeq": -1}, "data.afterSeq"),
        ("conversation:join", {"afterSeq": 2**40}, "data.afterSeq"),
        ("conversation:join", {"why": 1}, "data.why"),
        ("typing:start", {"name": "Eve"}, "data.name"),
        ("message:delivered", None, "data"),
        ("message:delivered", {"seq": "1"}, "data.seq"),
        ("message:seen", {"seq": -1}, "data.seq"),
        ("message:seen", {}, "data.seq"),
        ("message:new", {"message": {}}, "event"),
    ],
)
def test_a_bad_command_is_answered_and_the_socket_lives(
    api: Api, site: Site, event: str, data: Any, field: str
) -> None:
    with visitor_socket(api, site.visitor()) as socket:
        error = socket.call(event, data)["error"]
        assert error["code"] == "validation_error"
        assert error["message"].startswith(f"{field}: "), error
        assert socket.call("conversation:leave")["ok"]


def test_frame_limits(api: Api, site: Site) -> None:
    with unknown_visitor(api) as visitor:
        visitor.send({"event": "auth", "data": {"token": "x" * 5_000}})
        assert visitor.close_code() == 1009
    with visitor_socket(api, site.visitor()) as socket:
        socket.connection.send(json.dumps({"event": "pong", "data": "x" * 66_000}))
        assert close_code(socket.connection) == 1009


# --- Joining ----------------------------------------------------------------------------------


def test_every_way_to_say_my_conversation(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    expected = {"conversationId": conversation_id, "lastSeq": 1, "messages": [], "reset": False}
    with visitor_socket(api, page) as socket:
        for data in (None, {}, conversation_id, {"conversationId": conversation_id}):
            assert socket.call("conversation:join", data)["data"] == expected
        assert socket.call("conversation:join", {"conversationId": None})["data"] == expected
        for data in (None, {}, conversation_id, {"conversationId": conversation_id}):
            assert socket.call("typing:start", data)["ok"]
            assert socket.call("typing:stop", data)["ok"]
        assert socket.call("conversation:leave", conversation_id)["ok"]
        assert socket.call("typing:start")["error"]["code"] == "not_found"


def test_other_conversations_look_like_unknown_ones(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    other_site = Site(api)
    foreign = [talking(site)[1], talking(other_site)[1], api.new_conversation()["id"]]
    with visitor_socket(api, page) as socket:
        unknown = socket.call("conversation:join", UNKNOWN)["error"]
        assert unknown["code"] == "not_found"
        for other in foreign:
            assert socket.call("conversation:join", other)["error"] == unknown
            assert socket.call("typing:start", other)["error"]["code"] == "not_found"
            assert socket.call("conversation:leave", other)["ok"]
        assert socket.call("conversation:join", conversation_id)["ok"]
        for other in foreign:
            api.send(other, "not for everyone")
        api.send(conversation_id, "for you")
        assert socket.wait_event("message:new")["conversationId"] == conversation_id
        assert [frame for frame in socket.frames if "event" in frame] == []
    other_site.close()


def test_join_resumes_after_a_public_number(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    for number in range(4):
        api.send(conversation_id, f"note {number}", private=True)
        api.send(conversation_id, f"reply {number}")
    with visitor_socket(api, page) as socket:
        data = socket.call("conversation:join", {"afterSeq": 2})["data"]
        assert data["conversationId"] == conversation_id
        assert (data["lastSeq"], data["reset"]) == (5, False)
        assert [message["seq"] for message in data["messages"]] == [3, 4, 5]
        assert data["messages"] == page.messages()[2::-1]
        api.send(conversation_id, "a note", private=True)
        api.send(conversation_id, "and a reply")
        push = socket.wait_event("message:new")
        assert push["seq"] == 6
        assert push["conversationId"] == conversation_id
        assert push["data"]["message"] == page.messages()[0]


def test_too_much_to_resume_is_a_reset(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    for number in range(300):
        api.send(conversation_id, f"message {number}")
    with visitor_socket(api, page) as socket:
        whole = {"conversationId": conversation_id, "afterSeq": 0}
        data = socket.call("conversation:join", whole)["data"]
        assert (data["messages"], data["lastSeq"], data["reset"]) == ([], 301, True)
        after_first = {**whole, "afterSeq": 1}
        assert len(socket.call("conversation:join", after_first)["data"]["messages"]) == 300
        api.send(conversation_id, "and one")
        assert socket.wait_event("message:new")["seq"] == 302


def test_leaving_ends_it(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    with visitor_socket(api, page) as socket:
        socket.call("conversation:join")
        assert socket.call("conversation:leave")["ok"]
        api.send(conversation_id, "not heard")
        assert socket.call("conversation:leave")["ok"]
        assert [frame for frame in socket.frames if "event" in frame] == []
        assert socket.call("conversation:join", {"afterSeq": 1})["data"]["messages"] != []


def test_the_first_message_is_heard_by_all_devices(api: Api, site: Site) -> None:
    """They have joined before there was a conversation."""
    page = site.visitor()
    with visitor_socket(api, page) as one, visitor_socket(api, page) as two:
        for socket in (one, two):
            assert socket.call("conversation:join")["data"]["conversationId"] is None
            assert socket.call("typing:start")["ok"]
        sent = page.send("hello", clientMessageId=uuid4().hex)
        for socket in (one, two):
            push = socket.wait_event("message:new")
            assert push["seq"] == 1
            assert push["data"]["message"] == sent
        api.send(sent["conversationId"], "good day")
        assert [each.wait_event("message:new")["seq"] for each in (one, two)] == [2, 2]


def test_two_devices_of_a_verified_lead(api: Api, site: Site) -> None:
    """The second has its own session of the same person, and hears the same."""
    phone, laptop = (site.visitor(identityToken=site.identity("u-1")) for _ in range(2))
    stranger_page = site.visitor(identityToken=site.identity("u-2"))
    with (
        visitor_socket(api, phone) as one,
        visitor_socket(api, laptop) as two,
        visitor_socket(api, stranger_page) as other,
    ):
        for socket in (one, two, other):
            socket.call("conversation:join")
        sent = phone.send("from the phone")
        api.send(sent["conversationId"], "reply")
        frames = [[each.wait_event("message:new") for _ in range(2)] for each in (one, two)]
        assert frames[0] == frames[1]
        assert [frame["seq"] for frame in frames[0]] == [1, 2]
        other.call("conversation:leave")
        assert [frame for frame in other.frames if "event" in frame] == []


# --- What is said to agents and to visitors ---------------------------------------------------


def test_typing_reaches_the_agents(api: Api, site: Site) -> None:
    page, conversation_id = talking(site, name="Luis")
    with api.socket() as agent, visitor_socket(api, page) as visitor:
        agent.call("conversation:join", conversation_id)
        visitor.call("conversation:join")
        person = {"userId": page.lead_id, "email": None, "name": "Luis"}
        assert visitor.call("typing:start")["ok"]
        started = agent.wait_event("typing:start")
        assert (started["conversationId"], started["data"]) == (conversation_id, person)
        assert agent.wait_event("typing:stop")["data"] == person
        visitor.call("typing:start")
        agent.wait_event("typing:start")
        visitor.call("typing:stop")
        agent.wait_event("typing:stop", timeout=4)
        visitor.call("typing:start")
        agent.wait_event("typing:start")
        visitor.connection.close()
        agent.wait_event("typing:stop", timeout=4)


def test_agents_typing_reaches_the_visitor_by_name(api: Api, site: Site) -> None:
    """Whoever has no name is "Agent"; no e-mail, no id, not even a part of one."""
    page, conversation_id = talking(site)
    named, nameless = api.new_user("ADMIN", name="Bea"), api.new_user("ADMIN")
    with visitor_socket(api, page) as visitor:
        visitor.call("conversation:join")
        for agent, name in ((named, "Bea"), (nameless, "Agent")):
            with agent.socket() as socket:
                socket.call("conversation:join", conversation_id)
                socket.call("typing:start", conversation_id)
                agent.send(conversation_id, "hello")
            started = visitor.wait_event("typing:start")
            assert (started["conversationId"], started["data"]) == (conversation_id, {"name": name})
            assert visitor.wait_event("typing:stop")["data"] == {"name": name}
            message = visitor.wait_event("message:new")["data"]["message"]
            assert message["sender"] == {"name": name}


def status_of(api: Api, message: dict[str, Any]) -> str:
    items = api.get(f"/conversations/{message['conversationId']}/messages")["items"]
    return str(next(item["status"] for item in items if item["id"] == message["id"]))


@pytest.fixture
def replies(api: Api, site: Site) -> tuple[PublicApi, str, list[dict[str, Any]]]:
    """A visitor, the conversation, and two replies: public numbers 2 and 3, agents' 3 and 4."""
    page, conversation_id = talking(site)
    api.send(conversation_id, "a note", private=True)
    return page, conversation_id, [api.send(conversation_id, text) for text in ("one", "two")]


@pytest.mark.parametrize(
    ("command", "status"), [("message:delivered", "delivered"), ("message:seen", "read")]
)
def test_marks_reach_the_agents(
    api: Api,
    replies: tuple[PublicApi, str, list[dict[str, Any]]],
    command: str,
    status: str,
) -> None:
    page, conversation_id, (first, second) = replies
    with api.socket() as agent, visitor_socket(api, page) as visitor:
        agent.call("conversation:join", conversation_id)
        assert visitor.call(command, {"seq": 2})["data"] == {}
        push = agent.wait_event("message:status")
        assert push["conversationId"] == conversation_id
        assert push["data"] == {
            "messageId": first["id"],
            "seq": 3,
            "status": status,
            "error": None,
        }
        assert status_of(api, second) == "sent"
        assert visitor.call(command, {"seq": 1_000})["ok"]
        assert agent.wait_event("message:status")["data"]["messageId"] == second["id"]
        assert visitor.call(command, {"seq": 3})["ok"]
        agent.call("conversation:leave", UNKNOWN)
        assert [each for each in agent.frames if each.get("event") == "message:status"] == []
        assert "message:status" not in [each.get("event") for each in visitor.frames]
    assert status_of(api, first) == status_of(api, second) == status


def test_resuming_marks_as_delivered(
    api: Api, replies: tuple[PublicApi, str, list[dict[str, Any]]]
) -> None:
    page, conversation_id, (first, second) = replies
    with visitor_socket(api, page) as visitor:
        visitor.call("conversation:join", {"conversationId": conversation_id, "afterSeq": 2})
        wait_until(lambda: status_of(api, first) == "delivered")
        assert status_of(api, second) == "sent"


def test_marks_without_a_conversation_do_nothing(api: Api, site: Site) -> None:
    with visitor_socket(api, site.visitor()) as visitor:
        assert visitor.call("message:delivered", {"seq": 5})["ok"]
        assert visitor.call("message:seen", {"seq": 5})["ok"]


def test_nothing_of_the_inbox_reaches_the_visitor(api: Api, site: Site) -> None:
    """As on the stage of test_public_privacy, here with everything real."""
    page, conversation_id = talking(site)
    agent = api.new_user(name="Bea")
    with api.socket() as admin, visitor_socket(api, page) as visitor:
        visitor.call("conversation:join")
        admin.call("conversation:join", conversation_id)
        api.post(f"/conversations/{conversation_id}/assign", {"agentId": agent.user["id"]})
        api.patch(f"/conversations/{conversation_id}", {"priority": "HIGH", "tags": ["vip"]})
        api.patch(f"/leads/{page.lead_id}", {"name": "Renamed", "email": "luis@lead.example"})
        api.send(conversation_id, "a PRIVATE note", private=True)
        api.post(f"/conversations/{conversation_id}/analyze")
        admin.wait_event("conversation:ai:update", timeout=20)
        with agent.socket() as second:
            second.call("conversation:join", conversation_id)
        api.send(conversation_id, "the end")
        assert visitor.wait_event("message:new")["data"]["message"]["contentText"] == "the end"
        events = [frame for frame in visitor.frames if frame.get("event") not in (None, "ping")]
        assert events == []


def test_visitors_are_not_present(api: Api, site: Site) -> None:
    """Agents see each other; a visitor is neither online nor viewing."""
    page, conversation_id = talking(site)
    with visitor_socket(api, page) as visitor, api.socket() as agent:
        visitor.call("conversation:join")
        agent.call("conversation:join", conversation_id)

        def viewing(frame: dict[str, Any]) -> bool:
            return frame.get("conversationId") == conversation_id and "viewing" in frame["data"]

        data = agent.wait(viewing)["data"]
        assert data["viewingCount"] == 1
        assert [person["userId"] for person in data["viewing"]] == [api.user["id"]]
        assert "messaging_visitor_sockets 1.0" in httpx.get(f"{api.url}/metrics").text


# --- The end of a session ---------------------------------------------------------------------


def test_a_lead_that_is_erased_is_sent_away(api: Api, site: Site) -> None:
    page, other = talking(site)[0], talking(site)[0]
    with visitor_socket(api, page) as socket, visitor_socket(api, other) as untouched:
        socket.call("conversation:join")
        api.delete(f"/leads/{page.lead_id}")
        assert close_code(socket.connection) == 4401
        assert untouched.call("conversation:join")["ok"]


def test_a_visitor_that_is_identified_starts_again(api: Api, site: Site) -> None:
    """The anonymous session has ended; the new one has the conversation."""
    page, conversation_id = talking(site)
    with visitor_socket(api, page) as socket:
        socket.call("conversation:join")
        known = site.visitor(identityToken=site.identity("u-3"), visitorToken=page.visitor_token)
        assert close_code(socket.connection) == 4401
    with unknown_visitor(api) as replay:
        replay.send({"event": "auth", "data": {"token": page.session["sessionToken"]}})
        assert replay.close_code() == 4401
    with visitor_socket(api, known) as socket:
        assert socket.call("conversation:join")["data"]["conversationId"] == conversation_id


def test_the_other_device_gets_the_conversation(api: Api, site: Site) -> None:
    """A verified lead had none until a visitor turned out to be this lead."""
    laptop = site.visitor(identityToken=site.identity("u-4"))
    with visitor_socket(api, laptop) as socket:
        assert socket.call("conversation:join")["data"]["conversationId"] is None
        phone, conversation_id = talking(site)
        site.open(identityToken=site.identity("u-4"), visitorToken=phone.visitor_token)
        push = socket.wait_event("message:new")
        assert (push["conversationId"], push["seq"]) == (conversation_id, 1)


def test_the_newer_conversation_goes_on(api: Api, site: Site) -> None:
    """A verified lead had one already: its devices hear the visitor's instead, from number 1."""
    laptop = site.visitor(identityToken=site.identity("u-5"))
    older = laptop.send("from the laptop")["conversationId"]
    with visitor_socket(api, laptop) as socket:
        socket.call("conversation:join")
        phone, newer = talking(site)
        phone.send("and more")
        site.open(identityToken=site.identity("u-5"), visitorToken=phone.visitor_token)
        removed = socket.wait_event("conversation:removed")
        assert (removed["conversationId"], removed["data"]) == (older, {"reason": "replaced"})
        heard = [socket.wait_event("message:new") for _ in range(2)]
        assert [(frame["conversationId"], frame["seq"]) for frame in heard] == [
            (newer, 1),
            (newer, 2),
        ]
        assert socket.call("conversation:join", older)["error"]["code"] == "not_found"
        api.send(newer, "a reply")
        assert socket.wait_event("message:new")["seq"] == 3


def test_a_deleted_inbox(api: Api) -> None:
    site = Site(api)
    page, _ = talking(site)
    with visitor_socket(api, page) as socket:
        socket.call("conversation:join")
        api.delete(f"/inboxes/{site.id}")
        assert close_code(socket.connection) == 4401
    site.close()
