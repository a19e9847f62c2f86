"""Tags are found in two ways, by how common they are; both find the same."""

import asyncio
from uuid import UUID, uuid4

import msgspec
import pytest

from messaging_server.conversations.filters import Filters
from messaging_server.conversations.search import LOOKED_UP_FOR_TAGS, ConversationList
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.frequencies import ElementFrequencies, Frequency
from messaging_server.leads.search import LeadSearch
from messaging_server.models import Caller, Conversation, Role
from messaging_server.postgres import EmbeddedPostgres
from tests.conftest import fresh_database

CONVERSATIONS = 1_200
SEED = """
with agent as (
    insert into users (id, email, password_hash) values ($1, 'agent@example.com', '-')
), lead as (
    insert into leads (name) values ('Ana') returning id
)
insert into conversations (lead_id, assigned_agent_id, tags, last_activity_at)
select lead.id, case when n % 3 = 0 then $1 end,
    array['common'] || case when n % 200 = 7 then array['rare', 'odd'] else '{}' end,
    now() - n * interval '1 minute'
from lead, generate_series(1, $2) n
"""


async def all_with(database: Database, caller: Caller, tag: str) -> list[UUID]:
    listed = ConversationList(database, LeadSearch(database))
    found: list[UUID] = []
    cursor = None
    while True:
        page, cursor = await listed.fetch_page(caller, Filters(tag=tag), limit=30, cursor=cursor)
        shown = [msgspec.json.decode(each, type=Conversation) for each in page]
        assert all(tag in conversation.tags for conversation in shown)
        found += [conversation.id for conversation in shown]
        if cursor is None:
            return found


async def expected(database: Database, caller: Caller, tag: str) -> list[UUID]:
    rows = await database.fetch(
        """
        select id from conversations
        where tags @> array[$1::text] and ($2 or assigned_agent_id = $3)
        order by last_activity_at desc, id desc
        """,
        tag,
        caller.is_admin,
        caller.id,
    )
    return [row["id"] for row in rows]


def test_both_ways_find_the_same(postgres: EmbeddedPostgres) -> None:
    async def scenario(dsn: str) -> None:
        database = Database(dsn, pool_size=2, bus=Bus())
        await database.start()
        try:
            agent_id = uuid4()
            await database.execute(SEED, agent_id, CONVERSATIONS)
            callers = [
                Caller(id=uuid4(), email="admin@example.com", name=None, role=Role.ADMIN),
                Caller(id=agent_id, email="agent@example.com", name=None, role=Role.SALES_AGENT),
            ]
            for analysed in (False, True):
                if analysed:
                    await database.execute("analyze conversations")
                    known = await ElementFrequencies(database, "conversations", "tags").fetch()
                    assert known["common"].is_common(wanted=31)
                    assert not known["rare"].is_common(wanted=31)
                for caller in callers:
                    for tag in ("common", "rare", "odd", "unknown", "it's"):
                        found = await all_with(database, caller, tag)
                        assert found == await expected(database, caller, tag)
        finally:
            await database.stop()

    with fresh_database(postgres) as dsn:
        asyncio.run(scenario(dsn))


@pytest.mark.parametrize(
    ("frequency", "common"), [(0.0, False), (0.005, False), (0.02, True), (1.0, True)]
)
def test_a_tag_is_common_when_going_through_all_finds_it_sooner(
    frequency: float, common: bool
) -> None:
    """21 of 100,000: 4,200 gone through for 0.5 %, or 500 looked up; 1,050 for 2 %, or 2,000."""
    known = Frequency(100_000, frequency)
    assert known.is_common(wanted=21, looked_up=LOOKED_UP_FOR_TAGS) is common
    assert not Frequency().is_common(wanted=21)
