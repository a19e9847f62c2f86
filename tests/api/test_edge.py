"""What stands around every route: methods, pages of other sites, handshakes."""

from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from messaging_server.postgres import EmbeddedPostgres
from tests.api.test_contract import assert_failure
from tests.client import Api, LiveServer
from tests.conftest import fresh_database, live_server

OURS, THEIRS = "https://app.example.com", "https://evil.example.com"
ALLOW = "access-control-allow-origin"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
METHODS = {
    "/api/v1/leads": {"GET", "HEAD", "OPTIONS", "POST"},
    "/api/v1/conversations?limit=5": {"GET", "HEAD", "OPTIONS", "POST"},
    "/api/v1/auth/login": {"OPTIONS", "POST"},
    "/api/public/v1/messages": {"GET", "HEAD", "OPTIONS", "POST"},
    "/health/live": {"GET", "HEAD", "OPTIONS"},
    "/docs": {"GET", "HEAD", "OPTIONS"},
    "/ws": {"GET", "HEAD", "OPTIONS"},
}


@pytest.mark.parametrize("path", METHODS)
def test_a_path_says_which_methods_it_has(server: LiveServer, path: str) -> None:
    """To anybody, as a wrong method is refused before anybody is asked for a token."""
    answer = httpx.options(server.url + path)
    assert (answer.status_code, answer.content) == (204, b"")
    asked = httpx.options(server.url + path, headers={"Access-Control-Request-Method": "GET"})
    assert asked.headers["allow"] == answer.headers["allow"]  # without a page it is no preflight
    refused = httpx.put(server.url + path)
    assert_failure(refused, 405)
    for response in (answer, refused):
        assert set(response.headers["allow"].split(", ")) == METHODS[path]


def test_options_of_no_path(server: LiveServer) -> None:
    assert_failure(httpx.options(f"{server.url}/api/v1/nothing"), 404)


@pytest.fixture(scope="module")
def new_server(postgres: EmbeddedPostgres) -> Iterator[LiveServer]:
    """Whose inboxes allow no page yet."""
    with fresh_database(postgres) as dsn, live_server(dsn) as server:
        yield server


@pytest.mark.parametrize("path", ["/api/v1/leads", "/api/public/v1/messages", "/nothing"])
def test_a_refused_preflight_is_an_error_like_all(new_server: LiveServer, path: str) -> None:
    headers = {"Origin": THEIRS, "Access-Control-Request-Method": "GET"}
    answer = httpx.options(new_server.url + path, headers=headers)
    assert_failure(answer, 403)
    assert ALLOW not in answer.headers


def test_pages_of_allowed_origins(postgres: EmbeddedPostgres) -> None:
    origins = {"MESSAGING_SERVER__ALLOWED_ORIGINS": OURS}
    with fresh_database(postgres) as dsn, live_server(dsn, **origins) as server:
        asks = {"Origin": OURS, "Access-Control-Request-Method": "PATCH"}
        for path in ("/api/v1/leads", "/nothing"):  # whose 404 the page may then read
            granted = httpx.options(server.url + path, headers=asks)
            assert (granted.status_code, granted.headers[ALLOW]) == (204, OURS)
            assert "PATCH" in granted.headers["access-control-allow-methods"].split(", ")
        refused = httpx.options(f"{server.url}/api/v1/leads", headers={**asks, "Origin": THEIRS})
        assert_failure(refused, 403)
        for path, status in (("/api/v1/leads", 401), ("/nothing", 404)):
            answer = httpx.get(server.url + path, headers={"Origin": OURS})
            assert_failure(answer, status)
            assert (answer.headers[ALLOW], answer.headers["vary"]) == (OURS, "Origin")
            assert ALLOW not in httpx.get(server.url + path, headers={"Origin": THEIRS}).headers
        asked = httpx.options(f"{server.url}/api/v1/leads", headers={"Origin": OURS})
        assert (asked.status_code, asked.headers[ALLOW]) == (204, OURS)  # no preflight
        assert "POST" in asked.headers["allow"]


def test_handshakes_where_no_socket_is(server: LiveServer, api: Api) -> None:
    """Answered as if nobody had asked for another protocol."""
    for path, status in (("/nothing", 404), ("/api/v1/leads", 401)):
        assert_failure(httpx.get(server.url + path, headers=UPGRADE), status)
    assert api.http.get("/auth/me", headers=UPGRADE).status_code == 200
    made = api.http.post("/leads", headers={**UPGRADE, "Upgrade": "h2c"}, json={"name": "Ana"})
    assert made.status_code == 201


@pytest.mark.parametrize("path", ["/ws", "/ws/", "//ws", "/ws/public"])
def test_paths_of_sockets(server: LiveServer, path: str) -> None:
    """As lenient as for all other paths."""
    with connect(f"{server.url.replace('http', 'ws', 1)}{path}") as connection:
        connection.send('{"id":1,"event":"shout"}')
        assert "validation_error" in str(connection.recv(20))


@pytest.mark.parametrize("path", ["/ws", "/ws/public"])
def test_bad_handshakes(server: LiveServer, path: str) -> None:
    bad = [{**UPGRADE, "Sec-WebSocket-Version": "8"}, {**UPGRADE, "Sec-WebSocket-Key": "x"}, {}]
    for headers in bad:
        assert_failure(httpx.get(server.url + path, headers=headers), 400)
    assert_failure(httpx.post(server.url + path, headers=UPGRADE), 405)
