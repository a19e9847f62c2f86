"""What is sought is found in two ways, by how common it is; both find the same."""

import asyncio
import itertools
import random
import sys
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from messaging_server.conversations import text_search
from messaging_server.conversations.filters import Filters, Sort
from messaging_server.conversations.search import ConversationList
from messaging_server.conversations.text_search import Sought, TextSearch
from messaging_server.conversations.word_frequencies import Sample
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.frequencies import Frequency
from messaging_server.leads.search import LeadSearch, LeadText
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
WHITE_SPACE = [code for code in range(sys.maxunicode + 1) if chr(code).isspace()]
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
    chance = random.Random(7)  # noqa: S311  # repeatable

    def at_random(_frequency: Frequency, **_: Any) -> bool:
        return chance.random() < 0.5

    async def compare() -> None:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        found = ConversationList(database, LeadSearch(database))
        sizes = []
        for words, others in itertools.product(
            ("order", "zabala", "ana", "an", "a", "rare zabala", "order 7", "nothing", "  "),
            ({}, {"status": Status.OPEN}, {"sort": Sort.URGENCY}, {"unassigned": True}),
        ):
            filters = Filters(search=words, **others)
            chosen = await all_pages(found, CALLERS[who], filters)
            assert len(chosen) == len(set(chosen))
            sizes.append(len(chosen))
            for walked in (1_000, 300, 50, 20):
                with monkeypatch.context() as patched:
                    patched.setattr(Frequency, "is_common", at_random)
                    patched.setattr(text_search, "WALKED_WITH_MESSAGES", walked)
                    patched.setattr(text_search, "WALKED_WITH_LEADS", walked)
                    assert await all_pages(found, CALLERS[who], filters) == chosen, filters
        await database.stop()
        most = {"admin": CONVERSATIONS, "agent": CONVERSATIONS // 4, "newcomer": 3}
        assert max(sizes) == most[who]
        assert min(sizes) == 0

    asyncio.run(compare())


@pytest.mark.parametrize(
    ("search", "in_messages", "in_leads"),
    [
        ("order", True, False),
        ("ORD", True, False),  # the beginning of a word
        ("order-7", False, False),  # few begin with a 7
        ("zabala", False, False),
        ("order zabala", False, False),
        ("ana", False, True),
        ("a", False, True),
        ("b", False, True),
        ("t", True, True),  # a single character has no piece that could be looked up
        ("nothing", False, False),
        ("!", False, True),
    ],
)
def test_what_is_common(talks_dsn: str, search: str, in_messages: bool, in_leads: bool) -> None:
    async def ask() -> Sought:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        sought = await TextSearch(database, LeadSearch(database)).prepare(search, wanted=21)
        await database.stop()
        return sought

    sought = asyncio.run(ask())
    assert (sought.is_common_in_messages, sought.is_common_in_leads) == (in_messages, in_leads)


LEAD_TEXTS = """
select c.lead_text = lead_text(l.name, l.email, l.phone)
from conversations c join leads l on l.id = c.lead_id
where c.id = $1
"""


@pytest.mark.parametrize(
    "change",
    [
        "update leads set name = 'Zoe Ñ', email = 'Zoe@Example.com' where id = $1 or id = $2",
        "update leads set phone = '+34 (600) 7-8' where id = $1 or id = $2",
        "update leads set email = null where id = $1 or id = $2",
        "update conversations set lead_id = $2 where lead_id = $1",
    ],
)
def test_conversations_hold_what_their_lead_is_found_by(talks_dsn: str, change: str) -> None:
    """From when they come, after each change of it, and as that of another."""

    async def is_held_before_and_after() -> list[bool]:
        connection = await asyncpg.connect(talks_dsn)
        undone = connection.transaction()
        await undone.start()
        conversation_id, leads = uuid4(), (uuid4(), uuid4())
        for lead_id, name in zip(leads, ("Ana", "Berta"), strict=True):
            insert = "insert into leads (id, name, email) values ($1, $2, 'a@example.com')"
            await connection.execute(insert, lead_id, name)
        insert = "insert into conversations (id, lead_id) values ($1, $2)"
        await connection.execute(insert, conversation_id, leads[0])
        held = [await connection.fetchval(LEAD_TEXTS, conversation_id)]
        assert await connection.execute(change, *leads) in ("UPDATE 1", "UPDATE 2")
        held.append(await connection.fetchval(LEAD_TEXTS, conversation_id))
        await undone.rollback()
        await connection.close()
        return held

    assert asyncio.run(is_held_before_and_after()) == [True, True]


def test_a_lead_is_changed_where_all_its_conversations_are_seen(talks_dsn: str) -> None:
    """One that came meanwhile would go on being found by the old name."""

    async def rename() -> None:
        connection = await asyncpg.connect(talks_dsn)
        try:
            await connection.execute("begin isolation level repeatable read")
            await connection.execute("update leads set name = 'Zoe' where name like '%Zabala'")
        finally:
            await connection.close()

    with pytest.raises(asyncpg.FeatureNotSupportedError, match="read committed"):
        asyncio.run(rename())


async def count_named(database: Database, search: str, *, are_common: bool) -> int:
    """How many conversations a search finds, in this of the two ways."""
    found = ConversationList(database, LeadSearch(database))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Frequency, "is_common", lambda *_, **__: are_common)
        return len(await all_pages(found, ADMIN, Filters(search=search)))


