"""Every public call as everybody: whose session opens what, and what opens nothing."""

import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import jwt
import pytest

from messaging_server.app import create_app
from messaging_server.inboxes.origins import PUBLIC_PREFIX
from tests.client import Api
from tests.conftest import SECRET, make_config
from tests.public.site import HOUR, PublicApi, Site, signed

KEY = hmac.new(SECRET.encode(), b"visitor", hashlib.sha256).digest()

MESSAGES = f"{PUBLIC_PREFIX}/messages"
SEEN = f"{PUBLIC_PREFIX}/seen"
CALLS: dict[tuple[str, str], Any] = {
    ("GET", MESSAGES): None,
    ("GET", f"{MESSAGES}?afterSeq=1"): None,
    ("POST", MESSAGES): {"contentText": "from whom?"},
    ("POST", SEEN): {"seq": 100},
}
"""What needs a session, with a good body."""

OPEN = {
    ("GET", f"{PUBLIC_PREFIX}/inboxes/{{inbox_id:uuid}}"),
    ("POST", f"{PUBLIC_PREFIX}/inboxes/{{inbox_id:uuid}}/sessions"),
}
"""What needs none."""

ELSEWHERE = {("POST", f"{PUBLIC_PREFIX}/attachments")}
"""`tests/attachments` has its own matrix."""


def test_the_matrix_has_every_public_route() -> None:
    app = create_app(make_config("postgresql://nowhere/nothing"))
    found = {
        (str(method), route.path)
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in ("OPTIONS", "HEAD") and route.path.startswith(PUBLIC_PREFIX)
    }
    matrix = {(method, path.partition("?")[0]) for method, path in CALLS}
    assert found - ELSEWHERE == matrix | OPEN


