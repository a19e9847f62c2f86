"""The data browser: for ADMINs, read-only, its sessions end with the user's tokens."""

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.client import PASSWORD, Api, LiveServer
from tests.conftest import live_server


@pytest.fixture(scope="module")
def browsing(module_dsn: str) -> Iterator[LiveServer]:
    with live_server(module_dsn, MESSAGING_ADMIN__ENABLED="true") as running:
        yield running


@pytest.fixture(scope="module")
def admin(browsing: LiveServer) -> Iterator[Api]:
    with Api.first_admin(browsing.url) as first:
        yield first


@pytest.fixture
def browser(admin: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{admin.url}/admin") as client:
        client.get("/")
        client.headers["X-CSRFToken"] = client.cookies["csrftoken"]
        yield client


def log_in(browser: httpx.Client, email: str, password: str = PASSWORD) -> int:
    """The answer's status."""
    credentials = {"username": email, "password": password}
    return browser.post("/public/login/", json=credentials).status_code


def test_an_admin_reads_the_tables(admin: Api, browser: httpx.Client) -> None:
    assert log_in(browser, admin.user["email"]) == 200
    assert "conversations" in browser.get("/api/tables/").json()
    users = browser.get("/api/tables/users/").json()["rows"]
    assert [user["email"] for user in users] == [admin.user["email"]]
    assert users[0]["password_hash"] is None


def test_a_page_of_a_table_as_the_browser_asks_for_it(admin: Api, browser: httpx.Client) -> None:
    log_in(browser, admin.user["email"])
    admin.new_conversation()
    query = {"__readable": "true", "__order": "id", "__page_size": "15", "__page": "1"}
    for table in ("users", "leads", "conversations", "messages"):
        answer = browser.get(f"/api/tables/{table}/", params=query)
        assert answer.status_code == 200, answer.text
        assert bool(answer.json()["rows"]) is (table != "messages")


def test_the_address_without_a_slash_leads_to_the_page(admin: Api) -> None:
    """Which names its files relative to itself."""
    answer = httpx.get(f"{admin.url}/admin", follow_redirects=True)
    assert str(answer.url) == f"{admin.url}/admin/"
    script = re.search(r'src="\./([^"]+)"', answer.text)
    assert script
    assert httpx.get(f"{admin.url}/admin/{script[1]}").status_code == 200


def test_nothing_can_be_written(admin: Api, browser: httpx.Client) -> None:
    log_in(browser, admin.user["email"])
    assert browser.post("/api/tables/leads/", json={"name": "x"}).status_code == 405
    assert browser.delete("/api/tables/users/").status_code == 405
    assert browser.post("/api/change-password/", data={"x": "1"}).status_code == 405


@pytest.mark.parametrize("path", ["/api/tables/", "/api/tables/users/", "/api/user/"])
def test_a_stranger_sees_nothing(admin: Api, path: str) -> None:
    assert httpx.get(f"{admin.url}/admin{path}").status_code == 401


def test_agents_and_wrong_passwords_are_refused(admin: Api, browser: httpx.Client) -> None:
    with admin.new_user() as agent:
        assert log_in(browser, agent.user["email"]) == 401
    assert log_in(browser, admin.user["email"], "wrong password") == 401
    assert log_in(browser, "nobody@example.com") == 401


def test_a_session_ends_when_the_admin_logs_out(admin: Api, browser: httpx.Client) -> None:
    with admin.new_user(role="ADMIN") as other:
        assert log_in(browser, other.user["email"]) == 200
        other.post("/auth/logout")
        assert browser.get("/api/tables/").status_code == 401


def test_the_page_runs_only_its_own_scripts(admin: Api) -> None:
    policy = httpx.get(f"{admin.url}/admin/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "script-src" not in policy


def test_it_is_off_by_default(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/admin/").status_code == 404


def test_a_long_login_is_refused_early(admin: Api, browser: httpx.Client) -> None:
    credentials = {"username": "a" * 1_000_000, "password": "b"}
    answer = browser.post("/public/login/", json=credentials)
    assert answer.status_code == 413
    assert log_in(browser, "a" * 300) == 401
