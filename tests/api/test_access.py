"""Who may call what: every route for every kind of caller, and nothing told about foreign ids."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import jwt
import pytest

from messaging_server.app import create_app
from tests.client import PASSWORD, Api, LiveServer, wait_until
from tests.conftest import SECRET, make_config

V1 = "/api/v1"
CONVERSATION = f"{V1}/conversations/{{conversation_id:uuid}}"
ATTACHMENT = f"{V1}/attachments/{{attachment_id:uuid}}"
FEEDBACK = f"{CONVERSATION}/analyses/{{analysis_id:uuid}}/feedback"
WEBHOOK = f"{V1}/webhooks/{{webhook_id:uuid}}"
RETRY = f"{WEBHOOK}/deliveries/{{delivery_id:uuid}}/retry"
NO_TOKEN = ("nobody", "garbage", "expired", "revoked")
CALLERS = (*NO_TOKEN, "key", "visitor", "owner", "stranger", "admin")
PUBLIC_V1 = "/api/public/v1"
INBOX = f"{V1}/inboxes/{{inbox_id:uuid}}"
PUBLIC_INBOX = f"{PUBLIC_V1}/inboxes/{{inbox_id:uuid}}"


class Route(NamedTuple):
    """`owner`, `stranger` and `admin`: the status that this agent, another one, and ADMIN get."""

    path: str
    owner: int
    stranger: int
    admin: int
    body: Any = None
    key: int = 401
    visitor: int = 401
    nobody: int = 401
    fresh_caller: bool = False
    files: Any = None


class World:
    """What the routes are called about; each lead, key and user is there to be used up."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.without_token = {
            "nobody": Api(api.url),
            "garbage": Api(api.url, "garbage"),
            "expired": Api(api.url, expired(api)),
            "revoked": Api(api.url, revoked(api)),
        }
        self.callers: dict[str, Api] = {
            **self.without_token,
            "key": api.new_key(),
            "visitor": self.new_visitor(),
            "owner": api.new_user(),
            "stranger": api.new_user(),
            "admin": api,
        }
        owner = self.callers["owner"]
        self.conversation = api.new_conversation(owner)

    def path_of(self, template: str) -> str:
        ids: dict[str, Callable[[], str]] = {
            "{conversation_id:uuid}": lambda: self.conversation["id"],
            "{analysis_id:uuid}": self.analysis_of_owner,
            "{lead_id:uuid}": self.lead_of_owner,
            "{user_id:uuid}": lambda: self.api.new_user().user["id"],
            "{attachment_id:uuid}": lambda: self.callers["owner"].upload()["id"],
            "{key_id:uuid}": lambda: self.api.post("/api-keys", {"name": "spare"})["id"],
            "{inbox_id:uuid}": self.new_widget_inbox,
            "{webhook_id:uuid}": self.webhook,
            "{delivery_id:uuid}": lambda: str(uuid4()),
            "{name:str}": lambda: "page.js",
        }
        for parameter, make in ids.items():
            if parameter in template:
                template = template.replace(parameter, make())
        return template

    def analysis_of_owner(self) -> str:
        """The newest one of the conversation, which has a result."""
        path = f"/conversations/{self.conversation['id']}"
        if self.api.get(path)["ai"] is None:
            self.api.send(self.conversation["id"])
            self.api.post(f"{path}/analyze")
            wait_until(lambda: self.api.get(path)["ai"])
        entries = self.api.get(f"{path}/analyses")["items"]
        analysis_id: str = next(each["id"] for each in entries if each["status"] == "SUCCEEDED")
        return analysis_id

    def new_widget_inbox(self) -> str:
        made = self.api.post("/inboxes", {"name": "Website", "kind": "WIDGET"})
        inbox_id: str = made["id"]
        return inbox_id

    def new_visitor(self) -> Api:
        path = f"{self.api.url}{PUBLIC_V1}/inboxes/{self.new_widget_inbox()}/sessions"
        session = Api.unwrap(self.api.http.post(path, json={}), 201)
        return Api(self.api.url, session["sessionToken"])

    def webhook(self) -> str:
        """Of an address where nobody listens, and told of little."""
        webhook_id: str = self.api.post("/webhooks", A_WEBHOOK)["id"]
        return webhook_id

    def lead_of_owner(self) -> str:
        lead_id: str = self.api.new_conversation(self.callers["owner"])["lead"]["id"]
        return lead_id


