"""Filters together: what they find, and that what does not match is not read."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from messaging_server.conversations import search
from messaging_server.conversations.filters import Filters, Selection, Sort
from messaging_server.conversations.kinds import KindCounts
from messaging_server.conversations.search import ConversationList
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.frequencies import Frequency
from messaging_server.leads.search import LeadSearch
from messaging_server.models import Caller, Priority, Role, Status
from messaging_server.postgres import EmbeddedPostgres
from tests.conftest import fresh_database
from tests.conversations.test_search import all_pages

ADMIN = Caller(id=uuid4(), email="admin@example.com", name=None, role=Role.ADMIN)
AGENT = Caller(id=uuid4(), email="agent@example.com", name=None, role=Role.SALES_AGENT)
CONVERSATIONS = 700
SEED = """
with agent as (
    insert into users (id, email, password_hash) values ($1, 'agent@example.com', '-')
), lead as (
    insert into leads (name) values ('Ana') returning id
)
insert into conversations
    (lead_id, assigned_agent_id, status, priority, tags, waiting_since, last_activity_at)
select lead.id, case when n % 2 = 0 then $1 end,
    (array['OPEN', 'SNOOZED', 'RESOLVED'])[1 + n % 3],
    (array['HIGH', 'MEDIUM', 'LOW', null])[1 + n / 7 % 4],
    array['everywhere', 'tag' || n % 5] || case when n % 100 = 7 then array['rare'] end,
    case when n % 11 < 5 then now() - n * interval '1 hour' end,
    now() - n * interval '1 minute'
from lead, generate_series(1, $2) n
"""
FIND_ALL = """
select id from conversations c
where ($1::uuid is null or assigned_agent_id = $1)
    and ($2::text is null or status = $2)
    and ($3::text is null or priority = $3)
    and ($4::boolean is null or (assigned_agent_id is null) = $4)
    and ($5::boolean is null or (waiting_since is not null and status <> 'RESOLVED') = $5)
    and ($6::text is null or $6 = any(tags))
    and (not $7 or (waiting_since is not null and status = 'OPEN'))
