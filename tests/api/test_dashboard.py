"""The dashboard's counters against counting everything, after many random changes."""

import asyncio
import random
import statistics
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from messaging_server.conversations.queries import compact_counts
from messaging_server.dashboard.service import Dashboard
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.postgres import EmbeddedPostgres
from tests.client import Api, together
from tests.conftest import fresh_database, live_server

OPERATIONS = 400


@pytest.fixture(scope="module")
def dashboard_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    with fresh_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def admin(dashboard_dsn: str) -> Iterator[Api]:
    """A server of its own, whose conversations nobody else changes: not even an analysis."""
    settings = {"MESSAGING_ANALYSIS__ENABLED": "false"}
    with (
        live_server(dashboard_dsn, **settings) as server,
        Api.first_admin(server.url) as admin,
    ):
        yield admin
        server.assert_no_defects()


class Office:
    """Two agents and an ADMIN who do something at random."""

    def __init__(self, admin: Api, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        self.admin = admin
        self.key = admin.new_key()
        self.agents = [admin.new_user(), admin.new_user()]
        self.conversations: list[dict[str, Any]] = []

    def act(self) -> None:
        if len(self.conversations) < 5:
            self.open()
            return
        actions = [self.open, self.reply, self.note, *[self.lead_writes] * 2, self.change]
        actions += [self.assign, self.read]
        self.random.choice(actions)()
        if self.random.random() < 0.02:
            gone = self.conversations.pop(self.random.randrange(len(self.conversations)))
            self.admin.delete(f"/leads/{gone['lead']['id']}")

    def any_path(self) -> str:
        return f"/conversations/{self.random.choice(self.conversations)['id']}"

    def open(self) -> None:
        agent = self.random.choice([None, *self.agents])
        self.conversations.append(self.admin.new_conversation(agent))

    def reply(self) -> None:
        self.admin.post(f"{self.any_path()}/messages", {"contentText": "an answer"})

    def note(self) -> None:
        body = {"contentText": "a note", "private": True}
        self.admin.post(f"{self.any_path()}/messages", body)

    def lead_writes(self) -> None:
        lead = self.random.choice(self.conversations)["lead"]
        self.key.inbound("a question", lead={"name": lead["name"], "email": lead["email"]})

    def change(self) -> None:
        changes: list[dict[str, Any]] = [
            *({"status": status} for status in ("OPEN", "SNOOZED", "RESOLVED")),
            *({"priority": priority} for priority in ("HIGH", "MEDIUM", "LOW", None)),
            {"snoozedUntil": "2999-01-01T00:00:00Z"},
            {"status": "RESOLVED", "priority": "LOW"},
        ]
        self.admin.patch(self.any_path(), self.random.choice(changes))

    def assign(self) -> None:
        agent = self.random.choice([None, *(agent.user["id"] for agent in self.agents)])
        self.admin.post(f"{self.any_path()}/assign", {"agentId": agent})

    def read(self) -> None:
        self.admin.post(f"{self.any_path()}/read", {"seq": 1})


def all_conversations(user: Api) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = user.get("/conversations", limit=100, **cursor)
        items += page["items"]
        if page["nextCursor"] is None:
            return items
        cursor = {"cursor": page["nextCursor"]}


def counted(user: Api) -> dict[str, Any]:
    """The metrics, by looking at every conversation and every message."""
    items = all_conversations(user)

    def count(**fields: Any) -> int:
        return sum(all(item[key] == value for key, value in fields.items()) for item in items)

    return {
        "totalConversations": len(items),
        "totalUnreplied": sum(
            item["waitingSince"] is not None and item["status"] != "RESOLVED" for item in items
        ),
        "priorityBreakdown": {
            "high": count(priority="HIGH"),
            "medium": count(priority="MEDIUM"),
            "low": count(priority="LOW"),
            "unanalyzed": count(priority=None),
        },
        "open": count(status="OPEN"),
        "snoozed": count(status="SNOOZED"),
        "resolved": count(status="RESOLVED"),
        "unassigned": count(assignedAgent=None),
    }


def first_reply_seconds(user: Api, conversation: dict[str, Any]) -> float | None:
    path = f"/conversations/{conversation['id']}/messages"
    first_question = None
    for message in user.get(path, afterSeq=0, limit=100)["items"]:
        at = datetime.fromisoformat(message["createdAt"])
        if message["senderType"] == "LEAD" and first_question is None:
            first_question = at
        if message["senderType"] == "AGENT" and not message["private"] and first_question:
            return (at - first_question).total_seconds()
    return None


def test_the_counters_equal_a_count(admin: Api, dashboard_dsn: str) -> None:
    office = Office(admin, seed=20_260_101)
    users = [admin, *office.agents]
    for number in range(OPERATIONS):
        office.act()
        if number % 50 == 25:
            compact(dashboard_dsn)
        if number % 40 == 0:
            for user in users:
                assert_counted(user)
    for user in users:
        assert_counted(user)
    time.sleep(Dashboard.MEDIAN_SECONDS)
    for user in users:
        replies = [first_reply_seconds(user, item) for item in all_conversations(user)]
        answered = [seconds for seconds in replies if seconds is not None]
        median = user.get("/dashboard/metrics")["medianFirstReplySeconds"]
        assert answered
        assert median == pytest.approx(statistics.median(answered), abs=0.002)


def assert_counted(user: Api) -> None:
    metrics = user.get("/dashboard/metrics")
    del metrics["medianFirstReplySeconds"], metrics["ai"]
    assert metrics == counted(user)


def test_the_counters_after_many_changes_at_once(admin: Api, dashboard_dsn: str) -> None:
    office = Office(admin, seed=7)
    for _ in range(10):
        office.open()

    def act() -> None:
        actions = [office.reply, office.lead_writes, office.change, office.assign]
        office.random.choice(actions)()

    together([act] * 200 + [lambda: compact(dashboard_dsn)] * 5, threads=12)
    for user in (admin, *office.agents):
        assert_counted(user)


def test_an_agent_without_conversations(admin: Api) -> None:
    with admin.new_user() as agent:
        assert agent.get("/dashboard/metrics") == {
            "totalConversations": 0,
            "totalUnreplied": 0,
            "priorityBreakdown": {"high": 0, "medium": 0, "low": 0, "unanalyzed": 0},
            "open": 0,
            "snoozed": 0,
            "resolved": 0,
            "unassigned": 0,
            "medianFirstReplySeconds": None,
            "ai": {"provider": "local", "model": "", "fallback": "local", "budgetSpent": False},
        }


def compact(dsn: str) -> None:
    """What the server does every ten seconds."""

    async def run() -> None:
        database = Database(dsn, pool_size=2, bus=Bus())
        await database.start()
        try:
            await compact_counts(database, at_least=1)
        finally:
            await database.stop()

    asyncio.run(run())
