"""Who a session speaks for: anonymous visitors, verified leads, and how one becomes the other."""

import asyncio
import time
import warnings
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import pytest
from jwt.warnings import InsecureKeyLengthWarning

from messaging_server.conversations.visitors import forget_expired_visitors
from messaging_server.database import Database
from messaging_server.events import Bus
from tests.api import shapes
from tests.api.shapes import check
from tests.client import Api, together
from tests.conftest import SECRET
from tests.public.site import HOUR, PublicApi, Site, signed, sql

SESSION = {
    "sessionToken": str,
    "expiresAt": shapes.time,
    "visitorToken": (str, None),
    "lead": {"id": shapes.uuid7, "name": str, "verified": bool},
    "conversationId": (shapes.uuid7, None),
    "lastSeq": int,
}


def subject() -> str:
    return f"user-{uuid4().hex[:8]}"


# --- Anonymous --------------------------------------------------------------------------------


def test_a_new_visitor(api: Api, site: Site) -> None:
    session = site.open(name="Ana", email=" Ana@Example.com ")
    check(session, SESSION)
    assert session["lead"]["name"] == "Ana"
    assert session["lead"]["verified"] is False
    assert (session["conversationId"], session["lastSeq"]) == (None, 0)
    lead = api.get(f"/leads/{session['lead']['id']}")
    assert (lead["email"], lead["verified"]) == ("Ana@Example.com", False)
    assert site.open()["lead"]["name"] == "Visitor"
    assert api.get("/conversations", search="Ana@Example.com")["items"] == []


def test_a_visitor_comes_back(api: Api, site: Site) -> None:
    first = site.visitor()
    conversation_id = first.send()["conversationId"]
    api.send(conversation_id)
    again = site.open(visitorToken=first.visitor_token, name="Ana", email="ana@example.com")
    assert again["lead"] == {"id": first.lead_id, "name": "Ana", "verified": False}
    assert again["visitorToken"] is None
    assert (again["conversationId"], again["lastSeq"]) == (conversation_id, 2)
    page = site.page(again)
    assert [message["seq"] for message in page.messages()] == [2, 1]
    assert page.messages()[1]["sender"] == {"name": "Ana"}
    assert api.get(f"/conversations/{conversation_id}")["lead"]["email"] == "ana@example.com"
    unchanged = site.open(visitorToken=first.visitor_token)
    assert unchanged["lead"] == again["lead"]


def test_a_visitor_does_not_overrule_an_agent(api: Api, site: Site) -> None:
    agent = api.new_user()
    visitor = site.visitor(email="old@example.com")
    conversation_id = visitor.send()["conversationId"]
    api.post(f"/conversations/{conversation_id}/assign", {"agentId": agent.user["id"]})
    agent.patch(f"/leads/{visitor.lead_id}", {"email": "right@example.com"})
    site.open(visitorToken=visitor.visitor_token, email="other@example.com")
    assert api.get(f"/leads/{visitor.lead_id}")["email"] == "right@example.com"


def test_the_visitors_token_slides_and_runs_out(public_dsn: str, site: Site) -> None:
    visitor = site.visitor()
    token = visitor.visitor_token
    soon = "update visitors set expires_at = now() + interval '1 minute' where lead_id = $1"
    days = "select extract(day from expires_at - now()) as n from visitors where lead_id = $1"
    for left in (1, 179):  # before the first message, and after it
        sql(public_dsn, soon, visitor.lead_id)
        assert site.open(visitorToken=token)["lead"]["id"] == visitor.lead_id
        assert sql(public_dsn, days, visitor.lead_id)[0]["n"] == left
        visitor.send()
        assert sql(public_dsn, days, visitor.lead_id)[0]["n"] == 179
    stored = "select token_hash from visitors where lead_id = $1"
    assert token.encode() not in sql(public_dsn, stored, visitor.lead_id)[0]["token_hash"]
    past = "update visitors set expires_at = now() where lead_id = $1"
    sql(public_dsn, past, visitor.lead_id)
    fresh = site.open(visitorToken=token)
    assert fresh["lead"]["id"] != visitor.lead_id
    assert fresh["visitorToken"] not in (None, token)


