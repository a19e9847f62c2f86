"""The short way of some calls: it leads to the same answers as Litestar's."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest
from litestar import Litestar

from messaging_server import direct
from messaging_server.app import create_app
from messaging_server.direct import Direct
from tests.client import Api
from tests.conftest import make_config

ID = "01a22a60-99ad-70e2-9d8b-b7d0bc6379cf"
CONVERSATION = f"/api/v1/conversations/{ID}"

PLAIN = [
    ("GET", "/api/v1/conversations"),
    ("GET", CONVERSATION),
    ("GET", CONVERSATION.replace(ID, ID.upper())),
    ("GET", f"{CONVERSATION}/messages"),
    ("POST", f"{CONVERSATION}/messages"),
    ("GET", "/api/v1/dashboard/metrics"),
]
OTHERS = [
    ("GET", "/api/v1/conversations/"),
    ("GET", "/api/v1/conversations/{}"),
    ("GET", "/api/v1/conversations//messages"),
    ("GET", f"{CONVERSATION}/"),
    ("GET", f"{CONVERSATION}0"),
    ("GET", f"/{ID}/api/v1/conversations"),
    ("GET", f"{CONVERSATION}/messages/{ID}"),
    ("POST", "/api/v1/conversations"),
    ("PATCH", CONVERSATION),
    ("ANY", "/api/v1/conversations"),
    (None, "/ws"),
]


class Ways:
    """Which way calls go, in an application without a database."""

    def __init__(self) -> None:
        self.app = create_app(make_config("postgresql://nobody@127.0.0.1:1/nothing"))
        self.left: list[str] = []
        self.app.asgi_handler = self._leave
        self.direct = Direct(self.app)

    async def _leave(self, scope: Any, _receive: Any, _send: Any) -> None:
        self.left.append(scope["path"])

    def call(self, method: str | None, path: str, query: bytes = b"") -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        scope: Any = {
            "type": "http" if method else "websocket",
            "path": path,
            "query_string": query,
            "headers": [],
            "state": {},
            "app": self.app,
            "litestar_app": self.app,
            **({"method": method} if method else {}),
        }

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.direct(scope, self._nothing, send))
        return sent

    async def _nothing(self) -> Any:
        raise AssertionError("nothing is to be read")


@pytest.fixture(scope="module")
def ways() -> Ways:
    return Ways()


@pytest.mark.parametrize(("method", "path"), PLAIN)
def test_who_has_no_token_is_refused_on_the_short_way(ways: Ways, method: str, path: str) -> None:
    ways.left.clear()
    start, body = ways.call(method, path)
    assert start["status"] == 401
    assert b'"unauthenticated"' in body["body"]
    assert not ways.left


@pytest.mark.parametrize(("method", "path"), OTHERS)
def test_everything_else_is_left_to_litestar(ways: Ways, method: str | None, path: str) -> None:
    ways.left.clear()
    assert ways.call(method, path) == []
    assert ways.left == [path]


def test_every_handler_that_asks_for_it_has_the_short_way() -> None:
    app: Litestar = create_app(make_config("postgresql://nobody@127.0.0.1:1/nothing"))
    asking = {
        (method, route.path_format)
        for route in app.routes
        for method, (handler, _) in getattr(route, "route_handler_map", {}).items()
        if handler.opt.get("direct")
    }
    found = {(key[0], route.path_template) for key, route in Direct(app)._routes.items()}
    assert found == asking
    assert len(asking) == len({(method, path.upper()) for method, path in PLAIN})


def test_only_some_queries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "KEPT_QUERIES", 3)
    route = next(
        route
        for route in Ways().direct._routes.values()
        if route.path_template == "/api/v1/conversations"
    )
    for number in range(3):
        route._keep(b"limit=%d" % number, {"limit": number})
    route._keep(b"search=" + b"x" * direct.KEPT_QUERY_BYTES, {})
    assert set(route.queries) == {b"limit=0", b"limit=1", b"limit=2"}
    route._keep(b"limit=3", {"limit": 3})
    assert set(route.queries) == {b"limit=3"}


QUERIES: list[dict[str, str] | str] = [
    {},
    {"limit": "2"},
    {"limit": "0"},
    {"limit": "two"},
    {"limit": "2", "search": ""},
    {"status": "OPEN", "priority": "HIGH", "unassigned": "true"},
    {"status": "open"},
    {"cursor": "forged"},
    {"sort": "urgency"},
    {"afterSeq": "0"},
    {"afterSeq": "-1"},
    {"unknown": "1"},
    "limit=1&limit=2",
    "search=%ff",
    "tag=a%00b",
]


def shown(response: httpx.Response) -> tuple[int, Any, dict[str, str]]:
    """All but what differs from one answer to the next."""
    body = response.json()
    if "error" in body:
        del body["error"]["requestId"]
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("date", "x-request-id", "content-length")
    }
    return response.status_code, body, headers


@pytest.fixture(scope="module")
def conversation(api: Api) -> dict[str, Any]:
    created = api.new_conversation()
    for text in ("one", "two", "three"):
        api.send(created["id"], text)
    return created


@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize(
    "path", ["/conversations", "/conversations/{}", "/conversations/{}/messages"]
)
def test_both_ways_lead_to_the_same_answer(
    api: Api, stranger: Api, conversation: dict[str, Any], path: str, query: Any
) -> None:
    for user in (api, stranger):
        for conversation_id in (conversation["id"], str(uuid4())):
            plain = f"/api/v1{path.format(conversation_id)}"
            for _ in range(2):  # the second time a query is known
                answers = [
                    shown(user.http.get(f"{user.url}{written}", params=query))
                    for written in (plain, f"{plain}/")
                ]
                assert answers[0] == answers[1]


BODIES: list[tuple[bytes, str]] = [
    (b'{"contentText": "hello", "clientMessageId": "1"}', "application/json"),
    (b'{"contentText": "hello", "clientMessageId": "1"}', "text/plain"),
    (b'{"contentText": 1}', "application/json"),
    (b"{}", "application/json"),
    (b"", "application/json"),
    (b"{", "application/json"),
    (b'{"contentText": "\xff"}', "application/json"),
    (b'{"contentText": "a\\u0000b"}', "application/json"),
    (b"[" * 10_000, "application/json"),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{body[0][:50]!r} {body[1]}")
def test_both_ways_send_a_message_alike(
    api: Api, stranger: Api, conversation: dict[str, Any], body: tuple[bytes, str]
) -> None:
    content, content_type = body
    path = f"{api.url}/api/v1/conversations/{conversation['id']}/messages"
    headers = {"Content-Type": content_type}
    for user in (api, stranger):
        user.http.post(path, content=content, headers=headers)  # the first one is another's
        answers = [
            shown(user.http.post(written, content=content, headers=headers))
            for written in (path, f"{path}/")
        ]
        assert answers[0] == answers[1]
