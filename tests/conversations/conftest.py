"""Conversations to append to, through an `Appender` whose statements are recorded."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Literal
from uuid import UUID, uuid4

import asyncpg
import pytest

from messaging_server.conversations.append_queries import (
    Appended,
    Debounce,
    Draft,
    append_message,
)
from messaging_server.conversations.appender import AT_ONCE, Appender
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.models import ContentType, SenderType
from tests.analysis.waiting import until

DEBOUNCE = Debounce(quiet=timedelta(seconds=10), max_wait=timedelta(seconds=60))
DEADLINE_SECONDS = 30
AGENT_ID = uuid4()

Kind = Literal["reply", "note", "lead"]
Outcome = Appended | BaseException | None


class RecordedDatabase(Database):
    """Remembers what was asked of it."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn, pool_size=10, bus=Bus())
        self.statements: list[str] = []

    async def _call(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        self.statements.append(sql)
        return await super()._call(method, sql, arguments)


class Inbox:
    """One lead's conversations, with those who write in them.

    What the tests read, they read on a connection of their own.
    """

    def __init__(
        self, database: RecordedDatabase, reader: asyncpg.Connection, lead_id: UUID
    ) -> None:
        self.id = uuid4()
        self.database = database
        self.appender = Appender(database, DEBOUNCE)
        self.reader = reader
        self._lead_id = lead_id

    async def conversations(self, count: int) -> list[UUID]:
        rows = await self.reader.fetch(
            """
            insert into conversations (lead_id) select $1 from generate_series(1, $2) returning id
            """,
            self._lead_id,
            count,
        )
        return [row["id"] for row in rows]

    def draft(
        self, conversation_id: UUID, text: str = "x", kind: Kind = "reply", **options: Any
    ) -> Draft:
        from_lead = kind == "lead"
        fields: dict[str, Any] = {
            "conversation_id": conversation_id,
            "sender_type": SenderType.LEAD if from_lead else SenderType.AGENT,
            "sender_id": self._lead_id if from_lead else AGENT_ID,
            "content_type": ContentType.TEXT,
            "content_text": text,
            "media_url": None,
            "preview": f"{kind} {text}",
            "private": kind == "note",
        }
        return Draft(**{**fields, **options})

    async def append_all(self, drafts: Sequence[Draft]) -> list[Outcome]:
        """What each gives when all are sent at the same moment."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await asyncio.gather(
                *(self.appender.append(draft) for draft in drafts), return_exceptions=True
            )

    async def append_together(self, drafts: Sequence[Draft]) -> list[Outcome]:
        """Like `append_all`, after so many other messages that those at hand form groups."""
        others = [self.draft(each) for each in await self.conversations(AT_ONCE)]
        return (await self.append_all([*others, *drafts]))[AT_ONCE:]

    async def append_singly(self, draft: Draft) -> Outcome:
        """What it gives without an `Appender`."""
        try:
            return await append_message(self.database, draft, DEBOUNCE)
        except Exception as error:  # noqa: BLE001  # it is compared
            return error

    async def state(self, conversation_id: UUID) -> asyncpg.Record:
        """What messages change, except for the times."""
        return await self.reader.fetchrow(
            """
            select last_seq, last_public_seq, public_count, lead_message_count, version, status,
                last_message_sender_type, last_message_content_type, last_message_preview,
                last_message_at = last_activity_at as is_public, analysis_trigger,
                analysis_due_at - analysis_first_at <= interval '60 seconds' as is_due,
                waiting_since is null as is_answered, first_reply_seconds is null as is_unanswered
            from conversations where id = $1
            """,
            conversation_id,
        )

    async def log(self, conversation_id: UUID) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self.reader.fetch(
            """
            select seq, public_seq, sender_type, sender_id, content_type, content_text, private,
                client_message_id, lead_message_count
            from messages where conversation_id = $1 order by seq
            """,
            conversation_id,
        )
        return rows

    async def texts(self, conversation_id: UUID) -> list[str]:
        """The log's texts, which must be numbered without holes."""
        log = await self.log(conversation_id)
        assert [row["seq"] for row in log] == list(range(1, len(log) + 1))
        assert (await self.state(conversation_id))["last_seq"] == len(log)
        return [row["content_text"] for row in log]

    async def assert_stored(self, draft: Draft, appended: Outcome) -> None:
        assert isinstance(appended, Appended), appended
        row = await self.reader.fetchrow("select * from messages where id = $1", draft.id)
        assert row["conversation_id"] == draft.conversation_id
        assert (row["seq"], row["public_seq"]) == (appended.seq, appended.public_seq)
        assert row["created_at"] == appended.created_at

    async def assert_idle(self) -> None:
        """Nothing is left over, and a message goes at once."""
        appender = self.appender
        await until(lambda: not appender._groups)
        assert not appender._busy
        assert not appender._waiting
        assert not appender._ready
        assert appender._under_way == 0
        (conversation_id,) = await self.conversations(1)
        draft = self.draft(conversation_id)
        (appended,) = await self.append_all([draft])
        await self.assert_stored(draft, appended)
        assert await self.texts(conversation_id) == ["x"]


@asynccontextmanager
async def outsider(dsn: str, sql: str, *arguments: Any) -> AsyncIterator[asyncpg.Connection]:
    """Somebody's open transaction, which holds the locks that `sql` takes."""
    connection = await asyncpg.connect(dsn)
    try:
        async with connection.transaction():
            await connection.execute(sql, *arguments)
            yield connection
    finally:
        await connection.close()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def inbox(module_dsn: str) -> AsyncIterator[Inbox]:
    database = RecordedDatabase(module_dsn)
    await database.start()
    reader = await asyncpg.connect(module_dsn)
    try:
        lead_id = await reader.fetchval("insert into leads (name) values ('Ana') returning id")
        yield Inbox(database, reader, lead_id)
    finally:
        await reader.close()
        await database.stop()
