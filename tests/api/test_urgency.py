"""Who needs a reply first: `sort=urgency`, and the `urgency` that each conversation shows."""

import asyncio
import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging_server.conversations.filters import ORDERS, Sort
from messaging_server.conversations.urgency import DAY, NEEDS_REPLY, Wait
from messaging_server.models import Priority
from tests.client import Api

States = list[tuple[str | None, timedelta | None]]

SIZE = 12


async def execute(dsn: str, sql: str, rows: list[tuple[Any, ...]]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.executemany(sql, rows)
    finally:
        await connection.close()


class Team:
    """An agent with some conversations, whose priority and waiting time are written by SQL."""

    def __init__(self, api: Api, dsn: str, size: int = SIZE) -> None:
        self.api = api
        self.dsn = dsn
        self.agent = api.new_user()
        self.ids = [api.new_conversation(self.agent)["id"] for _ in range(size)]

    def set(self, states: States) -> None:
        """Priority and time waited of each conversation; the others don't wait."""
        states = [*states, *[(None, None)] * (len(self.ids) - len(states))]
        sql = """
            update conversations set priority = $2, waiting_since = now() - $3::interval
            where id = $1
        """
        rows = [(self.ids[index], *state) for index, state in enumerate(states)]
        asyncio.run(execute(self.dsn, sql, rows))

    def listed(self, user: Api | None = None, **query: Any) -> list[str]:
        items = self.items(user, **query)
        return [item["id"] for item in items if item["id"] in self.ids]

    def items(self, user: Api | None = None, **query: Any) -> list[dict[str, Any]]:
        return [item for page in self.pages(user or self.agent, **query) for item in page]

    def pages(self, user: Api, *, limit: int = 100, **query: Any) -> Iterator[list[dict[str, Any]]]:
        while True:
            page = user.get("/conversations", sort="urgency", limit=limit, **query)
            yield page["items"]
            if page["nextCursor"] is None:
                return
            query["cursor"] = page["nextCursor"]

    def shown(self, index: int) -> Any:
        return self.agent.get(f"/conversations/{self.ids[index]}")["urgency"]


def hours(number: float) -> timedelta:
    return timedelta(hours=number)


def head_start(priority: str | None) -> timedelta:
    """As docs/api.md tells it."""
    return hours({"HIGH": 72, "MEDIUM": 24, None: 12, "LOW": 0}[priority])


@pytest.fixture(scope="module")
def team(api: Api, api_dsn: str) -> Team:
    return Team(api, api_dsn)


# --- The order --------------------------------------------------------------------------------


STATE = st.tuples(
    st.sampled_from(["HIGH", "MEDIUM", None, "LOW"]),
    st.none() | st.timedeltas(timedelta(0), timedelta(days=9)),
)


@settings(max_examples=40, deadline=None)
@given(states=st.lists(STATE, max_size=SIZE), limit=st.integers(1, 5))
def test_the_order_is_that_of_the_formula(team: Team, states: States, limit: int) -> None:
    team.set(states)
    expected = sorted(
        (-head_start(priority) - waited, team.ids[index])
        for index, (priority, waited) in enumerate(states)
        if waited is not None
    )
    items = team.items(limit=limit)
    assert [item["id"] for item in items] == [conversation_id for _, conversation_id in expected]
    scores = [item["urgency"]["score"] for item in items]
    assert scores == pytest.approx([-each / hours(1) for each, _ in expected], abs=0.06)
    assert scores == sorted(scores, reverse=True)


def test_what_the_formula_is_for(team: Team) -> None:
    """HIGH goes before what came since the weekend, but nobody waits for ever."""
    minute = timedelta(minutes=1)
    team.set([("LOW", hours(9)), ("HIGH", minute), ("MEDIUM", hours(40)), ("LOW", hours(63))])
    assert team.listed() == [team.ids[index] for index in (1, 2, 3, 0)]
    team.set([("HIGH", minute), ("LOW", hours(73)), ("MEDIUM", hours(50)), (None, minute)])
    assert team.listed() == [team.ids[index] for index in (2, 1, 0, 3)]


def test_ties_are_told_apart_by_the_id(team: Team) -> None:
    async def tie() -> None:
        connection = await asyncpg.connect(team.dsn)
        await connection.execute(
            "update conversations set priority = 'LOW', waiting_since = $2 where id = any($1)",
            team.ids,
            datetime.now(UTC),
        )
        await connection.close()

    asyncio.run(tie())
    for limit in (1, 5, 100):
        assert team.listed(limit=limit) == sorted(team.ids)


@pytest.mark.parametrize("condition", ["", f"and c.assigned_agent_id = '{UUID(int=1)}'"])
def test_the_order_is_that_of_an_index(api_dsn: str, condition: str) -> None:
    """Which of the two that begin so is for Postgres to say; nothing is sorted."""

    async def plan() -> str:
        connection = await asyncpg.connect(api_dsn)
        await connection.execute("set enable_seqscan = off; set enable_sort = off")
        await connection.execute("set enable_bitmapscan = off")
        rows = await connection.fetch(
            f"""
            explain select c.id from conversations c where {NEEDS_REPLY} {condition}
            {ORDERS[Sort.URGENCY].clause} limit 20
            """
        )
        await connection.close()
        return "\n".join(row[0] for row in rows)

    found = asyncio.run(plan())
    assert "_urgency on" in found
    assert "Sort" not in found


# --- Pages ------------------------------------------------------------------------------------


def test_pages_while_rows_change(api: Api, api_dsn: str, key: Api) -> None:
    """What is left alone comes once and in order, whatever happens to the others."""
    team = Team(api, api_dsn, size=24)
    team.set([(("HIGH", "LOW", None)[n % 3], hours(n * 5 % 24)) for n in range(24)])
    expected = team.listed()
    changed = set(expected[::4])
    disturbances = [
        {"priority": "HIGH"}, {"priority": "LOW"}, {"status": "RESOLVED"}, {"status": "SNOOZED"},
        {"priority": "MEDIUM"}, None,
    ]  # fmt: skip
    pages = team.pages(team.agent, limit=4)
    seen: list[str] = []
    for conversation_id, change in zip(sorted(changed), disturbances, strict=True):
        seen += [item["id"] for item in next(pages, [])]
        if change is None:
            team.agent.send(conversation_id)
        else:
            api.patch(f"/conversations/{conversation_id}", change)
        new = key.inbound("help")["conversationId"]
        api.post(f"/conversations/{new}/assign", {"agentId": team.agent.user["id"]})
    for page in pages:
        seen += [item["id"] for item in page]
    left_alone = [each for each in expected if each not in changed]
    assert [each for each in seen if each in left_alone] == left_alone


def test_a_cursor_belongs_to_its_sort(team: Team) -> None:
    team.set([("LOW", hours(1)), ("LOW", hours(2))])
    for sort, other in (("urgency", "activity"), ("activity", "urgency")):
        page = team.agent.get("/conversations", sort=sort, limit=1)
        following = {"limit": 1, "cursor": page["nextCursor"]}
        team.agent.get("/conversations", sort=sort, **following, expect=200)
        error = team.agent.get("/conversations", sort=other, **following, expect=400)
        detail = {"field": "cursor", "message": f"was given out for sort={sort}"}
        assert error["details"] == [detail]
    default = team.agent.get("/conversations", limit=1)["nextCursor"]
    team.agent.get("/conversations", sort="activity", cursor=default, expect=200)
    team.agent.get("/conversations", sort="urgency", cursor=default, expect=400)


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00Z",
                                "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", 0])  # fmt: skip
