"""Which websites may call: preflights and calls, by each inbox's own origins."""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest

from messaging_server.database import Database
from messaging_server.inboxes.origins import Origins
from tests.client import Api
from tests.conftest import live_server
from tests.public.site import Site

SHOP, BLOG, EVIL = "https://shop.example", "https://blog.example", "https://evil.example"
ALLOW = "access-control-allow-origin"


class Sites:
    """Inboxes of two websites, one for every website, and one for none."""

    def __init__(self, api: Api) -> None:
        self.shop = Site(api, allowedOrigins=[SHOP, "https://www.shop.example:8443"])
        self.blog = Site(api, allowedOrigins=[BLOG])
        self.closed = Site(api)


@pytest.fixture(scope="module")
def sites(api: Api) -> Iterator[Sites]:
    sites = Sites(api)
    yield sites
    for site in (sites.shop, sites.blog, sites.closed):
        site.close()


def preflight(site: Site, path: str, origin: str, method: str = "POST") -> httpx.Response:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return site.page().http.options(path, headers=headers)


def assert_let_in(response: httpx.Response, origin: str) -> None:
    assert response.headers.get(ALLOW) == origin, response.text
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in response.headers


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 403, response.text
    assert ALLOW not in response.headers
    assert response.headers["vary"] == "Origin"


def test_preflights_of_an_inbox(sites: Sites) -> None:
    for path in (sites.shop.path, f"/inboxes/{sites.shop.id}"):
        granted = preflight(sites.shop, path, SHOP)
        assert granted.status_code == 204
        assert_let_in(granted, SHOP)
        assert granted.headers["access-control-allow-methods"] == "GET, POST"
        allowed = granted.headers["access-control-allow-headers"].lower()
        assert {"authorization", "content-type"} <= set(allowed.split(", "))
        assert int(granted.headers["access-control-max-age"]) > 0
        for origin in (BLOG, EVIL, "null", "", "https://shop.example.evil.example"):
            assert_refused(preflight(sites.shop, path, origin))
    assert_refused(preflight(sites.shop, sites.closed.path, SHOP))
    assert_refused(preflight(sites.shop, f"/inboxes/{uuid4()}/sessions", SHOP))


@pytest.mark.parametrize("path", ["/messages", "/seen", "/attachments"])
def test_preflights_that_name_no_inbox(sites: Sites, path: str) -> None:
    for origin in (SHOP, BLOG):
        granted = preflight(sites.shop, path, origin)
        assert granted.status_code == 204
        assert_let_in(granted, origin)
    for origin in (EVIL, "null", SHOP.replace("https", "http"), f"{SHOP}:444"):
        assert_refused(preflight(sites.shop, path, origin))


SAME = ["https://shop.example", "HTTPS://SHOP.EXAMPLE", "https://www.shop.example:8443"]
OTHERS = [
    BLOG, EVIL, "null", "http://shop.example", "https://shop.example:8443", "https://shop.example/",
    "https://shop.example.", "https://xshop.example", "https://shop.example@evil.example",
    "https://evil.example/https://shop.example", "*",
]  # fmt: skip


def test_calls_with_a_session_are_checked_by_its_inbox(sites: Sites) -> None:
    session = sites.shop.open()
    for origin in SAME:
        page = sites.shop.page(session, Origin=origin)
        for answer in (
            page.http.get("/messages"),
            page.http.post("/messages", json={"contentText": "x"}),
            page.http.post("/seen", json={"seq": 1}),
            page.http.post("/seen", json={"seq": -1}),
        ):
            assert answer.status_code in (200, 201, 400)
            assert_let_in(answer, origin)
            assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
            exposed = answer.headers["access-control-expose-headers"]
            assert exposed == "X-Request-Id, Retry-After"
    count = len(sites.shop.page(session).messages())
    for origin in OTHERS:
        page = sites.shop.page(session, Origin=origin)
        assert_refused(page.http.get("/messages"))
        assert_refused(page.http.post("/messages", json={"contentText": "x"}))
        assert_refused(page.http.post("/seen", json={"seq": 1}))
    assert len(sites.shop.page(session).messages()) == count


def test_new_sessions_are_checked_by_the_inbox_in_the_path(sites: Sites) -> None:
    for origin in SAME:
        page = sites.shop.page(Origin=origin)
        assert_let_in(page.http.post(sites.shop.path, json={}), origin)
        assert_let_in(page.http.get(f"/inboxes/{sites.shop.id}"), origin)
        bad = page.http.post(sites.shop.path, json={"visitorToken": "bad"})
        assert bad.status_code == 400
        assert_let_in(bad, origin)
    for origin in OTHERS:
        page = sites.shop.page(Origin=origin)
        assert_refused(page.http.post(sites.shop.path, json={}))
        assert_refused(page.http.get(f"/inboxes/{sites.shop.id}"))
    for origin in (SHOP, EVIL):
        assert_refused(sites.shop.page(Origin=origin).http.post(sites.closed.path, json={}))


def test_a_page_may_read_that_its_session_has_ended(sites: Sites) -> None:
    answer = sites.shop.page(Origin=SHOP).http.get("/messages")
    assert answer.status_code == 401
    assert_let_in(answer, SHOP)
    unknown = sites.shop.page(Origin=EVIL).http.get("/messages")
    assert unknown.status_code == 401
    assert ALLOW not in unknown.headers


