"""The short way of some calls: it leads to the same answers as Litestar's."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from messaging_server import direct
from messaging_server.app import create_app
from messaging_server.conversations.filters import Filters
from messaging_server.direct import Direct
from messaging_server.errors import Unauthenticated
from messaging_server.http import Authenticator
from messaging_server.models import Caller, Role, Status
from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api
from tests.conftest import fresh_database, live_server, make_config

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

    def call(
        self, method: str | None, path: str, query: bytes = b"", *headers: tuple[bytes, bytes]
    ) -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []
        scope: Any = {
            "type": "http" if method else "websocket",
            "path": path,
            "query_string": query,
            "headers": list(headers),
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


def test_which_handlers_have_the_short_way(ways: Ways) -> None:
    conversation = "/api/v1/conversations/{conversation_id}"
    assert {(key[0], route.path_template) for key, route in ways.direct._routes.items()} == {
        ("GET", "/api/v1/conversations"),
        ("GET", conversation),
        ("GET", f"{conversation}/messages"),
        ("POST", f"{conversation}/messages"),
        ("GET", "/api/v1/dashboard/metrics"),
    }


class OneUser:
    """Lets a token in, and remembers what lists were asked for."""

    def __init__(self, ways: Ways) -> None:
        self.asked: list[tuple[Filters, int]] = []
        ways.app.state.authenticator = Authenticator(
            user=self._user, api_key=self._refuse, visitor=self._refuse
        )
        ways.app.state.conversation_list = self

    async def _user(self, token: str) -> Caller:
        if token != "good":
            raise Unauthenticated("not good")
        return Caller(id=UUID(ID), email="a@example.com", name=None, role=Role.ADMIN)

    async def _refuse(self, *_: Any) -> Any:
        raise Unauthenticated("no")

    async def fetch_page(
        self, _caller: Caller, filters: Filters, *, limit: int, cursor: Any
    ) -> tuple[list[Any], None]:
        self.asked.append((filters, limit))
        return [], cursor


def test_a_query_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is known then, which saves the checks of the query and nothing else."""
    ways = Ways()
    user = OneUser(ways)
    path, query = "/api/v1/conversations", b"limit=7&status=OPEN"
    good, bad = (b"authorization", b"Bearer good"), (b"authorization", b"Bearer bad")

    def status(*headers: tuple[bytes, bytes]) -> int:
        answer: int = ways.call("GET", path, query, *headers)[0]["status"]
        return answer

    assert [status(), status(bad), status(good)] == [401, 401, 200]

    def fail(*_: Any) -> Any:
        raise AssertionError("it is known")

    monkeypatch.setattr(direct, "checked_query", fail)
    assert [status(), status(bad), status(good)] == [401, 401, 200]
    assert user.asked == [(Filters(status=Status.OPEN), 7)] * 2
    assert not ways.left


def test_only_some_queries_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "KEPT_QUERIES", 3)
    route = Ways().direct._routes["GET", "/api/v1/conversations"]
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
    body = response.json() if response.content else None
    if body and "error" in body:
        del body["error"]["requestId"]
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("date", "x-request-id")
    }
    return response.status_code, body, headers


@pytest.fixture(scope="module")
def quiet_api(postgres: EmbeddedPostgres) -> Iterator[Api]:
    """On a server of its own, on which nothing happens by itself."""
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn, MESSAGING_ANALYSIS__ENABLED="false") as server,
        Api.first_admin(server.url) as admin,
    ):
        yield admin
        server.assert_no_defects()


@pytest.fixture(scope="module")
def agent(quiet_api: Api) -> Api:
    return quiet_api.new_user()


@pytest.fixture(scope="module")
def conversation(quiet_api: Api) -> dict[str, Any]:
    created = quiet_api.new_conversation()
    for text in ("one", "two", "three"):
        quiet_api.send(created["id"], text)
    return created


@pytest.mark.parametrize("query", QUERIES, ids=str)
@pytest.mark.parametrize(
    "path",
    [
        "/conversations",
        "/conversations/{}",
        "/conversations/{}/messages",
        "/dashboard/metrics",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_both_ways_lead_to_the_same_answer(
    quiet_api: Api, agent: Api, conversation: dict[str, Any], method: str, path: str, query: Any
) -> None:
    for user in (quiet_api, agent):
        for conversation_id in (conversation["id"], str(uuid4())):
            plain = f"{user.url}/api/v1{path.format(conversation_id)}"
            for _ in range(2):  # the second time a query is known
                answers = [
                    shown(user.http.request(method, written, params=query))
                    for written in (plain, f"{plain}/")
                ]
                assert answers[0] == answers[1]


def test_both_ways_know_the_same_methods(quiet_api: Api, conversation: dict[str, Any]) -> None:
    plain = f"{quiet_api.url}/api/v1/conversations/{conversation['id']}/messages"
    for method in ("OPTIONS", "PUT"):
        answers = [shown(quiet_api.http.request(method, url)) for url in (plain, f"{plain}/")]
        assert answers[0] == answers[1]


JSON = "application/json"
TOO_LARGE = b" " * 1_048_577
BODIES: list[tuple[bytes, str]] = [
    (b'{"contentText": "hello", "clientMessageId": "1"}', JSON),
    (b'{"contentText": "hello"}', JSON),
    (b'{"contentText": "hello"}', "text/plain"),
    (b'{"contentText": 1}', JSON),
    (b"{}", JSON),
    (b"", JSON),
    (b"", "text/plain"),
    (b"{", JSON),
    (b'{"contentText": "\xff"}', JSON),
    (b'{"contentText": "a\\u0000b"}', JSON),
    (b"[" * 10_000, JSON),
    (TOO_LARGE, JSON),
    (TOO_LARGE, "text/plain"),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: f"{body[0][:50]!r} {body[1]}")
def test_both_ways_send_a_message_alike(
    quiet_api: Api, agent: Api, conversation: dict[str, Any], body: tuple[bytes, str]
) -> None:
    content, content_type = body
    path = f"{quiet_api.url}/api/v1/conversations/{conversation['id']}/messages"
    headers = {"Content-Type": content_type}
    for user in (quiet_api, agent):
        user.http.post(path, content=content, headers=headers)  # then an id has been sent before
        answers = [
            shown(user.http.post(written, content=content, headers=headers))
            for written in (path, f"{path}/")
        ]
        for _, answer, _ in answers:
            if answer["status"] == "success" and not answer["data"]["clientMessageId"]:
                for unlike in ("id", "seq", "createdAt"):
                    del answer["data"][unlike]
        assert answers[0] == answers[1]