def test_forged_cursors(team: Team, at: Any) -> None:
    for sort in ("urgency", "activity", "age", 1):
        cursor = ("ConversationCursor", {"sort": sort, "at": at, "id": str(uuid4())})
        text = base64.urlsafe_b64encode(msgspec.msgpack.encode(cursor)).rstrip(b"=").decode()
        for asked in ("urgency", "activity"):
            query = {"sort": asked, "cursor": text}
            assert team.agent.http.get("/conversations", params=query).status_code in (200, 400)


@pytest.mark.parametrize("sort", ["", "URGENCY", "priority", "null", "urgency,activity"])
def test_no_sorts(team: Team, sort: str) -> None:
    error = team.agent.get("/conversations", sort=sort, expect=400)
    assert [detail["field"] for detail in error["details"]] == ["sort"]


# --- Filters and roles ------------------------------------------------------------------------


def test_it_combines_with_every_filter(team: Team, api: Api, key: Api) -> None:
    high, medium, low = team.ids[:3]
    tag, word = uuid4().hex[:8], f"w{uuid4().hex[:8]}"
    for conversation_id in (high, low):
        ours = {"tags": [tag], "priority": "HIGH"}  # which the analysis leaves alone
        api.patch(f"/conversations/{conversation_id}", ours)
        lead = api.get(f"/conversations/{conversation_id}")["lead"]
        key.inbound(f"about {word}", lead={"name": lead["name"], "email": lead["email"]})
        api.patch(f"/leads/{lead['id']}", {"name": f"Ana {word}"})
    team.set([("HIGH", hours(1)), ("MEDIUM", hours(2)), ("LOW", hours(3))])
    mine = {"assignedAgentId": team.agent.user["id"]}
    expected: list[tuple[dict[str, str], list[str]]] = [
        ({}, [high, medium, low]),
        (mine, [high, medium, low]),
        ({"priority": "MEDIUM"}, [medium]),
        ({"tag": tag}, [high, low]),
        ({"search": word}, [high, low]),
        ({"search": f"about {word}", "priority": "LOW"}, [low]),
        ({"search": f"Ana {word}", "tag": tag, "status": "OPEN", **mine}, [high, low]),
        ({"status": "OPEN"}, [high, medium, low]),
        ({"status": "SNOOZED"}, []),
        ({"status": "RESOLVED"}, []),
        ({"unassigned": "true"}, []),
        ({"unassigned": "false"}, [high, medium, low]),
        ({"unreplied": "true"}, [high, medium, low]),
        ({"unreplied": "false"}, []),
    ]
    for query, ids in expected:
        for user in (team.agent, api):
            for limit in (1, 100):
                assert team.listed(user, limit=limit, **query) == ids, query