def test_forgotten_visitors(api: Api, public_dsn: str, site: Site) -> None:
    """A lead that never wrote goes with its token; one that wrote, or is known, stays."""
    silent, writer, known, later = (site.visitor() for _ in range(4))
    conversation_id = writer.send()["conversationId"]
    site.open(identityToken=site.identity(subject()), visitorToken=known.visitor_token)
    past = "update visitors set expires_at = now() where lead_id = any($1)"
    closed = Site(api)
    homeless = closed.visitor()
    api.delete(f"/inboxes/{closed.id}")
    closed.close()
    sql(public_dsn, past, [page.lead_id for page in (silent, writer, known, homeless)])

    async def forget() -> None:
        database = Database(public_dsn, pool_size=2, bus=Bus())
        await database.start()
        await forget_expired_visitors(database)
        await database.stop()

    asyncio.run(forget())
    for page in (silent, homeless):
        api.get(f"/leads/{page.lead_id}", expect=404)
    for page in (writer, known, later):
        api.get(f"/leads/{page.lead_id}", expect=200)
    left = sql(public_dsn, "select lead_id from visitors where lead_id = $1", writer.lead_id)
    assert left == []
    assert api.get(f"/conversations/{conversation_id}")["lead"]["id"] == writer.lead_id
    assert site.open(visitorToken=later.visitor_token)["lead"]["id"] == later.lead_id


def test_an_unknown_visitors_token_is_a_new_visitor(site: Site) -> None:
    session = site.open(visitorToken="vt_" + "x" * 43)
    assert session["visitorToken"] not in (None, "vt_" + "x" * 43)


@pytest.mark.parametrize("token", ["", "vt_", "x" * 46, "vt_" + "x" * 42, "vt_" + "é" * 43])
def test_a_malformed_visitors_token_is_an_error(site: Site, token: str) -> None:
    error = site.open(visitorToken=token, expect=400)
    assert error["details"][0]["field"] == "visitorToken"


def test_a_visitors_token_is_for_one_inbox(api: Api, site: Site) -> None:
    visitor = site.visitor()
    other = Site(api)
    assert other.open(visitorToken=visitor.visitor_token)["lead"]["id"] != visitor.lead_id
    other.close()


def test_only_widget_inboxes_have_sessions(api: Api, site: Site) -> None:
    mine = api.post("/inboxes", {"name": "Shop", "kind": "API"}, expect=201)
    nobody = site.page()
    for inbox_id in (mine["id"], str(uuid4())):
        nobody.post(f"/inboxes/{inbox_id}/sessions", {}, expect=404)
        nobody.get(f"/inboxes/{inbox_id}", expect=404)


def test_what_a_widget_shows(api: Api) -> None:
    site = Site(api, greeting="Hello!", allowedOrigins=["https://shop.example"])
    shown = site.page().get(f"/inboxes/{site.id}")
    assert shown == {"id": site.id, "name": site.inbox["name"], "greeting": "Hello!"}
    site.close()


# --- Identity tokens --------------------------------------------------------------------------


def test_a_verified_lead_is_the_same_everywhere(api: Api, site: Site) -> None:
    user = subject()
    known = {"name": "Ana", "email": "ana@example.com", "phone": "+34 600"}
    phone = site.visitor(identityToken=site.identity(user, **known))
    assert phone.session["lead"]["verified"] is True
    assert phone.session["visitorToken"] is None
    message = phone.send("from my phone")
    laptop = site.visitor(identityToken=site.identity(user))
    assert laptop.lead_id == phone.lead_id
    assert laptop.session["conversationId"] == message["conversationId"]
    assert [item["contentText"] for item in laptop.messages()] == ["from my phone"]
    lead = api.get(f"/leads/{phone.lead_id}")
    assert {key: lead[key] for key in known} == known
    assert lead["verified"] is True


def test_claims_change_the_lead(api: Api, site: Site) -> None:
    user = subject()
    session = site.open(identityToken=site.identity(user, name="Ana", email="a@example.com"))
    again = site.open(identityToken=site.identity(user, name="Ana Gil"), name="Mallory")
    assert again["lead"] == {**session["lead"], "name": "Ana Gil"}
    assert api.get(f"/leads/{session['lead']['id']}")["email"] == "a@example.com"


def test_one_identity_in_two_inboxes_is_two_leads(api: Api, site: Site) -> None:
    user, other = subject(), Site(api)
    mine = site.open(identityToken=site.identity(user))
    assert other.open(identityToken=other.identity(user))["lead"]["id"] != mine["lead"]["id"]
    other.close()