@pytest.mark.parametrize("name", [chr(code).join("AB") for code in WHITE_SPACE] + ["  A  B "])
def test_any_white_space_is_a_space(talks_dsn: str, name: str) -> None:
    async def find() -> list[int]:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        lead_id = uuid4()
        await database.execute("insert into leads (id, name) values ($1, $2)", lead_id, name)
        await database.execute("insert into conversations (lead_id) values ($1)", lead_id)
        counts = [
            await count_named(database, search, are_common=are_common)
            for search in (name, "a b", " a \t b")
            for are_common in (True, False)
        ]
        await database.execute("delete from leads where id = $1", lead_id)
        await database.stop()
        return counts

    assert asyncio.run(find()) == [1] * 6


def test_leads_are_looked_up_by_their_rarest_pieces(talks_dsn: str) -> None:
    """ " Za" and its kind instead of those that all leads have."""

    async def ask() -> list[LeadText]:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        search = LeadSearch(database)
        texts = [await search.prepare(text) for text in ("Ana Zabala 600", "ab", "z")]
        await database.stop()
        return texts

    long, short, single = asyncio.run(ask())
    pieces = {long.pattern.lower()[begin - 1 : begin + 2] for begin in long.pieces}
    assert pieces <= {"a z", " za", "zab", "aba", "bal", "ala", "la ", "a 6"}
    assert len(pieces) == 3
    assert (short.pattern, short.pieces) == (" ab", [1])
    assert (single.pattern, single.pieces) == (" z", [])


def test_it_is_leads_that_are_counted(talks_dsn: str) -> None:
    """A new index says how many entries it has, of which each lead has many."""

    async def ask() -> LeadText:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        await database.execute("reindex index leads_search")
        text = await LeadSearch(database).prepare("ana")
        await database.stop()
        return text

    assert asyncio.run(ask()).frequency.rows == CONVERSATIONS


def test_beginnings_are_counted() -> None:
    words = ["not", "ord", "order", "ordinary", "other"]
    sample = Sample(rows=1_000.0, sampled=10, words=words, counts=[0, 1, 2, 4, 5, 6])
    fractions = {"o": 0.5, "ord": 0.4, "order": 0.2, "OTHER": 0.1, "p": 0, "order ord": 0.2}
    assert {each: sample.frequency(each).fraction for each in fractions} == fractions
    assert sample.frequency("!").fraction == 0


@pytest.mark.parametrize(
    "search",
    ["नमस्ते", "สวัสดี", "cafe\u0301", "order½", "½order", "<b>order", "ΟΔΟΣ", "İzmir", "O'Brien"],
)
def test_what_all_messages_have_is_common(postgres: EmbeddedPostgres, search: str) -> None:
    """However Postgres takes it apart: else all messages would be looked up."""

    async def ask(dsn: str) -> tuple[int, float]:
        database = Database(dsn, pool_size=2, bus=Bus())
        await database.start()
        await database.execute(
            """
            insert into messages
                (conversation_id, seq, sender_type, lead_message_count, content_text)
            select gen_random_uuid(), 1, 'LEAD', 1, $1 from generate_series(1, 50)
            """,
            search,
        )
        prepared = await TextSearch(database, LeadSearch(database)).prepare(search, wanted=21)
        found = await database.fetch_value(
            "select count(*) from messages where words @@ to_tsquery('simple', $1)", prepared.words
        )
        await database.stop()
        return found, prepared.in_messages.fraction

    with fresh_database(postgres) as dsn:
        assert asyncio.run(ask(dsn)) == (50, 1.0)


def test_pieces_stand_where_postgres_finds_them(talks_dsn: str) -> None:
    """Of an `İ` Postgres makes one character, Python two."""

    async def ask() -> LeadText:
        database = Database(talks_dsn, pool_size=2, bus=Bus())
        await database.start()
        text = await LeadSearch(database).prepare("İİİ")
        await database.stop()
        return text

    assert asyncio.run(ask()).pieces == [1]