order by {}, id {}
"""


@pytest.fixture(scope="module")
def inbox_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    async def seed(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("alter table conversations set (autovacuum_enabled = off)")
        await connection.execute(SEED, AGENT.id, CONVERSATIONS)
        await connection.execute("vacuum analyze conversations")
        await connection.close()

    with fresh_database(postgres) as dsn:
        asyncio.run(seed(dsn))
        yield dsn


def combinations(**values: Any) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


@pytest.mark.parametrize("is_way_random", [False, True])
@pytest.mark.parametrize("who", ["admin", "agent"])
def test_all_combinations(
    inbox_dsn: str, who: str, is_way_random: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few are gone through for a tag, so that it is found in all ways."""
    caller = ADMIN if who == "admin" else AGENT
    monkeypatch.setattr(search, "WALKED_FOR_TAGS", 60)
    if is_way_random:
        chance = random.Random(7)  # noqa: S311  # repeatable
        monkeypatch.setattr(Frequency, "is_common", lambda *_, **__: chance.random() < 0.5)

    async def compare() -> list[int]:
        database = Database(inbox_dsn, pool_size=2, bus=Bus())
        await database.start()
        found = ConversationList(database, LeadSearch(database))
        sizes = []
        for given in combinations(
            status=(None, *Status),
            priority=(None, Priority.HIGH),
            unassigned=(None, False, True) if caller.is_admin else (None,),
            unreplied=(None, False, True),
            tag=(None, "everywhere", "tag1", "rare", "unknown"),
            sort=tuple(Sort),
        ):
            by_urgency = given["sort"] is Sort.URGENCY
            rows = await database.fetch(
                FIND_ALL.format("urgent_since(waiting_since, priority)", "")
                if by_urgency
                else FIND_ALL.format("last_activity_at desc", "desc"),
                None if caller.is_admin else caller.id,
                *(given[name] for name in ("status", "priority", "unassigned", "unreplied")),
                *(given["tag"], by_urgency),
            )
            listed = await all_pages(found, caller, Filters(**given))
            assert listed == [row["id"] for row in rows], given
            sizes.append(len(rows))
        await database.stop()
        return sizes

    sizes = asyncio.run(compare())
    assert max(sizes) == (CONVERSATIONS if caller.is_admin else CONVERSATIONS // 2)
    assert min(sizes) == 0


MANY = 20_000
APART = """
insert into conversations
    (lead_id, assigned_agent_id, status, priority, tags, waiting_since, last_activity_at)
select l.id, case when n % 3 = 0 then $1::uuid end,
    (array['OPEN', 'SNOOZED', 'RESOLVED'])[1 + n % 3],
    (array['HIGH', 'MEDIUM', 'LOW'])[1 + n % 3],
    array['common'] || case when n % 21 = 2 then array['old'] end,
    case when n % 3 = 1 or n % 15 = 3 then now() - n * interval '1 hour' end,
    now() - n * interval '1 minute'
from leads l, generate_series(1, $2) n
"""
"""HIGH is what is OPEN and the agent's, MEDIUM what is SNOOZED and waits, LOW what is RESOLVED."""
PLANNED = "select sum(custom_plans)::integer from pg_prepared_statements"
"""How often this connection has planned a statement for its arguments."""
CONVERSATIONS_READ = """
select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables where relname = 'conversations'
"""
"""By this connection in its transaction; what an index alone tells is not among them."""


@pytest.mark.parametrize(
    ("filters", "are_few"),
    [
        ({"status": Status.OPEN}, False),
        ({"status": Status.SNOOZED, "priority": Priority.HIGH}, True),
        ({"status": Status.OPEN, "priority": Priority.HIGH}, False),
        ({"status": Status.OPEN, "priority": Priority.HIGH, "unassigned": False}, False),
        ({"status": Status.OPEN, "assigned_agent_id": AGENT.id}, False),
        ({"status": Status.SNOOZED, "assigned_agent_id": AGENT.id}, True),
        ({"priority": Priority.HIGH, "assigned_agent_id": AGENT.id}, False),
        ({"status": Status.OPEN, "unassigned": True}, True),
        ({"status": Status.RESOLVED, "unassigned": True}, False),
        ({"status": Status.OPEN, "priority": Priority.LOW, "sort": Sort.URGENCY}, False),
    ],
)
def test_the_counts_say_what_few_meet(
    apart_dsn: str, filters: dict[str, Any], are_few: bool
) -> None:
    async def ask() -> bool:
        database = Database(apart_dsn, pool_size=2, bus=Bus())
        await database.start()
        selection = Selection(ADMIN, Filters(**filters), None)
        found = await KindCounts(database).are_few(selection, wanted=21)
        await database.stop()
        return found

    assert asyncio.run(ask()) is are_few


@pytest.fixture(scope="module")
def apart_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    async def seed(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute("alter table conversations set (autovacuum_enabled = off)")
        await connection.execute(
            "insert into users (id, email, password_hash) values ($1, 'agent@example.com', '-')",
            AGENT.id,
        )
        await connection.execute("insert into leads (name) values ('Ana')")
        await connection.execute(APART, AGENT.id, MANY)
        await connection.execute("vacuum analyze conversations")
        await connection.close()

    with fresh_database(postgres) as dsn:
        asyncio.run(seed(dsn))
        yield dsn


@pytest.mark.parametrize(
    ("filters", "most"),
    [
        (Filters(status=Status.OPEN, priority=Priority.LOW), 50),
        (Filters(status=Status.RESOLVED, unreplied=True), 0),
        (Filters(status=Status.SNOOZED, unreplied=False), 50),
        (Filters(priority=Priority.LOW, unreplied=True), 50),
        (Filters(status=Status.OPEN, priority=Priority.LOW, tag="common"), 50),
        (Filters(priority=Priority.LOW, sort=Sort.URGENCY), 50),
        (Filters(status=Status.SNOOZED, sort=Sort.URGENCY), 0),
        (Filters(assigned_agent_id=AGENT.id, status=Status.SNOOZED), 50),
        (Filters(assigned_agent_id=AGENT.id, priority=Priority.LOW), 50),
        (Filters(assigned_agent_id=AGENT.id, priority=Priority.LOW, unreplied=True), 50),
        (Filters(assigned_agent_id=AGENT.id, status=Status.SNOOZED, priority=Priority.LOW), 0),
        (Filters(assigned_agent_id=AGENT.id, unassigned=True), 0),
        (Filters(unassigned=True, status=Status.OPEN), 50),
        (Filters(unassigned=True, priority=Priority.HIGH, tag="common"), 50),
        # The first 1,000 of those that are OPEN, then the 952 with the tag.
        (Filters(status=Status.OPEN, tag="old"), 2_000),
        (Filters(sort=Sort.URGENCY, tag="old"), 2_000),
    ],
)
def test_what_does_not_match_is_not_read(apart_dsn: str, filters: Filters, most: int) -> None:
    async def read() -> int:
        database = Database(apart_dsn, pool_size=2, bus=Bus())
        await database.start()
        found = ConversationList(database, LeadSearch(database))
        async with database.transaction():
            for _ in range(6):  # then Postgres keeps a plan
                assert await found.fetch_page(ADMIN, filters, limit=20, cursor=None) == ([], None)
        async with database.transaction():
            before = await database.fetch_value(CONVERSATIONS_READ)
            await found.fetch_page(ADMIN, filters, limit=20, cursor=None)
            after = await database.fetch_value(CONVERSATIONS_READ)
        await database.stop()
        return int(after - before)

    assert asyncio.run(read()) <= most


@pytest.mark.parametrize(
    "filters",
    [
        Filters(),
        Filters(status=Status.OPEN),
        Filters(status=Status.OPEN, priority=Priority.HIGH, assigned_agent_id=AGENT.id),
        Filters(status=Status.OPEN, priority=Priority.LOW, tag="common"),
        Filters(assigned_agent_id=AGENT.id, priority=Priority.LOW),
        Filters(unassigned=True, status=Status.OPEN),
        Filters(unreplied=True),
        Filters(sort=Sort.URGENCY, priority=Priority.HIGH),
        Filters(tag="common"),
        Filters(tag="common", status=Status.RESOLVED),
        Filters(tag="old", assigned_agent_id=AGENT.id),
        Filters(tag="unknown"),
    ],
)
def test_statements_are_planned_once(apart_dsn: str, filters: Filters) -> None:
    """Postgres plans anew for ever where it expects much of knowing an argument."""

    async def plan() -> tuple[int, int]:
        database = Database(apart_dsn, pool_size=2, bus=Bus())
        await database.start()
        found = ConversationList(database, LeadSearch(database))
        async with database.transaction():
            for _ in range(8):
                await found.fetch_page(ADMIN, filters, limit=20, cursor=None)
            before = await database.fetch_value(PLANNED)
            await found.fetch_page(ADMIN, filters, limit=20, cursor=None)
            after = await database.fetch_value(PLANNED)
        await database.stop()
        return before, after

    before, after = asyncio.run(plan())
    assert before > 0
    assert after == before
