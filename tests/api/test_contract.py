"""Every call of the contract once: status, envelope, and the exact shape of the answer."""

import gzip
from typing import Any
from uuid import uuid4

import httpx
import pytest

from messaging_server.models import WebhookEvent
from messaging_server.postgres import EmbeddedPostgres
from tests.api import shapes
from tests.api.shapes import check
from tests.client import PASSWORD, Api, LiveServer, wait_until
from tests.conftest import fresh_database, live_server

CODES = {
    400: "validation_error",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    429: "rate_limited",
    503: "unavailable",
    507: "insufficient_storage",
}


def assert_failure(response: httpx.Response, status: int) -> dict[str, Any]:
    """`response` is an error of this status in the contract's shape; its `error`."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    envelope = response.json()
    check(envelope, {"status": shapes.one_of("error"), "error": dict}, "body")
    error: dict[str, Any] = envelope["error"]
    check({key: error[key] for key in error if key != "missed"}, shapes.ERROR, "error")
    assert error["code"] == CODES[status]
    assert error["message"]
    assert error["requestId"] == response.headers["x-request-id"]
    return error


# --- Success ----------------------------------------------------------------------------------


def test_users(api: Api) -> None:
    email = f"{uuid4().hex[:8]}@Example.com"
    body = {"email": email, "password": PASSWORD, "name": "Eva", "role": "SALES_AGENT"}
    created = api.post("/auth/register", body, expect=201)
    check(created, shapes.USER)
    assert (created["email"], created["name"], created["role"]) == (email, "Eva", "SALES_AGENT")
    assert created["active"] is True

    with api.log_in(email) as user:
        login = user.post("/auth/login", {"email": email, "password": PASSWORD}, expect=200)
        check(login, shapes.LOGIN)
        assert login["user"]["id"] == created["id"]
        me = user.get("/auth/me", expect=200)
        check(me, shapes.USER)
        assert me == created
        change = {"currentPassword": PASSWORD, "newPassword": "another horse"}
        check(user.post("/auth/password", change, expect=200), shapes.LOGIN)
    with api.log_in(email, "another horse") as user:
        assert user.post("/auth/logout", expect=200) is None

    check(api.get("/users", expect=200), shapes.page_of(shapes.USER))
    changed = api.patch(f"/users/{created['id']}", {"name": None, "active": False}, expect=200)
    check(changed, shapes.USER)
    assert (changed["name"], changed["active"]) == (None, False)
    assert changed["updatedAt"] > created["updatedAt"]


def test_leads(api: Api) -> None:
    body = {
        "name": "Ana",
        "email": "Ana@Example.com",
        "phone": "+34 600",
        "attributes": {"n": [1, None]},
    }
    lead = api.post("/leads", body, expect=201)
    check(lead, shapes.LEAD)
    assert {key: lead[key] for key in body} == body
    path = f"/leads/{lead['id']}"
    details = api.get(path, expect=200)
    check(details, shapes.LEAD_DETAILS)
    assert details == {**lead, "verified": True, "possibleDuplicates": []}
    changed = api.patch(path, {"email": None, "attributes": {}}, expect=200)
    check(changed, shapes.LEAD)
    assert (changed["name"], changed["email"], changed["attributes"]) == ("Ana", None, {})
    check(api.get("/leads", expect=200), shapes.page_of(shapes.LEAD))
    assert api.delete(path, expect=200) is None
    api.get(path, expect=404)


def test_attachments(api: Api) -> None:
    uploaded = api.upload(b"hello", "note.txt", expect=201)
    check(uploaded, shapes.ATTACHMENT)
    assert (uploaded["fileName"], uploaded["contentType"]) == ("note.txt", "text/plain")
    assert (uploaded["sizeBytes"], uploaded["width"], uploaded["thumbnailUrl"]) == (5, None, None)
    assert api.get(f"/attachments/{uploaded['id']}", expect=200) == uploaded
    content = httpx.get(uploaded["url"])
    assert (content.status_code, content.content) == (200, b"hello")
    path = f"/conversations/{api.new_conversation()['id']}/messages"
    sent = api.post(path, {"contentType": "FILE", "attachmentIds": [uploaded["id"]]}, expect=201)
    check(sent, shapes.MESSAGE)
    assert sent["attachments"] == [uploaded]


def test_conversations_and_messages(api: Api, agent: Api) -> None:
    body = {"lead": {"name": "Ana"}, "assignedAgentId": agent.user["id"]}
    created = api.post("/conversations", body, expect=201)
    check(created, shapes.CONVERSATION)
    assert created["assignedAgent"]["email"] == agent.user["email"]
    assert (created["status"], created["priority"], created["lastMessage"]) == ("OPEN", None, None)
    assert (created["lastSeq"], created["unreadCount"], created["ai"]) == (0, 0, None)
    by_lead = api.post("/conversations", {"leadId": created["lead"]["id"]}, expect=201)
    assert by_lead["lead"] == created["lead"]
    assert by_lead["assignedAgent"] is None

    path = f"/conversations/{created['id']}"
    assert api.get(path, expect=200) == created
    changes = {"status": "RESOLVED", "priority": "HIGH", "tags": ["a", "b", "a"]}
    changed = api.patch(path, changes, expect=200)
    check(changed, shapes.CONVERSATION)
    assert changed["tags"] == ["a", "b"]
    assert changed["version"] == created["version"] + 1
    check(api.post(f"{path}/assign", {"agentId": None}, expect=200), shapes.CONVERSATION)
    check(api.get("/conversations", expect=200), shapes.page_of(shapes.CONVERSATION))

    sent = {"contentText": "hello", "clientMessageId": "m1", "contentType": "TEXT"}
    message = api.post(f"{path}/messages", sent, expect=201)
    check(message, shapes.MESSAGE)
    assert (message["seq"], message["senderType"], message["private"]) == (1, "AGENT", False)
    assert message["sender"] == {"id": api.user["id"], "name": "admin"}  # of admin@example.com
    assert api.post(f"{path}/messages", sent, expect=200) == message
    media = {"contentType": "IMAGE", "mediaUrl": "https://example.com/a.png"}
    image = api.post(f"{path}/messages", media, expect=201)
    check(image, shapes.MESSAGE)
    listed = api.get(f"{path}/messages", expect=200)
    check(listed, shapes.page_of(shapes.MESSAGE))
    assert listed["items"] == [image, message]
    assert api.get(f"{path}/messages", afterSeq=1)["items"] == [image]
    read = api.post(f"{path}/read", {"seq": 2}, expect=200)
    check(read, shapes.READ_MARK)
    assert read == {"conversationId": created["id"], "seq": 2, "unreadCount": 0}


def test_inbound_and_api_keys(api: Api) -> None:
    shown = api.post("/api-keys", {"name": "shop"}, expect=201)
    check(shown, shapes.SHOWN_API_KEY)
    assert shown["key"].startswith("ik_")
    with Api(api.url, shown["key"]) as key:
        body = {
            "externalId": uuid4().hex,
            "lead": {"name": "Luis", "email": "luis@example.com"},
            "message": {"contentText": "hola"},
        }
        first = key.post("/inbound", body, expect=201)
        check(first, shapes.INBOUND)
        assert first["message"]["senderType"] == "LEAD"
        assert first["message"]["sender"] == {"id": first["leadId"], "name": "Luis"}
        assert key.post("/inbound", body, expect=200) == first
        keys = api.get("/api-keys", limit=100, expect=200)
        check(keys, shapes.page_of(shapes.API_KEY))
        used = next(item for item in keys["items"] if item["id"] == shown["id"])
        assert used["lastUsedAt"] is not None
        assert shown["key"] not in str(keys)
        assert api.delete(f"/api-keys/{shown['id']}", expect=200) is None
        key.post("/inbound", body, expect=401)


def test_dashboard_and_analysis(api: Api, key: Api) -> None:
    check(api.get("/dashboard/metrics", expect=200), shapes.METRICS)
    conversation_id = key.inbound("My invoice is wrong, please refund me.")["conversationId"]
    path = f"/conversations/{conversation_id}"
    check(api.post(f"{path}/analyze", expect=202), dict)
    seen = wait_until(lambda: (c := api.get(path))["ai"] and c)
    check(seen, shapes.CONVERSATION)
    assert seen["summary"] == seen["ai"]["summary"]
    assert seen["ai"]["analyzedThroughSeq"] == 1
    entries = api.get(f"{path}/analyses", expect=200)
    check(entries, {"items": [shapes.ANALYSIS], "nextCursor": (str, None)})
    feedback = f"{path}/analyses/{entries['items'][0]['id']}/feedback"
    check(api.post(feedback, {"verdict": "wrong", "priority": "LOW"}), shapes.ANALYSIS)
    check(api.get("/analysis/usage", expect=200), shapes.ANALYSIS_USAGE)
    check(api.get("/analysis/queue", expect=200), dict)


def test_webhooks(api: Api) -> None:
    body = {"url": "https://webhook.invalid/hook", "events": ["lead.created"]}
    made = api.post("/webhooks", body, expect=201)
    check(made, shapes.SHOWN_WEBHOOK)
    path = f"/webhooks/{made['id']}"
    check(api.get("/webhooks", expect=200), shapes.page_of(shapes.WEBHOOK))
    check(api.get(path, expect=200), shapes.WEBHOOK)
    check(api.patch(path, {"description": "CRM"}, expect=200), shapes.WEBHOOK)
    check(api.post(f"{path}/test", expect=200), shapes.WEBHOOK_TEST)
    check(api.post(f"{path}/rotate-secret", expect=200), shapes.SHOWN_WEBHOOK_SECRET)
    api.post("/leads", {"name": "Ana"})
    deliveries = wait_until(lambda: (found := api.get(f"{path}/deliveries"))["items"] and found)
    check(deliveries, shapes.page_of(shapes.WEBHOOK_DELIVERY))
    delivery = deliveries["items"][0]
    assert (delivery["event"], delivery["status"]) == ("lead.created", "PENDING")
    again = api.post(f"{path}/deliveries/{delivery['id']}/retry", expect=200)
    check(again, shapes.WEBHOOK_DELIVERY)
    since = {"since": "2999-01-01T00:00:00Z"}
    assert api.post(f"{path}/replay", since, expect=200) == {"count": 0}
    assert api.delete(path, expect=200) is None
    api.get(path, expect=404)


def test_health(server: LiveServer) -> None:
    for path in ("/health/live", "/health/ready"):
        response = httpx.get(server.url + path)
        assert response.status_code == 200
        assert response.json()["status"] == "success"
    metrics = httpx.get(server.url + "/metrics")
    assert metrics.status_code == 200
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "/health/ready" in metrics.text


# --- Headers ----------------------------------------------------------------------------------


def test_request_ids(server: LiveServer, api: Api) -> None:
    kept = api.http.get("/auth/me", headers={"X-Request-Id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    failed = httpx.get(f"{server.url}/nowhere", headers={"X-Request-Id": "of/mine"})
    assert failed.json()["error"]["requestId"] == "of/mine" == failed.headers["x-request-id"]
    made = {httpx.get(f"{server.url}/health/live").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert all(made)
    for unusable in ("x" * 129, "two words", "ñ".encode()):
        response = httpx.get(f"{server.url}/health/live", headers={"X-Request-Id": unusable})
        assert response.headers.get_list("x-request-id") != [unusable]
        assert len(response.headers.get_list("x-request-id")) == 1


def test_security_headers(server: LiveServer) -> None:
    for path in ("/health/live", "/nowhere", "/api/v1/auth/me"):
        headers = httpx.get(server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


# --- Every error code -------------------------------------------------------------------------


def test_400(api: Api) -> None:
    error = assert_failure(api.http.post("/leads", json={"name": ""}), 400)
    assert [detail["field"] for detail in error["details"]] == ["name"]
    error = assert_failure(api.http.get("/leads?colour=red"), 400)
    assert [detail["field"] for detail in error["details"]] == ["colour"]


def test_401(server: LiveServer) -> None:
    with Api(server.url) as nobody:
        response = nobody.http.get("/auth/me")
        assert_failure(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        unknown = {"email": "nobody@example.com", "password": PASSWORD}
        wrong = {"email": "admin@example.com", "password": "wrong horse"}
        first = assert_failure(nobody.http.post("/auth/login", json=unknown), 401)
        second = assert_failure(nobody.http.post("/auth/login", json=wrong), 401)
        assert first["message"] == second["message"]


def test_403_and_404(api: Api, agent: Api) -> None:
    assert_failure(agent.http.get("/users"), 403)
    assert_failure(api.http.get(f"/leads/{uuid4()}"), 404)


@pytest.mark.parametrize(
    "path", ["/", "/nowhere", "/api/v1", "/api/v1/nowhere", "/api/v1/leads/1", "/docs/nowhere"]
)
def test_404_of_the_router(server: LiveServer, path: str) -> None:
    assert_failure(httpx.get(server.url + path), 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/leads"), ("DELETE", "/auth/me"), ("PATCH", "/conversations"), ("TRACE", "/leads")],
)
def test_405_of_the_router(api: Api, method: str, path: str) -> None:
    response = api.http.request(method, path)
    assert_failure(response, 405)
    assert "GET" in response.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/auth/me", "/conversations", "/users?limit=x", "/nowhere", "/leads/1"]
)
def test_head_is_get_without_the_body(api: Api, path: str) -> None:
    expected = api.http.get(path)
    for _ in range(2):  # the connection can still be used
        response = api.http.head(path)
        assert response.status_code == expected.status_code
        assert response.content == b""
        assert response.headers["content-length"] == str(len(expected.content))
        assert response.headers["x-request-id"]
        assert response.headers["content-type"] == expected.headers["content-type"]


def test_head_where_there_is_no_get(api: Api) -> None:
    assert api.http.head("/auth/login").status_code == 405


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/docs"])
def test_head_of_the_servers_own_pages(server: LiveServer, path: str) -> None:
    response = httpx.head(server.url + path)
    assert (response.status_code, response.content) == (200, b"")
    counted = f'messaging_http_requests_total{{method="HEAD",route="{path}",status="200"}}'
    assert counted in httpx.get(f"{server.url}/metrics").text


def test_409(api: Api) -> None:
    body = {"email": "ADMIN@example.COM", "password": PASSWORD}
    assert_failure(api.http.post("/auth/register", json=body), 409)


def test_413(api: Api) -> None:
    huge = b'{"name":"' + b"x" * 1_100_000 + b'"}'
    headers = {"Content-Type": "application/json"}
    assert_failure(api.http.post("/leads", content=huge, headers=headers), 413)
    chunks = (huge[start : start + 9_999] for start in range(0, len(huge), 9_999))
    assert_failure(api.http.post("/leads", content=chunks, headers=headers), 413)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_415(api: Api, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = api.http.post("/leads", content=b'{"name":"Ana"}', headers=headers)
    assert_failure(response, 415)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "/auth/register",
            {"email": "a@example.com", "password": "correct horse", "role": "BOSS"},
            "role: must be one of ADMIN, SALES_AGENT",
        ),
        ("/inboxes", {"name": "a", "kind": "x"}, "kind: must be one of WIDGET, API"),
        (
            "/inbound",
            {"externalId": "1", "message": {"contentText": "a", "contentType": "text"}},
            "message.contentType: must be one of TEXT, IMAGE, FILE, AUDIO, VIDEO",
        ),
        (
            "/webhooks",
            {"url": "https://example.com", "events": ["lead.created", "lead.gone"]},
            f"events[1]: must be one of {', '.join(WebhookEvent)}",
        ),
    ],
)
def test_values_that_are_allowed_are_named(
    api: Api, path: str, body: dict[str, Any], message: str
) -> None:
    with api.new_key() as key:
        sender = key if path == "/inbound" else api
        response = sender.http.post(path, json=body)
    assert_failure(response, 400)
    assert response.json()["error"]["message"] == message


@pytest.mark.parametrize("body", [gzip.compress(b'{"name":"Ana"}'), b'{"name":"Ana"}'])
def test_packed_json_is_not_json(api: Api, body: bytes) -> None:
    """Nor what only says that it is packed."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert_failure(api.http.post("/leads", content=body, headers=headers), 415)


