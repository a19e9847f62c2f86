"""Reading: CPU a page at 100,000 conversations with 2,000,000 messages, and at a tenth of that.

    python benchmarks/list.py [--conversations 100000]

Targets: at most 400 µs of CPU a page of 20 (server and Postgres together) with any filter, a
deep page, a page of history, the dashboard; at most 1.5 times the time at a tenth of the size.
What the machine is worth is measured beside each (`Yardstick`), and the CPU shown in its terms.
"""

import argparse
import asyncio
import itertools
import json
import time
from urllib.parse import quote

import asyncpg
import uvloop
from measure import BenchServer, Connection, Yardstick

from messaging_server.conversations.filters import ConversationCursor, Sort
from messaging_server.conversations.queries import compact_counts
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.http import encode_cursor

MESSAGES_PER_CONVERSATION = 20
AGENTS = 10
REQUESTS = 1_600
UNSEEN_REQUESTS = 320
CONNECTIONS = 8
PLANS = 6
"""After five calls a connection of Postgres keeps a statement's plan."""

SEED = """
insert into users (email, password_hash) select 'agent' || g || '@example.com', 'x'
from generate_series(1, {agents}) g;

insert into leads (name, email, phone)
select (array['Ana','Luis','Marta','John','Priya','Sofía','Omar','Chen'])[1 + g % 8] || ' '
    || (array['García','Smith','Rossi','Müller','Tanaka','Silva','Novak'])[1 + g % 7] || ' ' || g,
    'lead' || g || '@example.com', '+34 600 ' || lpad(g::text, 6, '0')
from generate_series(1, {conversations}) g;

insert into conversations (
    lead_id, assigned_agent_id, status, priority, tags, last_seq, last_public_seq,
    lead_message_count, last_message_sender_type, last_message_content_type,
    last_message_preview, last_message_at, last_activity_at, waiting_since,
    first_lead_message_at, first_reply_seconds, ai_summary, ai_priority, ai_tags, ai_provider,
    ai_updated_at, analyzed_seq
)
select l.id,
    case when n % 5 > 0 then (select id from users order by id offset n % {agents} limit 1) end,
    case when n % 50 = 0 then 'SNOOZED' when n % 3 = 0 then 'OPEN' else 'RESOLVED' end,
    (array['HIGH','MEDIUM','LOW','LOW'])[1 + n % 4],
    array['tag' || n % 18, case when n % 1000 = 0 then 'rare' else 'common' end],
    {per}, {per}, {per} / 2, 'LEAD', 'TEXT', 'Where is my order?', at, at,
    case when n % 2 = 0 then at end, at - interval '1 hour', n % 3600,
    'The customer asks where the order is.', 'LOW', '{{shipping}}', 'local', at, {per}
from (
    select id, row_number() over () as n, now() - random() * interval '365 days' as at from leads
) l;

insert into messages (
    conversation_id, seq, sender_type, sender_id, content_text, lead_message_count
)
select c.id, g, case when g % 2 = 1 then 'LEAD' else 'AGENT' end,
    case when g % 2 = 0 then coalesce(c.assigned_agent_id, (select id from users limit 1)) end,
    'Hello, my order number ' || (random() * 1e6)::int || ' has not arrived, what about it? '
        || md5(random()::text), (g + 1) / 2
from conversations c, generate_series(1, {per}) g;

insert into conversation_reads (conversation_id, user_id, seq, lead_message_count)
select c.id, u.id, {per}, {per} / 2
from conversations c
join users u on u.role = 'ADMIN' or u.id = c.assigned_agent_id
where abs(hashtext(c.id::text)) % 4 > 0;
"""


async def seed(dsn: str, conversations: int) -> None:
    """The word index is made afterwards, which is ten times faster.

    What the counters were told of so many new conversations is summed up as the server would, and
    once more, as after the next thousand changes: the sums then stand where the differences were.
    """
    connection = await asyncpg.connect(dsn)
    index = await connection.fetchval(
        "select indexdef from pg_indexes where indexname = 'messages_search'"
    )
    await connection.execute("drop index messages_search")
    await connection.execute(
        SEED.format(conversations=conversations, agents=AGENTS, per=MESSAGES_PER_CONVERSATION)
    )
    await connection.execute("set maintenance_work_mem = '512MB'")
    await connection.execute(index)
    await connection.close()
    database = Database(dsn, pool_size=2, bus=Bus())
    await database.start()
    while await compact_counts(database):
        pass
    await database.execute("vacuum analyze")
    await compact_counts(database, at_least=1)
    await database.execute("vacuum conversation_counts")
    await database.execute("checkpoint")  # what was written must not be paid for by the readers
    await database.stop()


