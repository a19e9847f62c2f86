"""Sending: CPU a message of server and Postgres together, against the bare statement.

    python benchmarks/send.py [--messages 8000]

16 connections post messages to 1,000 conversations (committed with fsync on, fan-out and
debounce included); then 16 asyncpg connections in one process run the same statement in a loop.
Targets: at most 500 µs of CPU a message, at least 55 % of the bare loop's rate.
"""

import argparse
import asyncio
import itertools
from datetime import timedelta
from uuid import UUID

import asyncpg
import uvloop
from measure import BenchServer, Connection, cpu_of
from uuid_utils.compat import uuid7

from messaging_server.conversations.append_queries import REPLY

CONNECTIONS = 16
CONVERSATIONS = 1_000
TEXT = "Thanks for writing in! I had a look at your order and it left our warehouse this morning."


async def make_conversations(dsn: str) -> list[UUID]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(
        """
        with lead as (insert into leads (name) values ('Ana') returning id)
        insert into conversations (lead_id) select lead.id from lead, generate_series(1, $1)
        returning id
        """,
        CONVERSATIONS,
    )
    await connection.close()
    return [row["id"] for row in rows]


async def through_the_server(
    server: BenchServer, token: str, ids: list[UUID], messages: int
) -> None:
    body = f'{{"contentText":"{TEXT}"}}'.encode()
    paths = itertools.cycle(f"/api/v1/conversations/{each}/messages" for each in ids)
    left = iter(range(messages))

    async def work() -> None:
        connection = Connection(server.port, token)
        await connection.open()
        for _ in left:
            status, answer = await connection.request("POST", next(paths), body)
            assert status == 201, answer
        connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


async def bare_loop(dsn: str, ids: list[UUID], messages: int) -> None:
    cycle = itertools.cycle(ids)
    left = iter(range(messages))
    quiet, wait = timedelta(seconds=10), timedelta(seconds=60)
    sender = uuid7()

    async def work() -> None:
        connection = await asyncpg.connect(dsn)
        statement = await connection.prepare(REPLY.one)
        for _ in left:
            row = await statement.fetchrow(
                uuid7(), next(cycle), "AGENT", sender, "TEXT", TEXT, None, TEXT, None, None, None,
                0, None, None, quiet, wait,
            )  # fmt: skip
            assert row is not None
        await connection.close()

    await asyncio.gather(*(work() for _ in range(CONNECTIONS)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--messages", type=int, default=8_000)
    messages = parser.parse_args().messages
    with BenchServer() as server:
        token = server.admin_token()
        ids = uvloop.run(make_conversations(server.dsn()))
        uvloop.run(through_the_server(server, token, ids, 2_000))
        uvloop.run(bare_loop(server.dsn(), ids, 1_000))
        ratios = []
        for _ in range(3):
            with cpu_of(server, messages, "send through the server") as sent:
                uvloop.run(through_the_server(server, token, ids, messages))
            with cpu_of(server, messages, "the bare statement (Postgres only)") as bare:
                uvloop.run(bare_loop(server.dsn(), ids, messages))
            ratios.append(sent["rate"] / bare["rate"])
        print(f"rate against the bare loop: {sorted(ratios)[1]:.2f} (target 0.55)")


if __name__ == "__main__":
    main()