def expired(api: Api) -> str:
    claims = jwt.decode(api.token or "", options={"verify_signature": False})
    return jwt.encode({**claims, "exp": int(time.time()) - 1}, SECRET, algorithm="HS256")


def revoked(api: Api) -> str | None:
    user = api.new_user("ADMIN")
    user.post("/auth/logout")
    return user.token


@pytest.fixture(scope="module")
def world(api: Api) -> Iterator[World]:
    world = World(api)
    yield world
    for caller in (*world.without_token.values(), world.callers["visitor"]):
        caller.close()


def a_message() -> dict[str, Any]:
    return {"contentText": "hello"}


def an_inbound() -> dict[str, Any]:
    return {"externalId": uuid4().hex, "lead": {"name": "Ana"}, "message": a_message()}


def some_receipts() -> dict[str, Any]:
    return {"receipts": [{"messageId": str(uuid4()), "status": "read"}]}


def a_registration() -> dict[str, Any]:
    return {"email": f"{uuid4().hex[:12]}@example.com", "password": PASSWORD}


A_FILE = {"file": ("note.txt", b"hello")}
A_WEBHOOK = {"url": "https://webhook.invalid/", "events": ["lead.merged"]}
A_LOGIN = {"email": "admin@example.com", "password": PASSWORD}
A_PASSWORD = {"currentPassword": PASSWORD, "newPassword": "another horse"}


def public(path: str, status: int = 200) -> Route:
    return Route(path, status, status, status, key=status, visitor=status, nobody=status)


def for_visitors(path: str, status: int, body: Any = None) -> Route:
    return Route(path, 401, 401, 401, body, visitor=status)


def for_anyone(path: str, status: int, body: Any) -> Route:
    return public(path, status)._replace(body=body)


