"""Registration, passwords, roles: who becomes what, also when many try at the same moment."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from messaging_server.postgres import EmbeddedPostgres
from tests.client import PASSWORD, Api, LiveServer, together
from tests.conftest import fresh_database, live_server


def registration(**fields: object) -> dict[str, object]:
    return {"email": f"{uuid4().hex[:12]}@example.com", "password": PASSWORD, **fields}


def register_20_at_once(url: str) -> list[httpx.Response]:
    def register() -> httpx.Response:
        return httpx.post(f"{url}/api/v1/auth/register", json=registration(role="SALES_AGENT"))

    return together([register] * 20)


def admins(api: Api) -> list[str]:
    users = api.get("/users", limit=100)["items"]
    return [user["email"] for user in users if user["role"] == "ADMIN" and user["active"]]


@pytest.mark.parametrize("mode", ["admin", "open"])
def test_one_of_many_first_users_is_admin(postgres: EmbeddedPostgres, mode: str) -> None:
    settings = {"MESSAGING_AUTH__REGISTRATION": mode}
    with fresh_database(postgres) as dsn, live_server(dsn, **settings) as server:
        responses = register_20_at_once(server.url)
        made = [r.json()["data"] for r in responses if r.status_code == 201]
        roles = sorted(user["role"] for user in made)
        assert roles[0] == "ADMIN"
        assert roles[1:] == (["SALES_AGENT"] * 19 if mode == "open" else [])
        refused = {response.status_code for response in responses} - {201}
        assert refused == (set() if mode == "open" else {401})
        first = next(user for user in made if user["role"] == "ADMIN")
        with Api(server.url) as nobody:
            admin = nobody.log_in(first["email"])
            assert admins(admin) == [first["email"]]
            check_later_registrations(admin, mode)
            check_last_admin(admin)
        server.assert_no_defects()


def check_later_registrations(admin: Api, mode: str) -> None:
    agent = admin.new_user()
    with Api(admin.url) as nobody:
        made = nobody.post("/auth/register", registration(), expect=201 if mode == "open" else 401)
        assert made.get("role", "SALES_AGENT") == "SALES_AGENT"
        refused = 403 if mode == "open" else 401
        nobody.post("/auth/register", registration(role="ADMIN"), expect=refused)
    agent.post("/auth/register", registration(role="ADMIN"), expect=403)
    agent.post("/auth/register", registration(), expect=201 if mode == "open" else 403)
    admin.post("/auth/register", registration(role="ADMIN"), expect=201)
    with Api(admin.url, "garbage") as forger:
        forger.post("/auth/register", registration(), expect=401)


def check_last_admin(admin: Api) -> None:
    """Ten ADMINs give themselves up at the same time, and one is left."""
    for email in admins(admin):
        if email != admin.user["email"]:
            made = next(u for u in admin.get("/users", limit=100)["items"] if u["email"] == email)
            admin.patch(f"/users/{made['id']}", {"role": "SALES_AGENT"})
    all_admins = [admin, *(admin.new_user("ADMIN") for _ in range(9))]
    changes = [{"role": "SALES_AGENT"}, {"active": False}] * 5

    def give_up(index: int) -> int:
        path = f"/users/{all_admins[index].user['id']}"
        return all_admins[index].http.patch(path, json=changes[index]).status_code

    statuses = together([lambda index=index: give_up(index) for index in range(10)], threads=10)
    assert sorted(statuses) == [200] * 9 + [409]
    last = all_admins[statuses.index(409)]
    assert admins(last) == [last.user["email"]]
    path = f"/users/{last.user['id']}"
    last.patch(path, {"active": False}, expect=409)
    last.patch(path, {"role": "SALES_AGENT", "name": "not even this"}, expect=409)
    assert last.patch(path, {"role": "ADMIN", "active": True, "name": "Eva"})["name"] == "Eva"


@pytest.mark.parametrize(
    ("password", "accepted"),
    [
        ("1234567", False),
        ("12345678", True),
        ("x" * 72, True),
        ("x" * 73, False),
        ("ñ" * 36, True),
        ("ñ" * 36 + "x", False),
        ("😀" * 7, False),
        ("😀" * 8, True),
        ("😀" * 18, True),
        ("😀" * 19, False),
        ("        ", True),
        ("pass\\word'\"", True),
    ],
)
def test_password_rules(api: Api, password: str, accepted: bool) -> None:
    body = registration(password=password)
    if not accepted:
        error = api.post("/auth/register", body, expect=400)
        assert [detail["field"] for detail in error["details"]] == ["password"]
        return
    user = api.post("/auth/register", body, expect=201)
    api.log_in(user["email"], password)
    for wrong in (password + "x", password[:-1]):
        api.post("/auth/login", {"email": user["email"], "password": wrong}, expect=401)


def test_emails_have_no_case(api: Api) -> None:
    unique = uuid4().hex[:8]
    user = api.post("/auth/register", registration(email=f"  Zoë.{unique}@Example.com "))
    assert user["email"] == f"Zoë.{unique}@Example.com"
    for email in (f"ZOË.{unique}@EXAMPLE.COM", f" zoë.{unique}@example.com "):
        assert api.log_in(email).user["id"] == user["id"]
        api.post("/auth/register", registration(email=email), expect=409)


@pytest.mark.parametrize(
    "email",
    ["", "a", "@", "a@", "@b", "a b@c.de", "a@b@c.de", "a@b..de", "a@b,c", "<a@b.de>", "a@b.de\n.x",
     "x" * 250 + "@b.de"],
)  # fmt: skip
def test_no_emails(api: Api, email: str) -> None:
    error = api.post("/auth/register", registration(email=email), expect=400)
    assert [detail["field"] for detail in error["details"]] == ["email"]


def test_20_registrations_with_one_email_make_one_user(api: Api) -> None:
    bodies = [
        registration(email=f"{case}@example.com") for case in ["One", "oNE", "ONE", "one"] * 5
    ]
    statuses = together(
        [
            lambda body=body: api.http.post("/auth/register", json=body).status_code
            for body in bodies
        ]
    )
    assert sorted(statuses) == [201] + [409] * 19


def test_a_name_is_kept_unless_it_is_changed(api: Api, agent: Api) -> None:
    path = f"/users/{agent.user['id']}"
    assert api.patch(path, {"active": True})["name"] == "Eva"
    assert api.patch(path, {"name": None})["name"] is None
    assert api.patch(path, {})["name"] is None


def test_the_user_may_log_in_many_times(server: LiveServer, agent: Api) -> None:
    logins = [agent.log_in(agent.user["email"]) for _ in range(3)]
    assert len({login.token for login in logins}) == 3
    for login in (agent, *logins):
        login.get("/auth/me", expect=200)


def test_a_new_name_counts_at_once(api: Api, agent: Api) -> None:
    """Also for a socket that was open before."""
    conversation_id = api.new_conversation(agent)["id"]

    def shown(frame: dict[str, Any]) -> bool:
        return {**person, "name": "Zoë"} in frame.get("data", {}).get("viewing", ())

    person = {"userId": agent.user["id"], "email": agent.user["email"], "name": "Eva"}
    with agent.socket() as own, api.socket() as other, api.socket() as newcomer:
        for socket in (own, other):
            assert socket.call("conversation:join", conversation_id)["ok"]
        assert agent.send(conversation_id)["sender"]["name"] == "Eva"
        assert own.call("typing:start", conversation_id)["ok"]
        assert other.wait_event("typing:start")["data"] == person
        assert own.call("typing:stop", conversation_id)["ok"]

        api.patch(f"/users/{agent.user['id']}", {"name": "Zoë"}, expect=200)
        assert agent.send(conversation_id)["sender"]["name"] == "Zoë"
        assert own.call("typing:start", conversation_id)["ok"]
        assert other.wait_event("typing:start")["data"] == {**person, "name": "Zoë"}
        assert newcomer.call("conversation:join", conversation_id)["ok"]
        newcomer.wait(shown)
        other.wait(shown)
