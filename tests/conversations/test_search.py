"""What is sought is found in two ways, by how common it is; both find the same."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from messaging_server.conversations import search
from messaging_server.conversations.search import ConversationList, Filters, Sort, Walk
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.models import Caller, Conversation, Role, Status
from messaging_server.postgres import EmbeddedPostgres
from tests.conftest import fresh_database

CONVERSATIONS = 600
LEADS = """
insert into leads (name, phone)
select case when n % 3 = 0 then 'Ana' else 'Berta' end
    || case when n % 150 = 149 then ' Zabala' else '' end, '600 ' || 1000 + n
from generate_series(1, $1) n
"""
TALKS = """
with conversation as (
    insert into conversations
        (lead_id, assigned_agent_id, status, waiting_since, last_seq, last_activity_at)
    select id, case when n % 4 = 0 then $1::uuid when n in (41, 42, 43) then $2 end,
        case when n % 5 = 0 then 'RESOLVED' else 'OPEN' end,
        now() - n * interval '1 minute', 3, now() - n * interval '1 minute'
    from (select id, row_number() over (order by phone) as n from leads) l
    returning id, last_activity_at
)
insert into messages (conversation_id, seq, sender_type, lead_message_count, content_text)
select c.id, seq, 'LEAD', seq, case
    when seq = 2 and n % 150 = 148 then 'a rare ZABALA word'
    when seq = 3 then 'where is my order ' || n
    else 'thanks' end
from (select id, row_number() over (order by last_activity_at desc) as n from conversation) c,
    generate_series(1, 3) seq
"""
ADMIN = Caller(id=uuid4(), email="admin@example.com", name=None, role=Role.ADMIN)
AGENT = Caller(id=uuid4(), email="agent@example.com", name=None, role=Role.SALES_AGENT)
NEWCOMER = Caller(id=uuid4(), email="newcomer@example.com", name=None, role=Role.SALES_AGENT)
CALLERS = {"admin": ADMIN, "agent": AGENT, "newcomer": NEWCOMER}


@pytest.fixture(scope="module")
def talks_dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    async def seed(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(
            "insert into users (id, email, password_hash) select id, id || '@b.c', '-' "
            "from unnest($1::uuid[]) id",
            [AGENT.id, NEWCOMER.id],
        )
        await connection.execute(LEADS, CONVERSATIONS)
        await connection.execute(TALKS, AGENT.id, NEWCOMER.id)
        await connection.execute("analyze")
        await connection.close()

    with fresh_database(postgres) as dsn:
        asyncio.run(seed(dsn))
        yield dsn


async def all_pages(found: ConversationList, caller: Caller, filters: Filters) -> list[UUID]:
    ids: list[UUID] = []
    cursor: Any = None
    while True:
        page, cursor = await found.fetch_page(caller, filters, limit=30, cursor=cursor)
        ids += [msgspec.json.decode(each, type=Conversation).id for each in page]
        if cursor is None:
            return ids


@pytest.mark.parametrize("who", CALLERS)
def test_all_ways_find_the_same(talks_dsn: str, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def compare() -> None:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        found = ConversationList(database)
        sizes = []
        for words, others in itertools.product(
            ("order", "zabala", "ana", "an", "rare zabala", "order 7", "nothing"),
            ({}, {"status": Status.OPEN}, {"sort": Sort.URGENCY}, {"unassigned": True}),
        ):
            filters = Filters(search=words, **others)
            chosen = await all_pages(found, CALLERS[who], filters)
            assert len(chosen) == len(set(chosen))
            sizes.append(len(chosen))
            for way in itertools.product((False, True), repeat=2):

                async def always(*_: Any, way: tuple[bool, bool] = way) -> Walk:
                    return Walk(*way)

                with monkeypatch.context() as patched:
                    patched.setattr(search, "choose_walk", always)
                    assert await all_pages(found, CALLERS[who], filters) == chosen, (filters, way)
        await database.stop()
        assert (
            max(sizes) == {"admin": CONVERSATIONS, "agent": CONVERSATIONS // 4, "newcomer": 3}[who]
        )
        assert min(sizes) == 0

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("words", "who", "expected"),
    [
        ("order", "admin", Walk(messages=True, leads=False)),
        ("ana", "admin", Walk(messages=False, leads=True)),
        ("zabala", "admin", Walk(messages=False, leads=False)),
        ("order", "agent", Walk(messages=True, leads=False)),
        ("zabala", "agent", Walk(messages=True, leads=False)),  # the sample is of their own
        ("zabala", "newcomer", Walk(messages=True, leads=True)),
    ],
)
def test_the_way_is_chosen_by_a_sample(
    talks_dsn: str, words: str, who: str, expected: Walk
) -> None:
    """And what is few is walked through in any case."""

    async def choose() -> Walk:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        walk = await search.choose_walk(database, CALLERS[who], Filters(search=words), None)
        await database.stop()
        return walk

    assert asyncio.run(choose()) == expected