async def deep_cursor(connection: Connection, sort: str, conversations: int) -> str:
    """Where so many conversations have been paged through."""
    cursor = ""
    for _ in range(conversations // 100):
        path = f"/api/v1/conversations?limit=100&sort={sort}{cursor}"
        _, answer = await connection.request("GET", path)
        cursor = "&cursor=" + quote(json.loads(answer)["data"]["nextCursor"])
    return cursor


async def paths(dsn: str, connection: Connection, conversations: int) -> dict[str, list[str]]:
    """What is asked in turn, by its name; the rows it needs are looked up first.

    What was shown lately is cheaper than what was not: most names ask for one page again and
    again, as the inboxes of a team do, "pages never seen" for another one each time, of those
    that the way to the deep page has not shown. The dashboard's median is read once in five
    seconds.
    """
    paged = conversations // 4
    postgres = await asyncpg.connect(dsn)
    agent = await postgres.fetchval(
        """
        select assigned_agent_id from conversations where assigned_agent_id is not null
        group by 1 order by count(*) desc limit 1
        """
    )
    one = await postgres.fetchval("select id from conversations limit 1")
    word = await postgres.fetchval(
        """
        select split_part(content_text, ' ', 5) from messages
        where content_text ~ ' number [0-9]{6} ' -- a shorter one begins many others
        limit 1
        """
    )
    newest = await postgres.fetchrow(
        """
        select l.email, right(m.content_text, 32) as word
        from conversations c
        join leads l on l.id = c.lead_id
        join messages m on m.conversation_id = c.id and m.seq = c.last_seq
        order by c.last_activity_at desc limit 1
        """
    )
    unseen = await postgres.fetch(
        """
        select last_activity_at, id
        from (
            select last_activity_at, id, row_number() over (order by last_activity_at, id) as n
            from conversations
        ) numbered
        where n % 20 = 0 and n < $1
        order by random() limit $2
        """,
        conversations - paged,
        UNSEEN_REQUESTS + CONNECTIONS * PLANS,
    )
    await postgres.close()
    base = "/api/v1/conversations"
    deep = await deep_cursor(connection, "activity", paged)
    deep_urgency = await deep_cursor(connection, "urgency", conversations // 10)
    cursors = [ConversationCursor(Sort.ACTIVITY, *row) for row in unseen]
    single = {
        "first page": f"{base}?limit=20",
        "deep page": f"{base}?limit=20{deep}",
        "status": f"{base}?status=SNOOZED",
        "priority": f"{base}?priority=HIGH",
        "agent": f"{base}?assignedAgentId={agent}",
        "unreplied": f"{base}?unreplied=true",
        "urgency": f"{base}?sort=urgency",
        "urgency, deep page": f"{base}?sort=urgency{deep_urgency}",
        "urgency of an agent": f"{base}?sort=urgency&assignedAgentId={agent}",
        "common tag": f"{base}?tag=common",
        "rare tag": f"{base}?tag=rare",
        "all filters": f"{base}?status=OPEN&priority=HIGH&assignedAgentId={agent}&tag=common",
        "search a lead": f"{base}?search=lead777%40",
        "search a rare word": f"{base}?search={word}",
        "search a common word": f"{base}?search=arrived",
        "search a common name": f"{base}?search=garc",
        "search the newest lead": f"{base}?search={quote(newest['email'])}",
        "search the newest word": f"{base}?search={newest['word']}",
        "history": f"{base}/{one}/messages?limit=20",
        "dashboard": "/api/v1/dashboard/metrics",
    }
    return {
        **{name: [path] for name, path in single.items()},
        "pages never seen": [f"{base}?limit=20&cursor={encode_cursor(each)}" for each in cursors],
    }


async def measure(
    server: BenchServer, connections: list[Connection], paths: list[str]
) -> tuple[float, float]:
    """CPU and time, in µs a request, with several under way: waking up is not what is measured."""

    following = itertools.cycle(paths)

    async def ask(connection: Connection, requests: int) -> None:
        for _ in range(requests):
            status, answer = await connection.request("GET", next(following))
            assert status == 200, answer

    requests = REQUESTS if len(paths) == 1 else UNSEEN_REQUESTS
    await asyncio.gather(*(ask(each, PLANS) for each in connections))
    before, started = sum(server.cpu_seconds().values()), time.perf_counter()
    await asyncio.gather(*(ask(each, requests // CONNECTIONS) for each in connections))
    seconds = time.perf_counter() - started
    cpu = sum(server.cpu_seconds().values()) - before
    return cpu / requests * 1e6, seconds / requests * 1e6


async def run(
    server: BenchServer, token: str, conversations: int
) -> dict[str, tuple[float, float, float]]:
    """By name: CPU and time, in µs, and what a plain message took just before and after."""
    await seed(server.dsn(), conversations)
    yardstick = Yardstick(server)
    await yardstick.open()
    connections = [Connection(server.port, token) for _ in range(CONNECTIONS)]
    await asyncio.gather(*(connection.open() for connection in connections))
    asked = await paths(server.dsn(), connections[0], conversations)
    found = {}
    plain = await yardstick.measure()
    for name, each in asked.items():
        cpu, microseconds = await measure(server, connections, each)
        before, plain = plain, await yardstick.measure()
        found[name] = cpu, microseconds, (before + plain) / 2
    for connection in connections:
        connection.close()
    await yardstick.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--conversations", type=int, default=100_000)
    conversations = parser.parse_args().conversations
    quiet = {"MESSAGING_ANALYSIS__ENABLED": "false"}
    with BenchServer(**quiet) as small, BenchServer(**quiet) as large:
        few = uvloop.run(run(small, small.admin_token(), conversations // 10))
        many = uvloop.run(run(large, large.admin_token(), conversations))
    expected = Yardstick.EXPECTED_MICROSECONDS
    print(
        f"{'':<22} {'CPU µs':>8} {'plain message':>14} {f'if that took {expected}':>18}"
        f" {'time µs':>8} {'against a tenth':>16}"
    )
    for name, (cpu, microseconds, plain) in many.items():
        print(
            f"{name:<22} {cpu:8.0f} {plain:14.0f} {cpu / plain * expected:18.0f}"
            f" {microseconds:8.0f} {microseconds / few[name][1]:16.2f}"
        )


if __name__ == "__main__":
    main()
