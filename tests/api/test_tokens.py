"""Tokens: what is not one of ours, and how those we gave end at once."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.client import PASSWORD, Api, LiveServer
from tests.conftest import SECRET

Claims = dict[str, Any]


def claims_of(api: Api) -> Claims:
    claims: Claims = jwt.decode(api.token or "", options={"verify_signature": False})
    return claims


def signed(claims: Claims, algorithm: str = "HS256", secret: str = SECRET) -> str:
    return jwt.encode(claims, secret, algorithm=algorithm)


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(claims: Claims, algorithm: str, signature: str = "") -> str:
    return f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims)}.{signature}"


def with_payload(claims: Claims, **changes: Any) -> str:
    """The signature of `claims` under other claims."""
    header, _, signature = signed(claims).split(".")
    return f"{header}.{part({**claims, **changes})}.{signature}"


NOW = int(time.time())
DEEP = b"[" * 10_000
ATTACKS: dict[str, Callable[[Claims], str]] = {
    "none": lambda claims: unsigned(claims, "none"),
    "None": lambda claims: unsigned(claims, "None"),
    "none, signed": lambda claims: unsigned(claims, "none", signed(claims).split(".")[2]),
    "empty signature": lambda claims: unsigned(claims, "HS256"),
    "HS384": lambda claims: signed(claims, "HS384"),
    "HS512": lambda claims: signed(claims, "HS512"),
    "RS256": lambda claims: unsigned(claims, "RS256", part(b"x" * 256)),
    "no algorithm": lambda claims: f"{part({})}.{part(claims)}.{signed(claims).split('.')[2]}",
    "another secret": lambda claims: signed(claims, secret="another-secret-of-at-least-32-bytes!"),
    "changed payload": lambda claims: with_payload(claims, sub=str(uuid4())),
    "longer life": lambda claims: with_payload(claims, exp=claims["exp"] + 1),
    "expired": lambda claims: signed({**claims, "exp": NOW - 10}),
    "not yet issued": lambda claims: signed({**claims, "iat": NOW + 3_600}),
    "not yet valid": lambda claims: signed({**claims, "nbf": NOW + 3_600}),
    "endless": lambda claims: signed({**claims, "exp": float("inf")}),
    "far too long": lambda claims: signed({**claims, "exp": 10**30}),
    "exp in words": lambda claims: signed({**claims, "exp": "tomorrow"}),
    "sub is no id": lambda claims: signed({**claims, "sub": "admin"}),
    "sub unknown": lambda claims: signed({**claims, "sub": str(uuid4())}),
    "older version": lambda claims: signed({**claims, "ver": claims["ver"] - 1}),
    "newer version": lambda claims: signed({**claims, "ver": claims["ver"] + 1}),
    "version is a list": lambda claims: signed({**claims, "ver": [0]}),
    "version is huge": lambda claims: signed({**claims, "ver": 10**30}),
    "payload is no object": lambda _: f"{part({'alg': 'HS256'})}.{part([1])}.{part(b'x')}",
    "deep header": lambda claims: f"{part(DEEP)}.{part(claims)}.{part(b'x')}",
    "deep payload": lambda _: f"{part({'alg': 'HS256'})}.{part(DEEP)}.{part(b'x')}",
    "huge": lambda _: "x" * 30_000,
    "dots": lambda _: "...",
    "one part": lambda _: "abc",
    "four parts": lambda claims: signed(claims) + ".x",
    "cut": lambda claims: signed(claims)[:-1],
    "quoted": lambda claims: f'"{signed(claims)}"',
    "an API key": lambda _: "ik_" + "x" * 43,
    **{
        f"without {claim}": lambda claims, claim=claim: signed(
            {name: value for name, value in claims.items() if name != claim}
        )
        for claim in ("sub", "role", "iat", "exp", "jti", "ver")
    },
}


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")  # of HS384, HS512
@pytest.mark.parametrize("attack", ATTACKS)
def test_not_one_of_ours(api: Api, attack: str) -> None:
    token = ATTACKS[attack](claims_of(api))
    headers = {"Authorization": f"Bearer {token}"}
    response = httpx.get(f"{api.url}/api/v1/auth/me", headers=headers)
    assert response.status_code == 401, response.text
    assert response.json()["error"]["code"] == "unauthenticated"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Basic YTpi", "Bearerx", "Token x", "Bearer ñandú".encode(),
     "Bearer ñ".encode("latin-1"), b"Bearer \xff\xfe", b"Bearer ik_\xff"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/auth/me", "/inbound"])
def test_unusable_header(api: Api, path: str, header: str | bytes) -> None:
    method = "GET" if path == "/auth/me" else "POST"
    url = f"{api.url}/api/v1{path}"
    response = httpx.request(method, url, headers={"Authorization": header}, json=None)
    assert response.status_code == 401, response.text


def test_the_scheme_has_no_case_and_our_own_token_works(api: Api) -> None:
    for header in (f"bearer {api.token}", f"BEARER  {signed(claims_of(api))}"):
        response = httpx.get(f"{api.url}/api/v1/auth/me", headers={"Authorization": header})
        assert response.status_code == 200


def test_a_token_never_comes_in_the_url(api: Api) -> None:
    assert httpx.get(f"{api.url}/api/v1/auth/me?token={api.token}").status_code in (400, 401)
    assert httpx.get(f"{api.url}/api/v1/auth/me?access_token={api.token}").status_code in (400, 401)


def test_its_claims(api: Api) -> None:
    claims = claims_of(api)
    assert claims["sub"] == api.user["id"]
    assert claims["role"] == "ADMIN"
    assert claims["exp"] - claims["iat"] == 12 * 3_600
    assert {"jti", "ver"} < set(claims)


# --- Ends at once -----------------------------------------------------------------------------


def warm(*tokens: Api) -> None:
    """The server has seen these tokens a moment ago, and holds them for good."""
    for token in tokens:
        token.get("/auth/me", expect=200)


def test_logout_ends_all_tokens(api: Api, agent: Api) -> None:
    with api.log_in(agent.get("/auth/me")["email"]) as second:
        warm(agent, second)
        agent.post("/auth/logout", expect=200)
        agent.get("/auth/me", expect=401)
        second.get("/auth/me", expect=401)
        with api.log_in(second.user["email"]) as third:
            warm(third)


def test_a_new_password_ends_all_tokens_but_the_answers(server: LiveServer, agent: Api) -> None:
    warm(agent)
    change = {"currentPassword": PASSWORD, "newPassword": "another horse"}
    login = agent.post("/auth/password", change, expect=200)
    agent.get("/auth/me", expect=401)
    email = agent.user["email"]
    with Api(server.url, login["token"]) as new:
        warm(new)
        new.post("/auth/login", {"email": email, "password": PASSWORD}, expect=401)
        new.post("/auth/login", {"email": email, "password": "another horse"}, expect=200)


def test_a_wrong_current_password_ends_nothing(agent: Api) -> None:
    change = {"currentPassword": "wrong horse", "newPassword": "another horse"}
    error = agent.post("/auth/password", change, expect=400)
    assert [detail["field"] for detail in error["details"]] == ["currentPassword"]
    weak = {"currentPassword": PASSWORD, "newPassword": "short"}
    error = agent.post("/auth/password", weak, expect=400)
    assert [detail["field"] for detail in error["details"]] == ["newPassword"]
    warm(agent)


def test_a_new_role_ends_all_tokens(api: Api, agent: Api) -> None:
    warm(agent)
    api.patch(f"/users/{agent.user['id']}", {"role": "ADMIN"}, expect=200)
    agent.get("/auth/me", expect=401)
    with api.log_in(agent.user["email"]) as promoted:
        promoted.get("/users", expect=200)
        api.patch(f"/users/{agent.user['id']}", {"role": "SALES_AGENT"}, expect=200)
        promoted.get("/users", expect=401)


def test_a_deactivation_ends_all_tokens_for_good(api: Api, agent: Api) -> None:
    warm(agent)
    path = f"/users/{agent.user['id']}"
    api.patch(path, {"active": False}, expect=200)
    agent.get("/auth/me", expect=401)
    login = {"email": agent.user["email"], "password": PASSWORD}
    wrong = {**login, "password": "wrong horse"}
    refused = api.post("/auth/login", login, expect=401)
    assert refused["message"] == api.post("/auth/login", wrong, expect=401)["message"]
    api.patch(path, {"active": True}, expect=200)
    agent.get("/auth/me", expect=401)
    with api.log_in(agent.user["email"]) as again:
        warm(again)


def test_another_name_ends_nothing(api: Api, agent: Api) -> None:
    warm(agent)
    same = {"name": "Eva María", "role": "SALES_AGENT", "active": True}
    api.patch(f"/users/{agent.user['id']}", same, expect=200)
    assert agent.get("/auth/me", expect=200)["name"] == "Eva María"


def test_a_deleted_key_ends_at_once(api: Api) -> None:
    shown = api.post("/api-keys", {"name": "short-lived"})
    with Api(api.url, shown["key"]) as key:
        key.inbound("hello")
        api.delete(f"/api-keys/{shown['id']}", expect=200)
        key.post("/inbound", {}, expect=401)
    api.delete(f"/api-keys/{shown['id']}", expect=404)
