"""Query parameters and ids in paths: what is not written as it must be is refused by its name."""

from uuid import uuid4

import httpx
import pytest

from tests.api.calls import PUBLIC, Sender, named
from tests.api.test_contract import assert_failure
from tests.client import Api

SOME_ID = "0f1a4e8f-3fdd-476a-9874-e9107f33340c"

NO_NUMBERS = [
    "-1", "x", "1.5", "", "NaN", "9" * 30, "\u0663x", "5.0", "1e1", " 5", "5 ", "+5", "5_0", "0x5",
    "05", "\u0665",
]  # fmt: skip
NO_BOOLEANS = ["", "maybe", "null", "2", "1", "0", "True", "FALSE", "on", "yes", " true"]
NO_IDS = [
    "", "x", "me", "null", "1", "{" + SOME_ID + "}", "urn:uuid:" + SOME_ID,
    SOME_ID.replace("-", ""), SOME_ID.replace("-", "", 1) + "-", SOME_ID.replace("0", "\u0660"),
    f" {SOME_ID}", f"{SOME_ID}\n",
]  # fmt: skip
PAGED = {"limit": ["0", "101", *NO_NUMBERS], "cursor": ["x"]}
QUERIES: dict[str, dict[str, list[str]]] = {
    "/users": PAGED,
    "/leads": {**PAGED, "search": ["", "x" * 201]},
    "/conversations": {
        **PAGED,
        "priority": ["", "high", "URGENT", "null", "0"],
        "status": ["", "open", "CLOSED"],
        "tag": ["", "x" * 51],
        "sort": ["", "newest", "Activity"],
        "assignedAgentId": NO_IDS,
        "unassigned": NO_BOOLEANS,
        "unreplied": NO_BOOLEANS,
        "search": ["", "x" * 201],
    },
    "/conversations/{conversation}/messages": {
        **PAGED,
        "afterSeq": [str(2**31), str(2**63), *NO_NUMBERS],
    },
    "/conversations/{conversation}/analyses": PAGED,
    "/api-keys": {**PAGED, "inboxId": NO_IDS},
    "/inboxes": PAGED,
    "/inboxes/{inbox}": {},
    f"{PUBLIC}/inboxes/{{inbox}}": {},
    f"{PUBLIC}/messages": {**PAGED, "afterSeq": [str(2**31), *NO_NUMBERS]},
    "/dashboard/metrics": {},
    "/analysis/queue": {},
    "/analysis/usage": {
        "from": ["", "x", "2026-02-30", "20260101", "2026-W01-1", "9" * 41],
        "to": ["x", "1999-12-31"],
    },
    "/auth/me": {},
    "/leads/{lead}": {},
    "/conversations/{conversation}": {},
}


@pytest.mark.parametrize("path", QUERIES)
def test_query_parameters(sender: Sender, path: str) -> None:
    known = QUERIES[path]
    api, token = sender.api, sender.api.token
    path = sender.filled(path)
    if path.startswith(PUBLIC):
        path, token = api.url + path, sender.visitor_token
    with httpx.Client(
        base_url=api.http.base_url, headers={"Authorization": f"Bearer {token}"}, timeout=30
    ) as http:
        check_query(http, path, known)


def check_query(http: httpx.Client, path: str, known: dict[str, list[str]]) -> None:
    for name, values in known.items():
        for value in values:
            response = http.get(path, params={name: value})
            assert response.status_code == 400, f"{name}={value}"
            assert named(assert_failure(response, 400), name), f"{name}={value}"
        for raw in ("%00", "a%00b", "%ff", "%ed%a0%80", "%c0%80", "a%f5b"):
            assert_failure(http.get(f"{path}?{name}={raw}"), 400)
        twice = assert_failure(http.get(f"{path}?{name}=1&{name}=1"), 400)
        assert named(twice, name)
        for other in (name.upper(), f"{name}[]", f" {name}", f"{name}%00"):
            if other != name:
                assert_failure(http.get(f"{path}?{other}=1"), 400)
    for unknown in ("colour=red", "=", "a", "&&a", "%ff=1", "limit.x=1", "a" * 3_000):
        assert_failure(http.get(f"{path}?{unknown}"), 400)


def test_a_replacement_character_is_text_like_any_other(sender: Sender) -> None:
    """Bytes that are no UTF-8 read the same once they are decoded."""
    name = f"\ufffd{uuid4().hex}"
    sender.api.post("/leads", {"name": name})
    found = sender.api.get("/leads", search=name)["items"]
    assert [lead["name"] for lead in found] == [name]
    for invalid in ("%ff", "%ef%bf", "%ed%a0%80", "%c0%80", "%f5%80%80%80", "%ef%bf%bd%ff"):
        for path in ("/leads", "/conversations"):
            error = assert_failure(sender.api.http.get(f"{path}?limit=1&search={invalid}"), 400)
            assert named(error, "search")


def test_a_nul_character_in_a_query(sender: Sender) -> None:
    error = assert_failure(sender.api.http.get("/leads?limit=1&search=a%00b"), 400)
    assert named(error, "search")


def test_of_two_wrong_parameters_the_first_is_named(sender: Sender) -> None:
    http = sender.api.http
    for query in ("limit=x&cursor=x", "limit=1e1&afterSeq=-1", "limit=x&colour=red"):
        path = sender.filled(f"/conversations/{{conversation}}/messages?{query}")
        assert named(assert_failure(http.get(path), 400), "limit")


def test_all_missing_parameters_are_named(sender: Sender) -> None:
    path = f"/attachments/{SOME_ID}/content"
    missing = {"": ["expires", "signature"], "?expires=1": ["signature"]}
    for query, names in missing.items():
        error = assert_failure(sender.api.http.get(path + query), 400)
        assert error["details"] == [{"field": name, "message": "is required"} for name in names]


def test_an_unknown_query_parameter_of_a_write_is_refused_too(sender: Sender) -> None:
    body = {"name": "Ana"}
    assert_failure(sender.api.http.post("/leads?dry=1", json=body), 400)


# --- Paths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    ["x", "0", "%00", "..", "../..", "%2e%2e", "%ff", "ñ", "a b", "'", "x" * 3_000,
     SOME_ID[:-1],
     SOME_ID + "0", "{" + SOME_ID + "}", "urn:uuid:" + SOME_ID,
     "00000000-0000-0000-0000-000000000000"],
)  # fmt: skip
def test_no_ids(api: Api, part: str) -> None:
    for prefix in ("/conversations/", "/leads/"):
        response = api.http.get(f"{prefix}{part}")
        assert response.status_code in (400, 404, 405), response.text
        assert response.json()["status"] == "error"


@pytest.mark.parametrize("spelling", ["{{{}}}", "urn:uuid:{}", "%7B{}%7D"])
def test_an_id_is_written_in_one_way(api: Api, spelling: str) -> None:
    lead_id = api.post("/leads", {"name": "Ana"})["id"]
    for other in (spelling.format(lead_id), lead_id.replace("-", "")):
        assert_failure(api.http.get(f"/leads/{other}"), 404)


def test_an_id_may_be_written_in_capitals(api: Api) -> None:
    lead = api.post("/leads", {"name": "Ana"})
    assert api.get(f"/leads/{lead['id'].upper()}")["id"] == lead["id"]
