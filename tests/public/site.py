"""A website in the tests: its inbox, what its server signs, and its visitors' calls."""

import asyncio
import time
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import jwt

from tests.client import Api

HOUR = 3_600


class PublicApi:
    """The public API, as one page calls it with one session, or with none."""

    def __init__(self, url: str, session: dict[str, Any] | None = None, **headers: str) -> None:
        self.session = session or {}
        if session:
            headers["Authorization"] = f"Bearer {session['sessionToken']}"
        self.http = httpx.Client(base_url=f"{url}/api/public/v1", headers=headers, timeout=30)

    @property
    def lead_id(self) -> str:
        return str(self.session["lead"]["id"])

    @property
    def visitor_token(self) -> str:
        return str(self.session["visitorToken"])

    def get(self, path: str, *, expect: int = 200, **query: Any) -> Any:
        return Api.unwrap(self.http.get(path, params=query or None), expect)

    def post(self, path: str, body: Any, *, expect: int) -> Any:
        return Api.unwrap(self.http.post(path, json=body), expect)

    def send(self, text: str = "hello", **fields: Any) -> dict[str, Any]:
        message: dict[str, Any] = self.post(
            "/messages", {"contentText": text, **fields}, expect=201
        )
        return message

    def messages(self, **query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.get("/messages", **query)["items"]
        return items


class Site:
    """A WIDGET inbox, made by an ADMIN, and the server of its website."""

    def __init__(self, admin: Api, **fields: Any) -> None:
        self.admin = admin
        body = {"name": f"Site {uuid4().hex[:6]}", "kind": "WIDGET", **fields}
        self.inbox = admin.post("/inboxes", body, expect=201)
        self.secret = self.inbox["secret"]
        self._open: list[httpx.Client] = []

    @property
    def id(self) -> str:
        return str(self.inbox["id"])

    @property
    def path(self) -> str:
        """Of sessions, below the public prefix."""
        return f"/inboxes/{self.id}/sessions"

    def identity(self, subject: str, **claims: Any) -> str:
        """What the website's server signs for a user who is logged in there."""
        return signed(self.secret, {"sub": subject, "exp": int(time.time()) + HOUR, **claims})

    def page(self, session: dict[str, Any] | None = None, **headers: str) -> PublicApi:
        page = PublicApi(self.admin.url, session, **headers)
        self._open.append(page.http)
        return page

    def open(self, *, expect: int = 201, **body: Any) -> Any:
        """A new session, or the error."""
        return self.page().post(self.path, body, expect=expect)

    def visitor(self, **body: Any) -> PublicApi:
        """A page with a new session."""
        return self.page(self.open(**body))

    def close(self) -> None:
        for client in self._open:
            client.close()


def signed(secret: str | bytes, claims: dict[str, Any], **options: Any) -> str:
    return jwt.encode(claims, secret, **{"algorithm": "HS256", **options})


def sql(dsn: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """What the database says, or is told, behind the server's back."""

    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn)
        rows: list[asyncpg.Record] = await connection.fetch(statement, *arguments)
        await connection.close()
        return rows

    return asyncio.run(run())