def test_json_with_a_charset_is_json(api: Api) -> None:
    for content_type in ("application/json; charset=utf-8", "Application/JSON"):
        headers = {"Content-Type": content_type}
        assert api.http.post("/leads", content=b'{"name":"A"}', headers=headers).is_success


def test_429(postgres: EmbeddedPostgres) -> None:
    limits = {
        "MESSAGING_LIMITS__ENABLED": "true",
        "MESSAGING_LIMITS__LOGINS_PER_MINUTE_PER_ACCOUNT": "3",
        "MESSAGING_LIMITS__LOGINS_PER_MINUTE_PER_ADDRESS": "8",
        "MESSAGING_LIMITS__WRITES_PER_MINUTE_PER_USER": "4",
        "MESSAGING_LIMITS__INBOUND_PER_MINUTE_PER_KEY": "2",
    }
    with fresh_database(postgres) as dsn, live_server(dsn, **limits) as server:
        with Api.first_admin(server.url) as admin, admin.new_key() as key:
            check_limits(admin, key)
        server.assert_no_defects()


def check_limits(admin: Api, key: Api) -> None:
    writes = [admin.http.post("/leads", json={"name": "Ana"}) for _ in range(5)]
    assert [response.status_code for response in writes].count(201) == 3  # making the key was one
    assert_limited(writes[-1])
    assert admin.http.get("/leads").status_code == 200
    for _ in range(2):
        key.inbound("hello")
    assert_limited(key.http.post("/inbound", json={}))
    wrong = {"email": "Admin@example.com ", "password": "wrong horse"}
    logins = [admin.http.post("/auth/login", json=wrong) for _ in range(3)]
    assert [response.status_code for response in logins] == [401, 401, 429]  # one was good
    for number in range(5):
        forged = {"X-Forwarded-For": f"10.0.0.{number}"}  # believed of known proxies only
        other = {**wrong, "email": f"{number}@example.com"}
        of_address = admin.http.post("/auth/login", json=other, headers=forged)
    assert_limited(of_address)


def assert_limited(response: httpx.Response) -> None:
    assert_failure(response, 429)
    assert 1 <= int(response.headers["retry-after"]) <= 60


def test_no_cors_by_default(server: LiveServer) -> None:
    response = httpx.get(f"{server.url}/health/live", headers={"Origin": "https://example.com"})
    assert "access-control-allow-origin" not in response.headers
