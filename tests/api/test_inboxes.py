"""Inboxes and their secrets, as ADMINs keep them."""

from typing import Any
from uuid import uuid4

import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.api import shapes
from tests.api.shapes import check
from tests.client import Api
from tests.conftest import fresh_database, live_server


def new_inbox(api: Api, kind: str = "WIDGET", **fields: Any) -> dict[str, Any]:
    inbox: dict[str, Any] = api.post("/inboxes", {"name": "Shop", "kind": kind, **fields})
    return inbox


def test_the_first_start_makes_two(postgres: EmbeddedPostgres) -> None:
    with (
        fresh_database(postgres) as dsn,
        live_server(dsn) as server,
        Api.first_admin(server.url) as admin,
    ):
        first, second = admin.get("/inboxes")["items"]
        assert (first["name"], first["kind"]) == ("API", "API")
        assert (second["name"], second["kind"]) == ("Website", "WIDGET")
        assert second["allowedOrigins"] == []
        assert first["secretPrefix"] != second["secretPrefix"]
        assert admin.post("/api-keys", {"name": "k"})["inboxId"] == first["id"]


def test_an_inbox_from_beginning_to_end(api: Api) -> None:
    body = {"name": "Shop", "kind": "WIDGET", "allowedOrigins": ["https://a.example"]}
    made = api.post("/inboxes", {**body, "greeting": "Hello!"}, expect=201)
    check(made, shapes.SHOWN_INBOX)
    secret = made.pop("secret")
    assert secret.startswith(made["secretPrefix"])
    assert len(secret) > 40
    path = f"/inboxes/{made['id']}"
    assert api.get(path, expect=200) == made
    assert made in api.get("/inboxes", limit=100)["items"]

    changed = api.patch(path, {"greeting": None, "allowedOrigins": ["*"]}, expect=200)
    check(changed, shapes.INBOX)
    assert (changed["name"], changed["greeting"]) == ("Shop", None)
    assert changed["allowedOrigins"] == ["*"]
    assert api.patch(path, {}, expect=200)["allowedOrigins"] == ["*"]

    rotated = api.post(f"{path}/rotate-secret", expect=200)
    check(rotated, shapes.SHOWN_INBOX)
    assert rotated["secret"] != secret
    assert rotated["previousSecretValidUntil"] is not None
    assert secret not in api.http.get("/inboxes").text

    assert api.delete(path, expect=200) is None
    for method, where in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate-secret")):
        api.request(method, path + where, {} if method in ("PATCH", "POST") else None, expect=404)


def test_pages(api: Api) -> None:
    made = [new_inbox(api)["id"] for _ in range(3)]
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = api.get("/inboxes", **query)
        seen += [inbox["id"] for inbox in page["items"]]
        if page["nextCursor"] is None:
            break
        query = {"limit": 2, "cursor": page["nextCursor"]}
    assert len(seen) == len(set(seen))
    assert [inbox_id for inbox_id in seen if inbox_id in made] == made


def test_keys_of_an_inbox(api: Api) -> None:
    mine, other = new_inbox(api, "API")["id"], new_inbox(api, "API")["id"]
    made = api.post("/api-keys", {"name": "mine", "inboxId": mine}, expect=201)
    api.post("/api-keys", {"name": "other", "inboxId": other}, expect=201)
    (key,) = api.get("/api-keys", inboxId=mine)["items"]
    assert (key["id"], key["inboxId"]) == (made["id"], mine)
    assert api.get("/api-keys", inboxId=str(uuid4()))["items"] == []
    api.delete(f"/inboxes/{mine}")
    assert api.get("/api-keys", inboxId=mine)["items"] == []
    assert len(api.get("/api-keys", inboxId=other)["items"]) == 1


@pytest.mark.parametrize("inbox", ["WIDGET", "unknown"])
def test_keys_belong_to_api_inboxes(api: Api, inbox: str) -> None:
    inbox_id = new_inbox(api)["id"] if inbox == "WIDGET" else str(uuid4())
    error = api.post("/api-keys", {"name": "k", "inboxId": inbox_id}, expect=400)
    assert error["details"][0]["field"] == "inboxId"


def test_a_kind_is_for_good(api: Api) -> None:
    error = api.patch(f"/inboxes/{new_inbox(api)['id']}", {"kind": "API"}, expect=400)
    assert error["details"][0]["field"] == "kind"