def test_servers_and_the_own_origin_are_always_let_in(sites: Sites) -> None:
    closed = sites.closed
    session = closed.open()
    assert ALLOW not in closed.page(session).http.get("/messages").headers
    own = closed.admin.url
    page = closed.page(session, Origin=own)
    assert page.http.get("/messages").status_code == 200
    assert page.http.post(closed.path, json={}).status_code == 201
    other_port = own.rpartition(":")[0] + ":1"
    assert_refused(closed.page(session, Origin=other_port).http.get("/messages"))


def test_two_origins_at_once_are_refused(sites: Sites) -> None:
    session = sites.shop.open()
    headers = [
        ("Origin", SHOP),
        ("Origin", EVIL),
        ("Authorization", f"Bearer {session['sessionToken']}"),
    ]
    url = f"{sites.shop.admin.url}/api/public/v1/messages"
    assert_refused(httpx.get(url, headers=headers))


def test_a_change_counts_at_once(api: Api) -> None:
    site = Site(api)
    page = site.page(site.open(), Origin=EVIL)
    assert_refused(page.http.get("/messages"))
    api.patch(f"/inboxes/{site.id}", {"allowedOrigins": [EVIL]})
    assert_let_in(page.http.get("/messages"), EVIL)
    assert preflight(site, "/seen", EVIL).status_code == 204
    api.patch(f"/inboxes/{site.id}", {"allowedOrigins": []})
    assert_refused(page.http.get("/messages"))
    assert_refused(preflight(site, "/seen", EVIL))
    site.close()


def test_an_inbox_for_every_website(api: Api) -> None:
    site = Site(api, allowedOrigins=["*"])
    session = site.open()
    for origin in (EVIL, "null", "http://localhost:5173"):
        assert preflight(site, "/messages", origin).status_code == 204
        assert_let_in(site.page(session, Origin=origin).http.get("/messages"), origin)
    other = Site(api)
    assert_refused(other.page(other.open(), Origin=EVIL).http.get("/messages"))
    api.delete(f"/inboxes/{site.id}")
    assert_refused(preflight(site, "/messages", EVIL))
    site.close()
    other.close()


def test_the_servers_own_list_has_no_say(dsn: str) -> None:
    origins = {"MESSAGING_SERVER__ALLOWED_ORIGINS": EVIL}
    with live_server(dsn, **origins) as server, Api.first_admin(server.url) as api:
        site = Site(api, allowedOrigins=[SHOP])
        session = site.open()
        assert_refused(preflight(site, "/messages", EVIL))
        assert_refused(site.page(session, Origin=EVIL).http.get("/messages"))
        assert_refused(site.page(Origin=EVIL).http.post(site.path, json={}))
        assert_let_in(preflight(site, "/messages", SHOP), SHOP)
        assert_let_in(site.page(session, Origin=SHOP).http.get("/messages"), SHOP)
        # And the reverse: an inbox's origin opens nothing of the rest.
        for origin, allowed in ((EVIL, EVIL), (SHOP, None)):
            answer = api.http.get("/auth/me", headers={"Origin": origin})
            assert answer.headers.get(ALLOW) == allowed
        site.close()


def test_other_calls_have_no_cors(api: Api) -> None:
    site = Site(api, allowedOrigins=["*"])
    for path in ("/api/v1/auth/login", "/health/ready", "/metrics"):
        answer = api.http.get(api.url + path, headers={"Origin": EVIL})
        assert ALLOW not in answer.headers
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    site.close()


def test_without_the_database_only_the_own_origin_is_let_in(database: Database) -> None:
    """And nothing fails: a preflight is answered outside of all error handling."""
    origins = Origins(database)  # which is not started

    def allowed(origin: bytes) -> bool:
        headers = [(b"host", b"inbox.example"), (b"origin", origin)]
        return asyncio.run(origins.allow("/api/public/v1/messages", headers))

    assert allowed(b"https://inbox.example")
    assert not allowed(SHOP.encode())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://Shop.Example", "https://shop.example"),
        ("https://shop.example:443", "https://shop.example"),
        ("http://shop.example:80", "http://shop.example"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://my_host:8080", "http://my_host:8080"),
        ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://xn--tst-qla.example", "https://xn--tst-qla.example"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(api: Api, given: str, kept: str) -> None:
    body = {"name": "Shop", "kind": "WIDGET", "allowedOrigins": [given, kept]}
    assert api.post("/inboxes", body, expect=201)["allowedOrigins"] == [kept]


@pytest.mark.parametrize(
    "origin",
    ["", " ", "null", "shop.example", "//shop.example", "https://", "https://shop.example/",
     "https://shop.example/a", "https://shop.example?a", "https://shop.example#a",
     "https://u:p@shop.example", "https://*.example", "ftp://shop.example", "file://",
     "https://shop.example:0", "https://shop.example:99999", "https://shop.example:x",
     "https://shop.example:", " https://shop.example", "https://shop.example ", "https://a b",
     "https://shop.example\n", "javascript:alert(1)", "https://täst.example", "https://[::1",
     "**", "https://-shop.example", "https://" + "x" * 300],
)  # fmt: skip
def test_no_origins(api: Api, origin: str) -> None:
    for method, path in (("POST", "/inboxes"), ("PATCH", f"/inboxes/{first_inbox(api)}")):
        body: dict[str, Any] = {"allowedOrigins": [origin]}
        if method == "POST":
            body |= {"name": "Shop", "kind": "WIDGET"}
        error = api.request(method, path, body, expect=400)
        assert error["details"][0]["field"].startswith("allowedOrigins")


def first_inbox(api: Api) -> str:
    return str(api.get("/inboxes")["items"][0]["id"])
