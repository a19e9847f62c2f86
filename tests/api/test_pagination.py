"""Every list, page by page: each item exactly once, in order, also while rows are added."""

import asyncio
import base64
import random
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from tests.client import Api

ROWS = 23


class List:
    """A list with a filter that some of its rows match, and a way to add such a row."""

    def __init__(
        self,
        user: Api,
        path: str,
        add: Callable[[], Any],
        *,
        newest_first: bool = True,
        **query: str,
    ) -> None:
        self.user = user
        self.path = path
        self.add = add
        self.newest_first = newest_first
        self.query = query

    def pages(self, limits: Iterator[int]) -> Iterator[list[str]]:
        cursor: dict[str, str] = {}
        while True:
            limit = next(limits)
            page = self.user.get(self.path, limit=limit, **self.query, **cursor)
            assert len(page["items"]) <= limit
            yield [item["id"] for item in page["items"]]
            if page["nextCursor"] is None:
                return
            assert len(page["items"]) == limit
            cursor = {"cursor": page["nextCursor"]}

    def all(self) -> list[str]:
        ids: list[str] = []
        for page in self.pages(iter([100] * 100)):
            ids += page
        return ids


@pytest.fixture(scope="module")
def lists(api: Api, key: Api, api_dsn: str) -> dict[str, List]:
    agent = api.new_user()
    tag, word = uuid4().hex[:8], f"w{uuid4().hex[:8]}"

    def converse() -> dict[str, Any]:
        """A conversation that every filter below matches."""
        email = f"{uuid4().hex}@{word}.example"
        got = key.inbound(f"about {word}", lead={"name": "Ana", "email": email})
        path = f"/conversations/{got['conversationId']}"
        api.post(f"{path}/assign", {"agentId": agent.user["id"]})
        api.patch(path, {"tags": [tag], "priority": "HIGH"})
        return got

    for number in range(ROWS):
        got = converse()
        if number % 4 == 0:  # one that no filter matches
            path = f"/conversations/{got['conversationId']}"
            api.patch(path, {"tags": [], "priority": "LOW", "status": "RESOLVED"})
    log = api.new_conversation(agent)["id"]
    for _ in range(ROWS):
        api.send(log)
    for number in range(ROWS):
        api.post("/api-keys", {"name": str(number)})
        api.new_user()
    make_ties(api_dsn)
    with_agent = {"assignedAgentId": agent.user["id"]}
    conversations = {
        "all": {},
        "priority": {"priority": "HIGH"},
        "status": {"status": "OPEN"},
        "tag": {"tag": tag},
        "unreplied": {"unreplied": "true"},
        "agent": with_agent,
        "assigned": {"unassigned": "false"},
        "search of a lead": {"search": f"@{word}.example"},
        "search of messages": {"search": f"about {word}"},
        "everything": {
            "tag": tag,
            "priority": "HIGH",
            "search": word,
            "status": "OPEN",
            **with_agent,
        },
    }
    messages = f"/conversations/{log}/messages"
    urgency = {"sort": "urgency", "tag": tag}  # all HIGH: a new one comes last
    return {
        **{
            f"conversations by urgency of {role}": List(
                user, "/conversations", converse, newest_first=False, **urgency
            )
            for role, user in (("ADMIN", api), ("agent", agent))
        },
        **{
            f"conversations by {name} of {role}": List(user, "/conversations", converse, **query)
            for name, query in conversations.items()
            for role, user in (("ADMIN", api), ("agent", agent))
        },
        "leads": List(api, "/leads", converse),
        "leads of agent": List(agent, "/leads", converse),
        "leads by search": List(api, "/leads", converse, search=f"@{word}."),
        "users": List(api, "/users", api.new_user, newest_first=False),
        "api-keys": List(api, "/api-keys", api.new_key, newest_first=False),
        "messages": List(agent, messages, lambda: api.send(log)),
        "messages upwards": List(agent, messages, lambda: api.send(log), newest_first=False),
    }


def make_ties(dsn: str) -> None:
    """Many rows of the same time: only the id tells them apart."""

    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        for table, column in (
            ("conversations", "last_activity_at"),
            ("conversations", "waiting_since"),
            ("leads", "created_at"),
            ("users", "created_at"),
            ("api_keys", "created_at"),
        ):
            await connection.execute(
                f"update {table} set {column} = date_trunc('second', {column})"
            )
        await connection.close()

    asyncio.run(run())


NAMES = [
    *[
        f"conversations by {name} of {role}"
        for name in ("all", "priority", "status", "tag", "unreplied", "agent", "assigned",
                     "urgency", "search of a lead", "search of messages", "everything")
        for role in ("ADMIN", "agent")
    ],
    "leads", "leads of agent", "leads by search", "users", "api-keys", "messages",
]  # fmt: skip


def some_limits(seed: str, largest: int) -> Iterator[int]:
    numbers = random.Random(seed)  # noqa: S311
    while True:
        yield numbers.randint(1, largest)


@pytest.mark.parametrize("name", NAMES)
def test_every_item_once(lists: dict[str, List], name: str) -> None:
    expected = lists[name].all()
    assert len(expected) >= ROWS // 2
    assert len(set(expected)) == len(expected)
    for largest in (2, 5, 11):
        paged = [item for page in lists[name].pages(some_limits(name, largest)) for item in page]
        assert paged == expected