def test_first_sessions_at_the_same_moment_make_one_lead(site: Site) -> None:
    token = site.identity(subject())
    sessions = together([lambda: site.open(identityToken=token)] * 30)
    assert len({session["lead"]["id"] for session in sessions}) == 1


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(time.time()) - 1},
    "too long": {"exp": int(time.time()) + 25 * HOUR},
    "not yet": {"nbf": int(time.time()) + HOUR},
    "from the future": {"iat": int(time.time()) + HOUR},
}
MALFORMED_CLAIMS: dict[str, dict[str, Any]] = {
    "no subject": {"sub": None},
    "empty subject": {"sub": ""},
    "long subject": {"sub": "x" * 201},
    "a number for a subject": {"sub": 7},
    "no end": {"exp": None},
    "end as text": {"exp": "tomorrow"},
    "end before time": {"exp": -1},
    "end after time": {"exp": 1e300},
    "NUL in subject": {"sub": "a\0b"},
    "NUL in name": {"name": "a\0b"},
    "half a character": {"name": "\ud800"},
    "empty name": {"name": ""},
    "no e-mail": {"email": "ana"},
    "e-mail as list": {"email": ["ana@example.com"]},
}


@pytest.mark.parametrize("case", BAD_CLAIMS)
def test_identity_tokens_that_are_not_valid_now(site: Site, case: str) -> None:
    token = site.identity(subject(), **BAD_CLAIMS[case])
    assert site.open(identityToken=token, expect=401)["code"] == "unauthenticated"


@pytest.mark.parametrize("case", MALFORMED_CLAIMS)
def test_claims_of_the_wrong_form(site: Site, case: str) -> None:
    claims = {"sub": subject(), "exp": int(time.time()) + HOUR, **MALFORMED_CLAIMS[case]}
    present = {key: value for key, value in claims.items() if value is not None}
    token = signed(site.secret, present)
    error = site.open(identityToken=token, expect=400)
    assert [detail["field"] for detail in error["details"]] == ["identityToken"]


def forged_tokens(api: Api, site: Site) -> dict[str, str]:
    good = {"sub": subject(), "exp": int(time.time()) + HOUR}
    genuine = site.identity(subject())
    header, payload, signature = genuine.split(".")
    other = Site(api)
    other.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # it asks for longer keys
        another_algorithm = signed(site.secret, good, algorithm="HS512")
    return {
        "garbage": "garbage",
        "dots": "..",
        "another key": signed("x" * 64, good),
        "another inbox": signed(other.secret, good),
        "the server's key": signed(SECRET, good),
        "the recognisable piece": signed(site.inbox["secretPrefix"].ljust(32, "_"), good),
        "no algorithm": signed("", good, algorithm="none"),
        "another algorithm": another_algorithm,
        "no signature": f"{header}.{payload}.",
        "cut signature": genuine[:-4],
        "changed claims": f"{header}.{signed('x' * 64, good).split('.')[1]}.{signature}",
        "an agent's token": str(api.token),
        "a visitor's token": site.open()["sessionToken"],
        "é": "é.é.é",
    }


def test_forged_identity_tokens(api: Api, site: Site) -> None:
    tokens = forged_tokens(api, site)
    before = api.get("/leads", limit=1)["items"]
    for name, token in tokens.items():
        error = site.open(identityToken=token, expect=401)
        assert error["message"] == "The identity token is not valid", name
    assert api.get("/leads", limit=1)["items"] == before


def test_a_wrong_identity_leaves_the_visitor_as_it_was(site: Site) -> None:
    visitor = site.visitor()
    visitor.send()
    expired = site.identity(subject(), exp=int(time.time()) - 1)
    site.open(identityToken=expired, visitorToken=visitor.visitor_token, expect=401)
    assert len(visitor.messages()) == 1
    assert site.open(visitorToken=visitor.visitor_token)["lead"]["id"] == visitor.lead_id


def test_a_new_secret_leaves_time_for_the_old_one(public_dsn: str, site: Site) -> None:
    token = site.identity(subject())
    path = f"/inboxes/{site.id}/rotate-secret"
    first_secret, site.secret = site.secret, site.admin.post(path, expect=200)["secret"]
    assert site.open(identityToken=token)["lead"]["verified"] is True
    site.open(identityToken=site.identity(subject()))
    past = "update inboxes set previous_secret_until = now() where id = $1"
    sql(public_dsn, past, site.id)
    site.open(identityToken=token, expect=401)
    site.admin.post(path, expect=200)
    site.admin.post(path, expect=200)
    site.open(identityToken=signed(first_secret, {"sub": "u", "exp": 1}), expect=401)
    site.open(identityToken=site.identity(subject()), expect=401)


# --- A visitor is identified ------------------------------------------------------------------


