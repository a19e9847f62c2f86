"""The delivery loop in the test's own process, with delays that a test can wait for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from messaging_server.config import WebhooksConfig
from messaging_server.conversations.append_queries import Debounce, Draft, append_message
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.models import ContentType, SenderType
from messaging_server.webhooks.delivery import Webhooks
from messaging_server.webhooks.service import new_secret

LOCAL = WebhooksConfig(allowed_networks=("127.0.0.0/8",))
DEBOUNCE = Debounce(timedelta(seconds=60), timedelta(seconds=60))
QUICK = (0.05,) * 9


class World:
    """A database with conversations, webhooks, and one or more loops that serve them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.bus = Bus()
        self.loops: list[Webhooks] = []

    async def hook(self, url: str, events: Sequence[str] = ("message.created",)) -> UUID:
        webhook_id: UUID = await self.database.fetch_value(
            "insert into webhooks (url, events, secret) values ($1, $2, $3) returning id",
            url,
            list(events),
            new_secret(),
        )
        return webhook_id

    async def conversations(self, count: int) -> list[UUID]:
        rows = await self.database.fetch(
            """
            with lead as (insert into leads (name) values ('Ana') returning id)
            insert into conversations (lead_id)
            select lead.id from lead, generate_series(1, $1) returning id
            """,
            count,
        )
        return [row["id"] for row in rows]

    async def say(self, conversation_id: UUID, text: str) -> None:
        draft = Draft(
            conversation_id=conversation_id,
            sender_type=SenderType.AGENT,
            sender_id=uuid7(),
            content_type=ContentType.TEXT,
            content_text=text,
            media_url=None,
            preview=text,
        )
        assert await append_message(self.database, draft, DEBOUNCE)

    async def rows(self, webhook_id: UUID, status: str | None = None) -> list[asyncpg.Record]:
        return await self.database.fetch(
            """
            select * from webhook_deliveries
            where webhook_id = $1 and ($2::text is null or status = $2)
            order by position
            """,
            webhook_id,
            status,
        )

    async def webhook(self, webhook_id: UUID) -> asyncpg.Record:
        row = await self.database.fetch_row("select * from webhooks where id = $1", webhook_id)
        assert row is not None
        return row

    async def until_done(self, webhook_id: UUID, count: int, seconds: float = 20) -> None:
        """So many deliveries are finished, one way or the other."""

        async def finished() -> bool:
            rows = await self.rows(webhook_id)
            return sum(row["status"] != "PENDING" for row in rows) >= count

        await until(finished, seconds)


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """What `condition` gives once it is true; it may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if asyncio.iscoroutine(result):
                result = await result
            if result:
                return result
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(dsn: str, *, loops: int = 1, **options: Any) -> AsyncIterator[World]:
    """`loops` stand for as many servers, each with its own connections."""
    options = {"retry_seconds": QUICK, "timeout_seconds": 5.0, "poll_seconds": 0.05, **options}
    async with AsyncExitStack() as stack:
        databases = [Database(dsn, pool_size=4, bus=Bus()) for _ in range(loops)]
        for database in databases:
            await database.start()
            stack.push_async_callback(database.stop)
        world = World(databases[0])
        for database in databases:
            webhooks = Webhooks(LOCAL, database, world.bus, **options)
            await webhooks.start()
            stack.push_async_callback(webhooks.stop)
            world.loops.append(webhooks)
        yield world