ROUTES: dict[tuple[str, str], Route] = {
    (method, route.path): route
    for method, route in [
        ("POST", Route(f"{V1}/auth/register", 403, 403, 201, a_registration)),
        ("POST", for_anyone(f"{V1}/auth/login", 200, A_LOGIN)),
        ("GET", Route(f"{V1}/auth/me", 200, 200, 200)),
        ("POST", Route(f"{V1}/auth/logout", 200, 200, 200, fresh_caller=True)),
        ("POST", Route(f"{V1}/auth/password", 200, 200, 200, A_PASSWORD, fresh_caller=True)),
        ("GET", Route(f"{V1}/users", 403, 403, 200)),
        ("PATCH", Route(f"{V1}/users/{{user_id:uuid}}", 403, 403, 200, {"name": "Eva"})),
        ("GET", Route(f"{V1}/leads", 200, 200, 200)),
        ("POST", Route(f"{V1}/leads", 201, 201, 201, {"name": "Ana"})),
        ("GET", Route(f"{V1}/leads/{{lead_id:uuid}}", 200, 404, 200)),
        ("PATCH", Route(f"{V1}/leads/{{lead_id:uuid}}", 200, 404, 200, {"name": "Eva"})),
        ("DELETE", Route(f"{V1}/leads/{{lead_id:uuid}}", 403, 403, 200)),
        ("GET", Route(f"{V1}/conversations", 200, 200, 200)),
        ("POST", Route(f"{V1}/conversations", 201, 201, 201, {"lead": {"name": "Ana"}})),
        ("GET", Route(CONVERSATION, 200, 404, 200)),
        ("PATCH", Route(CONVERSATION, 200, 404, 200, {"status": "OPEN"})),
        ("POST", Route(f"{CONVERSATION}/read", 200, 404, 200, {"seq": 0})),
        ("GET", Route(f"{CONVERSATION}/messages", 200, 404, 200)),
        ("POST", Route(f"{CONVERSATION}/messages", 201, 404, 201, a_message)),
        ("POST", Route(f"{CONVERSATION}/analyze", 202, 404, 202)),
        ("GET", Route(f"{CONVERSATION}/analyses", 200, 404, 200)),
        ("POST", Route(f"{CONVERSATION}/suggest-reply", 409, 404, 409, {})),
        ("POST", Route(FEEDBACK, 200, 404, 200, {"verdict": "correct"})),
        # Last of those about the conversation: the ADMIN unassigns it.
        ("POST", Route(f"{CONVERSATION}/assign", 403, 403, 200, {"agentId": None})),
        ("POST", Route(f"{V1}/attachments", 201, 201, 201, files=A_FILE)),
        ("GET", Route(ATTACHMENT, 200, 404, 200)),
        ("GET", public(f"{ATTACHMENT}/content", 400)),  # without its signature
        ("GET", Route(f"{V1}/dashboard/metrics", 200, 200, 200)),
        ("GET", Route(f"{V1}/analysis/queue", 403, 403, 200)),
        ("GET", Route(f"{V1}/analysis/usage", 403, 403, 200)),
        ("GET", Route(f"{V1}/api-keys", 403, 403, 200)),
        ("POST", Route(f"{V1}/api-keys", 403, 403, 201, {"name": "shop"})),
        ("DELETE", Route(f"{V1}/api-keys/{{key_id:uuid}}", 403, 403, 200)),
        ("GET", Route(f"{V1}/webhooks", 403, 403, 200)),
        ("POST", Route(f"{V1}/webhooks", 403, 403, 201, A_WEBHOOK)),
        ("GET", Route(WEBHOOK, 403, 403, 200)),
        ("PATCH", Route(WEBHOOK, 403, 403, 200, {"description": "x"})),
        ("DELETE", Route(WEBHOOK, 403, 403, 200)),
        ("POST", Route(f"{WEBHOOK}/test", 403, 403, 200)),
        ("POST", Route(f"{WEBHOOK}/rotate-secret", 403, 403, 200)),
        ("POST", Route(f"{WEBHOOK}/replay", 403, 403, 200, {"since": "2999-01-01T00:00:00Z"})),
        ("GET", Route(f"{WEBHOOK}/deliveries", 403, 403, 200)),
        ("POST", Route(RETRY, 403, 403, 404)),
        ("POST", Route(f"{V1}/inbound", 401, 401, 401, an_inbound, key=201)),
        ("POST", Route(f"{V1}/receipts", 401, 401, 401, some_receipts, key=200)),
        ("GET", Route(f"{V1}/inboxes", 403, 403, 200)),
        ("POST", Route(f"{V1}/inboxes", 403, 403, 201, {"name": "Shop", "kind": "API"})),
        ("GET", Route(INBOX, 403, 403, 200)),
        ("PATCH", Route(INBOX, 403, 403, 200, {"name": "Shop"})),
        ("POST", Route(f"{INBOX}/rotate-secret", 403, 403, 200, {})),
        ("DELETE", Route(INBOX, 403, 403, 200)),
        ("GET", public(PUBLIC_INBOX)),
        ("POST", for_anyone(f"{PUBLIC_INBOX}/sessions", 201, {})),
        ("GET", for_visitors(f"{PUBLIC_V1}/messages", 200)),
        ("POST", for_visitors(f"{PUBLIC_V1}/messages", 201, a_message)),
        ("POST", for_visitors(f"{PUBLIC_V1}/seen", 200, {"seq": 1})),
        ("POST", for_visitors(f"{PUBLIC_V1}/attachments", 201)._replace(files=A_FILE)),
        ("GET", public("/health/live")),
        ("GET", public("/health/ready")),
        ("GET", public("/metrics")),
    ]
}

DOCUMENTATION = "/docs"
"""Everything below it is for everyone; `tests/web` looks at it."""


@pytest.mark.parametrize("key", ROUTES, ids=" ".join)
def test_route(world: World, key: tuple[str, str]) -> None:
    method, template = key
    route = ROUTES[key]
    statuses = dict.fromkeys(NO_TOKEN, route.nobody)
    statuses |= {"key": route.key, "visitor": route.visitor}
    statuses |= {"owner": route.owner, "stranger": route.stranger}
    for name, status in {**statuses, "admin": route.admin}.items():
        body = route.body() if callable(route.body) else route.body
        path = world.path_of(template)
        response = caller_of(world, name, route).http.request(
            method, world.api.url + path, json=body, files=route.files
        )
        assert response.status_code == status, f"{name}: {response.text}"
        if status == 401:
            assert response.headers["www-authenticate"] == "Bearer"


def caller_of(world: World, name: str, route: Route) -> Api:
    if route.fresh_caller and name in ("owner", "stranger", "admin"):
        return world.api.new_user("ADMIN" if name == "admin" else "SALES_AGENT")
    return world.callers[name]