def ended(page: PublicApi) -> bool:
    """Whether no call works any more."""
    answers = [
        page.http.get("/messages"),
        page.http.post("/messages", json={"contentText": "still here?"}),
        page.http.post("/seen", json={"seq": 1}),
    ]
    return [answer.status_code for answer in answers] == [401] * 3


def test_the_first_identity_keeps_lead_and_conversation(api: Api, site: Site) -> None:
    visitor = site.visitor(name="guest", email="typed@example.com")
    message = visitor.send("before", clientMessageId="m1")
    user = subject()
    token = site.identity(user, name="Ana", email="ana@example.com")
    known = site.visitor(identityToken=token, visitorToken=visitor.visitor_token)
    assert known.lead_id == visitor.lead_id
    assert known.session["conversationId"] == message["conversationId"]
    assert known.session["lastSeq"] == 1
    repeated = {"contentText": "before", "clientMessageId": "m1"}
    assert known.post("/messages", repeated, expect=200)["id"] == message["id"]
    known.send("after")
    assert ended(visitor)
    assert len(known.messages()) == 2
    conversation = api.get(f"/conversations/{message['conversationId']}")
    assert conversation["lead"]["name"] == "Ana"
    lead = api.get(f"/leads/{known.lead_id}")
    assert (lead["email"], lead["verified"]) == ("ana@example.com", True)


def test_a_known_identity_gets_the_visitors_conversation(api: Api, site: Site) -> None:
    user = subject()
    phone = site.visitor(identityToken=site.identity(user, name="Ana"))
    older = phone.send("from my phone")["conversationId"]
    guest = site.visitor(name="guest")
    message = guest.send("from the laptop", clientMessageId="m1")
    moved = message["conversationId"]
    api.patch(f"/leads/{guest.lead_id}", {"attributes": {"plan": "free", "size": 3}})
    api.patch(f"/leads/{phone.lead_id}", {"attributes": {"plan": "pro"}})
    phone.send("again from my phone")
    before = api.get(f"/conversations/{moved}")

    laptop = site.visitor(identityToken=site.identity(user), visitorToken=guest.visitor_token)
    assert laptop.lead_id == phone.lead_id != guest.lead_id
    assert laptop.session["conversationId"] == moved
    assert laptop.messages()[0]["sender"] == {"name": "Ana"}
    repeated = {"contentText": "from the laptop", "clientMessageId": "m1"}
    assert laptop.post("/messages", repeated, expect=200)["id"] == message["id"]
    laptop.post("/messages", {**repeated, "contentText": "other"}, expect=409)

    assert ended(guest)
    api.get(f"/leads/{guest.lead_id}", expect=404)
    assert site.open(visitorToken=guest.visitor_token)["lead"]["id"] not in (
        guest.lead_id,
        phone.lead_id,
    )
    conversation = api.get(f"/conversations/{moved}")
    assert conversation["lead"]["id"] == phone.lead_id
    assert conversation["lead"]["attributes"] == {"plan": "pro", "size": 3}
    analysed_meanwhile = conversation["ai"] != before["ai"]
    assert conversation["version"] == before["version"] + 1 + analysed_meanwhile
    log = api.get(f"/conversations/{moved}/messages")["items"]
    assert [item["sender"]["id"] for item in log] == [phone.lead_id]
    assert api.get(f"/conversations/{older}/messages")["items"][0]["contentText"]
    # The phone's session is still good; it goes on where the lead wrote last.
    assert phone.send("here too")["conversationId"] == moved


@pytest.mark.parametrize("known_before", [False, True])
def test_what_was_uploaded_goes_along(site: Site, known_before: bool) -> None:
    user, guest = subject(), site.visitor()
    if known_before:
        site.open(identityToken=site.identity(user))
    files = {"file": ("a.txt", b"hello", "text/plain")}
    uploaded = Api.unwrap(guest.http.post("/attachments", files=files), 201)
    page = site.visitor(identityToken=site.identity(user), visitorToken=guest.visitor_token)
    body = {"contentType": "FILE", "attachmentIds": [uploaded["id"]]}
    (attachment,) = page.post("/messages", body, expect=201)["attachments"]
    assert attachment["id"] == uploaded["id"]


def test_a_visitor_without_messages_is_only_forgotten(api: Api, site: Site) -> None:
    user = subject()
    known = site.visitor(identityToken=site.identity(user))
    conversation_id = known.send()["conversationId"]
    guest = site.visitor()
    again = site.open(identityToken=site.identity(user), visitorToken=guest.visitor_token)
    assert again["lead"]["id"] == known.lead_id
    assert again["conversationId"] == conversation_id
    api.get(f"/leads/{guest.lead_id}", expect=404)


