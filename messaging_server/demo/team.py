"""Who works with the demo's inbox: an admin, two agents, and the key with which leads write in."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from msgspec import Struct

from messaging_server.demo.client import Api, Listener
from messaging_server.models import Role


class Person(Struct, frozen=True):
    """Somebody who works with the demo's inbox."""

    name: str
    email: str
    password: str
    role: Role


class Member(Struct, frozen=True):
    """A person who is logged in: calls, and sockets to spread rooms over."""

    id: str
    name: str
    token: str
    api: Api
    sockets: list[Listener]


class Team(Struct, frozen=True):
    admin: Member
    agents: tuple[Member, ...]
    inbound: Api
    """With the API key: how leads write in."""

    @property
    def members(self) -> tuple[Member, ...]:
        return (self.admin, *self.agents)


def new_people() -> tuple[Person, ...]:
    """An admin first, then two agents, with passwords of their own for this one demo."""
    return tuple(
        Person(
            name=name,
            email=f"{name.lower()}@demo.example",
            password=secrets.token_hex(6),
            role=role,
        )
        for name, role in (
            ("Alex", Role.ADMIN),
            ("Ines", Role.SALES_AGENT),
            ("Sam", Role.SALES_AGENT),
        )
    )


@asynccontextmanager
async def gather_team(url: str, people: Sequence[Person]) -> AsyncIterator[Team]:
    """Registers the people on a fresh server, logs them in and makes an API key."""
    async with AsyncExitStack() as stack:

        async def api(token: str = "") -> Api:
            opened = Api(url, token)
            stack.push_async_callback(opened.close)
            return opened

        members: list[Member] = []
        stranger = await api()
        for person in people:
            registrar = members[0].api if members else stranger
            await registrar.post("/auth/register", msgspec.to_builtins(person))
            credentials = {"email": person.email, "password": person.password}
            login = await stranger.post("/auth/login", credentials)
            token = login["token"]
            members.append(Member(login["user"]["id"], person.name, token, await api(token), []))
        key = await members[0].api.post("/api-keys", {"name": "demo"})
        yield Team(members[0], tuple(members[1:]), await api(key["key"]))
