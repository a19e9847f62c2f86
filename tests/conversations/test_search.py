"""What is sought is found in two ways, by how common it is; both find the same."""

import asyncio
import itertools
import random
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from messaging_server.conversations import search, text_search
from messaging_server.conversations.filters import Filters, Selection, Sort
from messaging_server.conversations.search import ConversationList
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
    """Also where the way changes from page to page, or the first conversations have too few."""

    async def compare() -> None:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        found = ConversationList(database)
        really = search.is_common
        chance = random.Random(7)  # noqa: S311  # repeatable

        async def at_random(*arguments: Any) -> bool:
            return await really(*arguments) if chance.random() < 0.3 else chance.random() < 0.5

        sizes = []
        for words, others in itertools.product(
            ("order", "zabala", "ana", "an", "rare zabala", "order 7", "nothing"),
            ({}, {"status": Status.OPEN}, {"sort": Sort.URGENCY}, {"unassigned": True}),
        ):
            filters = Filters(search=words, **others)
            chosen = await all_pages(found, CALLERS[who], filters)
            assert len(chosen) == len(set(chosen))
            sizes.append(len(chosen))
            for walked, leads in ((1_000, 10_000), (300, 10_000), (50, 20), (100, 0)):
                with monkeypatch.context() as patched:
                    patched.setattr(search, "is_common", at_random)
                    patched.setattr(search, "WALKED_FOR_WORDS", walked)
                    patched.setattr(text_search, "MATCHING_LEADS", leads)
                    assert await all_pages(found, CALLERS[who], filters) == chosen, filters
        await database.stop()
        most = {"admin": CONVERSATIONS, "agent": CONVERSATIONS // 4, "newcomer": 3}
        assert max(sizes) == most[who]
        assert min(sizes) == 0

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("words", "who", "common"),
    [
        ("order", "admin", True),
        ("ana", "admin", True),
        ("zabala", "admin", False),
        ("order", "agent", True),
        ("zabala", "agent", True),  # the sample is of their own
        ("zabala", "newcomer", True),
    ],
)
def test_a_sample_says_what_is_common(talks_dsn: str, words: str, who: str, common: bool) -> None:
    """And what is few is looked through in any case."""

    async def ask() -> bool:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        caller = CALLERS[who]
        selection = Selection(caller, Filters(search=words), None)
        found = await text_search.is_common(database, selection, words)
        await database.stop()
        return found

    assert asyncio.run(ask()) is common