class World:
    """A visitor with a conversation, and everybody who must not get at it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.site, self.other_site = Site(api), Site(api)
        self.visitor = self.site.visitor(name="Ana")
        self.conversation_id = self.visitor.send("mine")["conversationId"]
        api.send(self.conversation_id, "the answer")
        session_token = self.visitor.session["sessionToken"]
        claims = jwt.decode(session_token, options={"verify_signature": False})
        now = int(time.time())
        merged = self.site.visitor()
        merged.send("before")
        user = uuid4().hex
        self.site.open(identityToken=self.site.identity(user))
        self.site.open(identityToken=self.site.identity(user), visitorToken=merged.visitor_token)
        identified = self.site.visitor()
        self.site.open(
            identityToken=self.site.identity(uuid4().hex), visitorToken=identified.visitor_token
        )
        erased = self.site.visitor()
        api.delete(f"/leads/{erased.lead_id}")
        closed = Site(api)
        homeless = closed.visitor()
        api.delete(f"/inboxes/{closed.id}")
        closed.close()
        header, payload, signature = session_token.split(".")
        other_claims = {**claims, "inbox": self.other_site.id}
        self.refused: dict[str, str | None] = {
            "nobody": None,
            "garbage": "garbage",
            "an agent": api.new_user().token,
            "an ADMIN": api.token,
            "an API key": api.new_key().token,
            "the visitor's own token": self.visitor.visitor_token,
            "an identity token": self.site.identity("somebody"),
            "merged": merged.session["sessionToken"],
            "identified": identified.session["sessionToken"],
            "erased": erased.session["sessionToken"],
            "deleted inbox": homeless.session["sessionToken"],
            "expired": signed(KEY, {**claims, "exp": now - 1}),
            "the server's own key": signed(SECRET, claims),
            "another key": signed("x" * 32, claims),
            "the inbox's key": signed(self.site.secret, claims),
            "no algorithm": signed("", claims, algorithm="none"),
            "no signature": f"{header}.{payload}.",
            "another's claims": f"{header}.{signed(KEY, other_claims).split('.')[1]}.{signature}",
            "no end": signed(KEY, {key: claims[key] for key in claims if key != "exp"}),
            "no inbox": signed(KEY, {key: claims[key] for key in claims if key != "inbox"}),
            "lead of another inbox": signed(KEY, other_claims),
            "an unknown lead": signed(KEY, {**claims, "sub": str(uuid4())}),
            "a lead that is no UUID": signed(KEY, {**claims, "sub": "x"}),
            "verified by itself": signed(KEY, {**claims, "verified": True}),
            "verified as text": signed(KEY, {**claims, "verified": "false"}),
            "an inbox that is a list": signed(KEY, {**claims, "inbox": [self.site.id]}),
        }
        self.others = {
            "another visitor": self.site.visitor(),
            "a visitor of another inbox": self.other_site.visitor(),
            "a verified lead": self.site.visitor(identityToken=self.site.identity(uuid4().hex)),
            "a verified lead of another inbox": self.other_site.visitor(
                identityToken=self.other_site.identity(uuid4().hex)
            ),
        }


@pytest.fixture(scope="module")
def world(api: Api) -> Iterator[World]:
    world = World(api)
    yield world
    world.site.close()
    world.other_site.close()


def call(page: PublicApi, url: str, key: tuple[str, str], token: str | None = None) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    method, path = key
    return page.http.request(method, url + path, json=CALLS[key], headers=headers)


def log_of(world: World) -> Any:
    return world.api.get(f"/conversations/{world.conversation_id}/messages")["items"]


@pytest.mark.parametrize("key", CALLS, ids=" ".join)
def test_what_opens_nothing(world: World, key: tuple[str, str]) -> None:
    before = log_of(world)
    page = world.site.page()
    for name, token in world.refused.items():
        answer = call(page, world.api.url, key, token)
        assert answer.status_code == 401, f"{name}: {answer.text}"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert log_of(world) == before


@pytest.mark.parametrize("key", CALLS, ids=" ".join)
def test_others_reach_their_own_only(world: World, key: tuple[str, str]) -> None:
    before = log_of(world)
    for name, page in world.others.items():
        answer = call(page, world.api.url, key)
        assert answer.is_success, f"{name}: {answer.text}"
        assert world.conversation_id not in answer.text, name
        assert "mine" not in answer.text, name
    assert log_of(world) == before


def test_the_visitor_itself(world: World) -> None:
    assert [message["contentText"] for message in world.visitor.messages()] == [
        "the answer",
        "mine",
    ]


def test_a_visitors_token_is_no_agents_token(world: World) -> None:
    for token in (
        world.visitor.session["sessionToken"],
        world.visitor.visitor_token,
        world.others["a verified lead"].session["sessionToken"],
    ):
        with Api(world.api.url, token) as visitor:
            for path in ("/auth/me", "/conversations", f"/conversations/{world.conversation_id}",
                         "/leads", "/inboxes", f"/leads/{world.visitor.lead_id}"):  # fmt: skip
                visitor.get(path, expect=401)
            visitor.post("/inbound", {}, expect=401)
            visitor.post("/receipts", {}, expect=401)


def test_a_token_in_the_address_is_refused(world: World) -> None:
    token = world.visitor.session["sessionToken"]
    page = world.site.page()
    for name in ("token", "sessionToken", "access_token"):
        assert page.http.get("/messages", params={name: token}).status_code == 400


def test_an_identity_token_is_good_until_it_ends(world: World) -> None:
    """Replayed, it opens the same lead; after its end, nothing."""
    site = world.site
    token = site.identity(uuid4().hex, exp=int(time.time()) + 6)
    first = site.open(identityToken=token)
    assert site.open(identityToken=token)["lead"] == first["lead"]
    time.sleep(6.1)
    site.open(identityToken=token, expect=401)
    assert site.page(first).messages() == []  # the session has a life of its own


def test_sessions_end_by_themselves(world: World) -> None:
    claims = jwt.decode(world.visitor.session["sessionToken"], KEY, algorithms=["HS256"])
    assert claims["exp"] - claims["iat"] == 12 * HOUR


def test_a_deleted_key_and_inbox_stop_at_once(api: Api) -> None:
    inbox = api.post("/inboxes", {"name": "Shop", "kind": "API"}, expect=201)
    made = api.post("/api-keys", {"name": "shop", "inboxId": inbox["id"]}, expect=201)
    with Api(api.url, made["key"]) as key:
        key.inbound("hello")
        api.delete(f"/inboxes/{inbox['id']}", expect=200)
        body = {"externalId": "x", "lead": {"name": "L"}, "message": {"contentText": "x"}}
        key.post("/inbound", body, expect=401)
        key.post("/receipts", {"receipts": []}, expect=401)


# --- Nobody becomes somebody else -------------------------------------------------------------


@pytest.mark.parametrize("field", ["email", "phone"])
def test_inbound_messages_never_reach_a_lead_that_typed_the_contact(
    api: Api, world: World, field: str
) -> None:
    """A visitor types a customer's e-mail and waits for the customer's messages."""
    value = f"victim-{uuid4().hex[:8]}@example.com"
    attacker = world.site.visitor(email=value)
    attacker.send("waiting")
    if field == "phone":
        api.patch(f"/leads/{attacker.lead_id}", {"phone": value})
    with api.new_key() as key:
        result = key.inbound("my secret", lead={"name": "Victim", field: value})
        assert result["leadId"] != attacker.lead_id
        again = key.inbound("another secret", lead={"name": "Victim", field: value.upper()})
        assert again["leadId"] != attacker.lead_id
    assert [message["contentText"] for message in attacker.messages()] == ["waiting"]


def test_identified_with_a_typed_email_is_no_proof_of_it(api: Api, world: World) -> None:
    """The website vouches for who it is, not for what was typed before."""
    value = f"victim-{uuid4().hex[:8]}@example.com"
    site = world.site
    guest = site.visitor(email=value)
    guest.send("waiting")
    user = uuid4().hex
    attacker = site.visitor(identityToken=site.identity(user), visitorToken=guest.visitor_token)
    assert attacker.lead_id == guest.lead_id
    assert api.get(f"/leads/{attacker.lead_id}")["verified"] is False
    with api.new_key() as key:
        result = key.inbound("my secret", lead={"name": "Victim", "email": value})
        assert result["leadId"] != attacker.lead_id
    site.open(identityToken=site.identity(user, email="own@example.com"))
    assert api.get(f"/leads/{attacker.lead_id}")["verified"] is True


def test_a_typed_email_merges_nobody(api: Api, world: World) -> None:
    value = f"ana-{uuid4().hex[:8]}@example.com"
    site = world.site
    known = site.visitor(identityToken=site.identity(uuid4().hex, email=value))
    known.send("private to me")
    made = api.post("/leads", {"name": "Ana", "email": value.upper()})
    stranger = site.visitor(email=value)
    assert stranger.lead_id not in (known.lead_id, made["id"])
    assert stranger.messages() == []
    duplicates = api.get(f"/leads/{stranger.lead_id}")["possibleDuplicates"]
    assert [lead["id"] for lead in duplicates] == [made["id"], known.lead_id]