def test_agents_hear_of_the_merge(api: Api, site: Site) -> None:
    user = subject()
    site.open(identityToken=site.identity(user, name="Ana"))
    guest = site.visitor()
    moved = guest.send()["conversationId"]
    with api.socket() as socket:
        site.open(identityToken=site.identity(user), visitorToken=guest.visitor_token)
        pushed = socket.wait(
            lambda frame: (
                frame.get("event") == "conversation:updated"
                and frame["conversationId"] == moved
                and frame["data"]["conversation"]["lead"]["name"] == "Ana"
            )
        )
    assert pushed["data"]["conversation"] == api.get(f"/conversations/{moved}")


def test_the_token_of_a_shared_computer_opens_nothing(site: Site) -> None:
    visitor = site.visitor()
    visitor.send("secret")
    site.open(identityToken=site.identity(subject()), visitorToken=visitor.visitor_token)
    next_one = site.visitor(visitorToken=visitor.visitor_token)
    assert next_one.lead_id != visitor.lead_id
    assert next_one.messages() == []
    somebody = site.visitor(
        identityToken=site.identity(subject()), visitorToken=visitor.visitor_token
    )
    assert somebody.messages() == []


def test_two_devices_are_identified_at_the_same_moment(api: Api, site: Site) -> None:
    user = subject()
    guests = [site.visitor() for _ in range(8)]
    conversations = {guest.send()["conversationId"] for guest in guests}
    sessions = together(
        [
            lambda guest=guest: site.open(
                identityToken=site.identity(user), visitorToken=guest.visitor_token
            )
            for guest in guests
        ]
        * 3
    )
    (lead_id,) = {session["lead"]["id"] for session in sessions}
    for conversation_id in conversations:
        conversation = api.get(f"/conversations/{conversation_id}")
        assert conversation["lead"]["id"] == lead_id
        (message,) = api.get(f"/conversations/{conversation_id}/messages")["items"]
        assert message["sender"]["id"] == lead_id
    remaining = {guest.lead_id for guest in guests} - {lead_id}
    assert len(remaining) == 7
    for gone in remaining:
        api.get(f"/leads/{gone}", expect=404)


def test_nothing_is_lost_when_a_visitor_writes_while_being_identified(api: Api, site: Site) -> None:
    user = subject()
    site.open(identityToken=site.identity(user))
    for round_number in range(10):
        guest = site.visitor()
        if round_number % 2:
            guest.send("the first")

        def write(guest: PublicApi = guest) -> int:
            answer = guest.http.post("/messages", json={"contentText": "meanwhile"})
            return answer.status_code

        def identify(guest: PublicApi = guest) -> int:
            token = site.identity(user)
            session = site.open(identityToken=token, visitorToken=guest.visitor_token)
            return int(bool(session))

        results = together([write, identify, write])
        accepted = sum(status == 201 for status in results)
        assert set(results) <= {201, 401, 1}
        api.get(f"/leads/{guest.lead_id}", expect=404)
        known = site.visitor(identityToken=site.identity(user))
        log = [item for item in known.messages() if item["contentText"] == "meanwhile"]
        if accepted:
            assert len(log) == accepted
        if conversation_id := known.session["conversationId"]:
            assert api.get(f"/conversations/{conversation_id}")["lead"]["id"] == known.lead_id
        else:  # nobody has written yet: the first visitor came too late twice
            assert (round_number, accepted) == (0, 0)


def test_first_messages_while_the_visitor_logs_in(site: Site) -> None:
    """Whoever is first, nobody waits for ever, and what was stored is in one conversation."""

    def write(visitor: PublicApi, number: int) -> httpx.Response:
        body = {"contentText": "hello", "clientMessageId": str(number)}
        return visitor.http.post("/messages", json=body)

    for _ in range(6):
        visitor = site.visitor()
        token = site.identity(subject())
        known = {"identityToken": token, "visitorToken": visitor.visitor_token}
        writing = [partial(write, visitor, number) for number in range(4)]
        log_in = partial(site.page().http.post, site.path, json=known)
        *sent, logged_in = together([*writing, log_in])
        assert logged_in.status_code == 201, logged_in.text
        assert {answer.status_code for answer in sent} <= {201, 401}
        stored = [answer.json()["data"] for answer in sent if answer.status_code == 201]
        assert len({message["conversationId"] for message in stored}) <= 1
        now = site.visitor(identityToken=token)
        assert {each["id"] for each in now.messages()} == {each["id"] for each in stored}