def test_an_agent_sees_only_their_own(team: Team, api: Api, stranger: Api) -> None:
    team.set([("LOW", hours(1)), ("HIGH", hours(1))])
    other = Team(api, team.dsn, size=1)
    other.set([("MEDIUM", hours(1))])
    assert [item["id"] for item in team.items()] == [team.ids[1], team.ids[0]]
    assert [item["id"] for item in other.items()] == other.ids
    assert stranger.get("/conversations", sort="urgency")["items"] == []
    ours = [*team.ids[:2], *other.ids]
    seen = [item["id"] for item in team.items(api) if item["id"] in ours]
    assert seen == [team.ids[1], other.ids[0], team.ids[0]]
    foreign = {"assignedAgentId": team.agent.user["id"]}
    assert stranger.get("/conversations", sort="urgency", **foreign)["items"] == []


# --- What is shown ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("priority", "waited", "expected"),
    [
        ("HIGH", timedelta(0), (72.0, "HIGH priority, waiting less than a minute")),
        ("HIGH", hours(3.02), (75.0, "HIGH priority, waiting 3 h")),
        ("MEDIUM", timedelta(minutes=1), (24.0, "MEDIUM priority, waiting 1 min")),
        ("MEDIUM", timedelta(minutes=59), (25.0, "MEDIUM priority, waiting 59 min")),
        ("LOW", hours(47.9), (47.9, "LOW priority, waiting 47 h")),
        ("LOW", timedelta(days=2), (48.0, "LOW priority, waiting 2 days")),
        ("LOW", timedelta(days=400), (9600.0, "LOW priority, waiting 400 days")),
        (None, hours(1), (13.0, "No priority yet, waiting 1 h")),
        ("LOW", -hours(1), (0.0, "LOW priority, waiting less than a minute")),
    ],
)
def test_score_and_reason(
    team: Team, priority: str | None, waited: timedelta, expected: tuple[float, str]
) -> None:
    team.set([(priority, waited)])
    urgency = {"score": expected[0], "reason": expected[1]}
    assert team.shown(0) == urgency
    assert [item["urgency"] for item in team.items()] == [urgency]
    by_activity = team.agent.get("/conversations", limit=100)["items"]
    assert [each["urgency"] for each in by_activity if each["id"] == team.ids[0]] == [urgency]