def test_the_matrix_has_every_route() -> None:
    app = create_app(make_config("postgresql://nowhere/nothing"))
    found = {
        (str(method), route.path)
        for route in app.routes
        for method in getattr(route, "methods", ())
        if method not in ("OPTIONS", "HEAD") and not route.path.startswith(DOCUMENTATION)
    }
    assert found == set(ROUTES)


OF_A_CONVERSATION = [key for key in ROUTES if "{conversation_id" in key[1]]
OF_A_LEAD = [key for key in ROUTES if "{lead_id" in key[1]]
AN_ATTACHMENT = ("GET", ATTACHMENT)


@pytest.mark.parametrize("key", [*OF_A_CONVERSATION, *OF_A_LEAD, AN_ATTACHMENT], ids=" ".join)
def test_a_foreign_id_looks_like_an_unknown_one(world: World, key: tuple[str, str]) -> None:
    method, template = key
    route = ROUTES[key]
    foreign = world.path_of(template)
    known_id = next(part for part in foreign.split("/") if len(part) == 36)
    stranger = world.callers["stranger"]
    answers = []
    for path in (foreign, foreign.replace(known_id, str(uuid4()))):
        body = route.body() if callable(route.body) else route.body
        response = stranger.http.request(method, stranger.url + path, json=body)
        answer = response.json()
        answer["error"].pop("requestId")
        answers.append((response.status_code, answer, set(response.headers)))
    assert answers[0] == answers[1]
    assert answers[0][0] == route.stranger


@pytest.mark.parametrize(
    ("key", "body"),
    [
        (("POST", f"{CONVERSATION}/messages"), {"contentText": "x", "expectedLastSeq": 0}),
        (("POST", f"{CONVERSATION}/messages"), {"contentText": "x", "clientMessageId": "m"}),
        (("POST", f"{CONVERSATION}/read"), {"seq": 9}),
        (("PATCH", CONVERSATION), {}),
    ],
)
def test_no_field_makes_a_foreign_conversation_visible(
    world: World, key: tuple[str, str], body: Any
) -> None:
    world.api.send(world.conversation["id"], clientMessageId=uuid4().hex)
    stranger = world.callers["stranger"]
    path = world.path_of(key[1]).removeprefix(V1)
    assert stranger.request(key[0], path, body, expect=404)["message"] == "No such conversation"


def test_a_stranger_cannot_start_a_conversation_with_a_foreign_lead(world: World) -> None:
    body = {"leadId": world.lead_of_owner()}
    stranger = world.callers["stranger"]
    foreign = stranger.post("/conversations", body, expect=404)
    unknown = stranger.post("/conversations", {"leadId": str(uuid4())}, expect=404)
    assert foreign["message"] == unknown["message"]


def test_lists_hold_what_the_caller_may_see(world: World, agent: Api, stranger: Api) -> None:
    mine = world.api.new_conversation(agent)
    for caller, expected in ((agent, [mine["id"]]), (stranger, [])):
        conversations = caller.get("/conversations")["items"]
        assert [item["id"] for item in conversations] == expected
        leads = caller.get("/leads")["items"]
        assert [item["id"] for item in leads] == [mine["lead"]["id"]][: len(expected)]
        by_name = caller.get("/conversations", search=mine["lead"]["email"])["items"]
        assert [item["id"] for item in by_name] == expected
        metrics = caller.get("/dashboard/metrics")
        assert metrics["totalConversations"] == len(expected)
    other = agent.get("/conversations", assignedAgentId=stranger.user["id"])
    assert other["items"] == []


def test_unassigning_takes_sight_away(world: World, agent: Api) -> None:
    conversation = world.api.new_conversation(agent)
    path = f"/conversations/{conversation['id']}"
    agent.get(path, expect=200)
    world.api.post(f"{path}/assign", {"agentId": None})
    agent.get(path, expect=404)
    agent.get(f"{path}/messages", expect=404)
    agent.get(f"/leads/{conversation['lead']['id']}", expect=404)


def test_the_role_is_the_users_not_the_tokens(server: LiveServer, agent: Api) -> None:
    claims = jwt.decode(agent.token or "", options={"verify_signature": False})
    token = jwt.encode({**claims, "role": "ADMIN"}, SECRET, algorithm="HS256")
    with Api(server.url, token) as forged:
        forged.get("/users", expect=403)
