"""Two servers on one database: what one of them does holds in the other."""

from collections.abc import Iterator

import pytest

from tests.client import Api, LiveServer, together, wait_until
from tests.conftest import live_server
from tests.public.site import PublicApi, Site

FORGETTING_SECONDS = 8.0
"""A cache of 5 seconds, and some for a slow machine."""


@pytest.fixture
def second_url(server: LiveServer, public_dsn: str) -> Iterator[str]:  # the first is up
    with live_server(public_dsn) as second:
        yield second.url
        second.assert_no_defects()


def test_a_visitor_between_two_processes(api: Api, site: Site, second_url: str) -> None:
    visitor = site.visitor()
    elsewhere = PublicApi(second_url, visitor.session)
    pages = [visitor, elsewhere]
    sent = together([lambda n=n: pages[n % 2].send(f"hello {n}") for n in range(50)], threads=50)
    assert len({message["conversationId"] for message in sent}) == 1
    assert sorted(message["seq"] for message in sent) == list(range(1, 51))

    body = {"contentText": "once", "clientMessageId": "m1"}
    answers = together(
        [lambda n=n: pages[n % 2].http.post("/messages", json=body) for n in range(20)]
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]

    token = site.identity("u1")
    known = site.open(identityToken=token, visitorToken=visitor.visitor_token)
    assert visitor.http.get("/messages").status_code == 401
    page = PublicApi(second_url, known, Origin="https://shop.example")
    assert page.http.get("/messages").status_code == 403
    api.patch(f"/inboxes/{site.id}", {"allowedOrigins": ["https://shop.example"]})
    wait_until(lambda: elsewhere.http.get("/messages").status_code == 401, FORGETTING_SECONDS)
    wait_until(lambda: page.http.get("/messages").status_code == 200, FORGETTING_SECONDS)
    api.delete(f"/inboxes/{site.id}")
    wait_until(lambda: page.http.get("/messages").status_code == 401, FORGETTING_SECONDS)
    for opened in (elsewhere, page):
        opened.http.close()
