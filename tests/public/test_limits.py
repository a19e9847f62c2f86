"""Limits of the public API: by address and by visitor."""

from collections.abc import Iterator

import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, LiveServer
from tests.conftest import fresh_database, live_server
from tests.public.site import PublicApi, Site

LIMITS = {
    "SESSIONS_PER_MINUTE_PER_ADDRESS": "8",
    "MESSAGES_PER_MINUTE_PER_VISITOR": "3",
    "MESSAGES_PER_MINUTE_PER_ADDRESS": "7",
    "CALLS_PER_MINUTE_PER_VISITOR": "12",
}


@pytest.fixture(scope="module")
def limited(postgres: EmbeddedPostgres) -> Iterator[LiveServer]:
    """Behind a proxy, so that each test has addresses of its own."""
    environment = {f"MESSAGING_LIMITS__{key}": value for key, value in LIMITS.items()}
    environment["MESSAGING_SERVER__BEHIND_PROXY"] = "127.0.0.1"
    environment["MESSAGING_LIMITS__ENABLED"] = "true"
    with fresh_database(postgres) as dsn, live_server(dsn, **environment) as server:
        yield server
        server.assert_no_defects()


@pytest.fixture(scope="module")
def limited_site(limited: LiveServer) -> Iterator[Site]:
    with Api.first_admin(limited.url) as admin:
        site = Site(admin)
        yield site
        site.close()


def visitor(site: Site, address: str) -> PublicApi:
    opened = site.page(**{"X-Forwarded-For": address}).post(site.path, {}, expect=201)
    return site.page(opened, **{"X-Forwarded-For": address})


def statuses(page: PublicApi, path: str, count: int) -> list[int]:
    body = {"contentText": "x"} if path == "/messages" else {}
    answers = [page.http.post(path, json=body) for _ in range(count)]
    for answer in answers:
        if answer.status_code == 429:
            assert 0 < int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["code"] == "rate_limited"
    return [answer.status_code for answer in answers]


def test_sessions_of_an_address(limited_site: Site) -> None:
    one = limited_site.page(**{"X-Forwarded-For": "192.0.2.1"})
    assert statuses(one, limited_site.path, 10) == [201] * 8 + [429] * 2
    other = limited_site.page(**{"X-Forwarded-For": "192.0.2.2"})
    assert statuses(other, limited_site.path, 1) == [201]


def test_all_addresses_of_an_ipv6_subscriber_are_one(limited_site: Site) -> None:
    got = []
    for number in range(10):
        page = limited_site.page(**{"X-Forwarded-For": f"2001:db8:1:1:{number}::{number}"})
        got += statuses(page, limited_site.path, 1)
    assert got == [201] * 8 + [429] * 2
    neighbour = limited_site.page(**{"X-Forwarded-For": "2001:db8:1:2::1"})
    assert statuses(neighbour, limited_site.path, 1) == [201]


def test_messages_of_a_visitor_whatever_the_session(limited_site: Site) -> None:
    first = visitor(limited_site, "192.0.2.11")
    assert statuses(first, "/messages", 2) == [201] * 2
    again = limited_site.page(**{"X-Forwarded-For": "192.0.2.12"}).post(
        limited_site.path, {"visitorToken": first.visitor_token}, expect=201
    )
    second = limited_site.page(again, **{"X-Forwarded-For": "192.0.2.12"})
    assert statuses(second, "/messages", 2) == [201, 429]
    assert statuses(first, "/messages", 1) == [429]


def test_messages_of_an_address_whatever_the_visitor(limited_site: Site) -> None:
    visitors = [visitor(limited_site, "192.0.2.21") for _ in range(3)]
    assert [statuses(each, "/messages", 3) for each in visitors] == [
        [201] * 3,
        [201] * 3,
        [201, 429, 429],
    ]


def test_one_visitors_flood_leaves_the_address_to_others(limited_site: Site) -> None:
    flooding, other = (visitor(limited_site, "192.0.2.25") for _ in range(2))
    assert statuses(flooding, "/messages", 9) == [201] * 3 + [429] * 6
    assert statuses(other, "/messages", 3) == [201] * 3


def test_calls_of_a_visitor(limited_site: Site) -> None:
    one, other = (visitor(limited_site, "192.0.2.31") for _ in range(2))
    answers = [one.http.get("/messages").status_code for _ in range(13)]
    assert answers == [200] * 12 + [429]
    assert one.http.post("/seen", json={"seq": 1}).status_code == 429
    assert other.http.get("/messages").status_code == 200


def test_looks_at_an_inbox(limited_site: Site) -> None:
    page = limited_site.page(**{"X-Forwarded-For": "192.0.2.41"})
    path = f"/inboxes/{limited_site.id}"
    answers = [page.http.get(path).status_code for _ in range(13)]
    assert answers == [200] * 12 + [429]


def test_an_answer_over_the_limit_can_be_read_by_the_page(limited_site: Site) -> None:
    origin = "https://limited.example"
    limited_site.admin.patch(f"/inboxes/{limited_site.id}", {"allowedOrigins": [origin]})
    page = limited_site.page(**{"X-Forwarded-For": "192.0.2.51", "Origin": origin})
    answers = [page.http.post(limited_site.path, json={}) for _ in range(9)]
    assert answers[-1].status_code == 429
    assert answers[-1].headers["access-control-allow-origin"] == origin
    assert "Retry-After" in answers[-1].headers["access-control-expose-headers"]