def test_null_unless_it_is_open_and_waits(team: Team, api: Api) -> None:
    path = f"/conversations/{team.ids[0]}"
    team.set([])
    assert team.shown(0) is None
    team.set([("HIGH", hours(1))])
    waiting = team.shown(0)
    assert waiting is not None
    for status in ("RESOLVED", "SNOOZED"):
        changed = api.patch(path, {"status": status})
        assert changed["waitingSince"] is not None
        assert changed["urgency"] is None
        assert team.listed() == []
        assert api.patch(path, {"status": "OPEN"})["urgency"] == waiting
        assert team.listed() == team.ids[:1]
    team.agent.send(team.ids[0], "a note", private=True)
    assert team.shown(0) == waiting
    team.agent.send(team.ids[0], "an answer")
    assert team.shown(0) is None
    assert team.listed() == []


def test_a_new_priority_counts_at_once(team: Team, api: Api) -> None:
    team.set([("LOW", hours(2)), ("MEDIUM", hours(1))])
    assert team.listed() == [team.ids[1], team.ids[0]]
    changed = api.patch(f"/conversations/{team.ids[0]}", {"priority": "HIGH"})
    assert changed["urgency"] == {"score": 74.0, "reason": "HIGH priority, waiting 2 h"}
    assert team.listed() == [team.ids[0], team.ids[1]]


def test_pushes_carry_it(api: Api, key: Api, agent: Api) -> None:
    conversation = api.new_conversation(agent)
    lead = {"name": "Ana", "email": conversation["lead"]["email"]}
    path = f"/conversations/{conversation['id']}"
    with agent.socket() as socket:

        def pushed(version: int) -> Any:
            """What a push shows as of this version or a later one."""
            frame = socket.wait(
                lambda frame: (
                    frame.get("event") == "conversation:updated"
                    and frame["conversationId"] == conversation["id"]
                    and frame["version"] >= version
                )
            )
            return frame["data"]["conversation"]["urgency"]

        api.patch(path, {"priority": "HIGH"})
        key.inbound("help", lead=lead)
        urgency = {"score": 72.0, "reason": "HIGH priority, waiting less than a minute"}
        assert pushed(agent.get(path)["version"]) == urgency
        agent.send(conversation["id"])
        assert pushed(agent.get(path)["version"]) is None


@given(
    since=st.floats(1.7e9, 1.8e9),
    head_start=st.sampled_from([0, DAY, 3 * DAY]),
    waited=st.floats(-60, 4 * DAY),
    part=st.floats(0, 1),
)
def test_an_urgency_holds_until_it_changes(
    since: float, head_start: float, waited: float, part: float
) -> None:
    """And no longer: what is shown from a cache is what would be shown anew."""
    wait = Wait.of(Priority.HIGH, since, since - head_start)
    now = since + waited
    change = wait.changes_after(now)
    assert change > now
    shortly_before = change - 0.001
    if shortly_before > now:
        assert wait.urgency(now + part * (shortly_before - now)) == wait.urgency(now)
    assert wait.urgency(change + 0.001) != wait.urgency(now)