@pytest.mark.parametrize("name", NAMES)
def test_while_rows_are_added(lists: dict[str, List], name: str) -> None:
    """What was there at the start comes once and in order; new rows push nothing around."""
    listed = lists[name]
    expected = listed.all()
    paged: list[str] = []
    for number, page in enumerate(listed.pages(iter([7] * 1_000))):
        paged += page
        if number < 3:
            listed.add()
    assert [item for item in paged if item in set(expected)] == expected
    assert len(set(paged)) == len(paged)
    if listed.newest_first:
        assert paged == expected
        assert len(listed.all()) == len(expected) + 3
    else:
        assert paged[: len(expected)] == expected


def test_the_log_upwards(lists: dict[str, List]) -> None:
    log = lists["messages upwards"]
    log.query = {"afterSeq": "0"}
    whole = log.all()
    page = log.user.get(log.path, limit=4, afterSeq=0)
    ids: list[str] = []
    while True:
        ids += [item["id"] for item in page["items"]]
        log.add()
        if page["nextCursor"] is None or len(ids) > len(whole):
            break
        page = log.user.get(log.path, limit=4, cursor=page["nextCursor"])
    assert ids[: len(whole)] == whole


# --- Forged cursors ---------------------------------------------------------------------------


def cursor_of(value: Any) -> str:
    data = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def first_cursors(lists: dict[str, List]) -> dict[str, str]:
    names = {
        "conversations": "conversations by all of ADMIN",
        "leads": "leads",
        "users": "users",
        "api-keys": "api-keys",
        "messages": "messages",
    }
    return {
        kind: lists[name].user.get(lists[name].path, limit=2)["nextCursor"]
        for kind, name in names.items()
    }


def test_cursors_of_other_lists(lists: dict[str, List], api: Api) -> None:
    cursors = first_cursors(lists)
    paths = {kind: f"/{kind}" for kind in cursors} | {"messages": lists["messages"].path}
    for kind, cursor in cursors.items():
        for other, path in paths.items():
            error = api.get(path, cursor=cursor, expect=200 if kind == other else 400)
            if kind != other:
                assert [detail["field"] for detail in error["details"]] == ["cursor"]


NOW = "2026-01-01T00:00:00Z"
SOME_ID = "0f1a4e8f-3fdd-476a-9874-e9107f33340c"
FORGED: list[Any] = [
    b"", b"x", b"\xff" * 30, b"\xc1", None, 0, 1.5, True, "x", [], {}, [1, 2], [None, None],
    {"seq": 1}, {"seq": 2**31, "ascending": False}, {"seq": 2**63, "ascending": True},
    {"seq": -(2**40), "ascending": True}, {"seq": "1", "ascending": True}, {"seq": True},
    {"seq": float("nan"), "ascending": True}, {"sort": "activity", "at": NOW, "id": "x"},
    {"sort": "activity", "at": 0, "id": SOME_ID}, {"created_at": "never", "id": SOME_ID},
    {"created_at": "0001-01-01T00:00:00+23:59", "id": SOME_ID},
    {"created_at": "9999-12-31T23:59:59-23:59", "id": SOME_ID},
    {"sort": "activity", "at": "0001-01-01T00:00:00+23:59", "id": SOME_ID},
    {"sort": "activity", "at": "2026-01-01T00:00:00", "id": SOME_ID},
    b"\x91" * 400, b"\x81\xa1" * 100,
]  # fmt: skip


@pytest.mark.parametrize("value", FORGED, ids=lambda value: str(value)[:40])
def test_forged_cursors(lists: dict[str, List], api: Api, value: Any) -> None:
    kinds = ("ConversationCursor", "LeadCursor", "UserCursor", "ApiKeyCursor", "MessageCursor")
    cursors = [cursor_of(value), *(cursor_of([kind, value]) for kind in kinds)]
    paths = ["/conversations", "/leads", "/users", "/api-keys", lists["messages"].path]
    for cursor in cursors:
        for path in paths:
            if cursor:
                assert api.http.get(path, params={"cursor": cursor}).status_code in (200, 400)
    if not isinstance(value, dict):
        for path in paths:
            api.get(path, cursor=cursors[0] or "=", expect=400)


@pytest.mark.parametrize(
    "text", ["", "=", "!!", "a b", "ñ", "+/", "A", "x" * 500, "x" * 501, "%00", "."]
)
def test_no_cursors(lists: dict[str, List], api: Api, text: str) -> None:
    for path in ("/conversations", "/leads", "/users", "/api-keys", lists["messages"].path):
        api.get(path, cursor=text, expect=400)


def test_changed_bytes_of_a_cursor(lists: dict[str, List], api: Api) -> None:
    """Every single byte of a good cursor changed: a page or a 400."""
    path = lists["messages"].path
    for kind, cursor in first_cursors(lists).items():
        data = bytearray(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        for index in range(len(data)):
            changed = bytearray(data)
            changed[index] ^= 0xFF
            where = path if kind == "messages" else f"/{kind}"
            response = api.http.get(where, params={"cursor": cursor_of(bytes(changed))})
            assert response.status_code in (200, 400), response.text
