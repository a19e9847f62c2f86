"""A Postgres with the schema, conversations to write in, and a scripted model."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from messaging_server.analysis.analysers import Analyser, Analysers
from messaging_server.analysis.breaker import Breaker
from messaging_server.analysis.debouncer import Debouncer
from messaging_server.analysis.openai_analyser import OpenAIAnalyser
from messaging_server.config import AiConfig, AnalysisConfig
from messaging_server.conversations.append_queries import Debounce, Draft, append_message
from messaging_server.database import Database
from messaging_server.events import AnalysisCompleted, Bus
from messaging_server.models import ContentType, SenderType
from messaging_server.postgres import EmbeddedPostgres
from tests.analysis.scripted_llm import ScriptedLLM
from tests.conftest import fresh_database

QUICK = AnalysisConfig(quiet_seconds=0.3, max_wait_seconds=1.5, concurrency=4)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    """One database for these tests; each starts with empty tables."""
    with fresh_database(postgres) as fresh:
        yield fresh


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def completed(bus: Bus) -> list[AnalysisCompleted]:
    """Every `AnalysisCompleted` stated so far."""
    events: list[AnalysisCompleted] = []
    bus.subscribe(AnalysisCompleted, events.append)
    return events


@pytest.fixture
async def database(dsn: str, bus: Bus) -> AsyncIterator[Database]:
    database = Database(dsn, pool_size=10, bus=bus)
    await database.start()
    await database.execute(
        "truncate users, leads, conversations, conversation_counts, analysis_spending cascade"
    )
    try:
        yield database
    finally:
        await database.stop()


class Inbox:
    """Leads and agents who write, through the statement that the server appends with."""

    def __init__(self, database: Database, settings: AnalysisConfig) -> None:
        self.database = database
        self._debounce = Debounce(
            timedelta(seconds=settings.quiet_seconds), timedelta(seconds=settings.max_wait_seconds)
        )

    async def conversation(self, *, assigned_to: UUID | None = None) -> UUID:
        conversation_id: UUID = await self.database.fetch_value(
            """
            with lead as (insert into leads (name) values ('Ada') returning id)
            insert into conversations (lead_id, assigned_agent_id)
            select id, $1 from lead
            returning id
            """,
            assigned_to,
        )
        return conversation_id

    async def say(
        self,
        conversation_id: UUID,
        text: str | None = "Hello",
        *,
        sender: SenderType = SenderType.LEAD,
        content_type: ContentType = ContentType.TEXT,
        private: bool = False,
    ) -> int:
        """The message's `seq`."""
        lead_id = await self.database.fetch_value(
            "select lead_id from conversations where id = $1", conversation_id
        )
        appended = await append_message(
            self.database,
            Draft(
                conversation_id=conversation_id,
                sender_type=sender,
                sender_id=lead_id if sender is SenderType.LEAD else None,
                content_type=content_type,
                content_text=text,
                media_url=None if content_type is ContentType.TEXT else "https://example.com/a",
                preview=text or "",
                private=private,
            ),
            self._debounce,
        )
        assert appended is not None
        return appended.seq

    async def due_conversation(self, text: str = "Hello") -> UUID:
        """A conversation with one message that is due now."""
        conversation_id = await self.conversation()
        await self.say(conversation_id, text)
        await self.set(conversation_id, "analysis_due_at = now()")
        return conversation_id

    async def history(self, ages: Sequence[float], private: Sequence[bool]) -> UUID:
        """A conversation whose messages were written so many seconds ago, oldest first."""
        conversation_id = await self.conversation()
        for age, is_private in zip(sorted(ages, reverse=True), private, strict=False):
            seq = await self.say(conversation_id, private=is_private)
            await self.database.execute(
                """
                update messages set created_at = now() - make_interval(secs => $3)
                where conversation_id = $1 and seq = $2
                """,
                conversation_id,
                seq,
                age,
            )
        newest = max(await self.public_times(conversation_id), default=None)
        await self.database.execute(
            "update conversations set last_message_at = $2 where id = $1", conversation_id, newest
        )
        return conversation_id

    async def public_times(self, conversation_id: UUID, *, after_seq: int = 0) -> list[datetime]:
        """When the public messages after `after_seq` were written, oldest first."""
        rows = await self.database.fetch(
            """
            select created_at from messages
            where conversation_id = $1 and seq > $2 and not private
            order by seq
            """,
            conversation_id,
            after_seq,
        )
        return [row["created_at"] for row in rows]

    async def set(self, conversation_id: UUID, assignments: str) -> None:
        await self.database.execute(
            f"update conversations set {assignments} where id = $1", conversation_id
        )

    async def row(self, conversation_id: UUID) -> dict[str, Any]:
        row = await self.database.fetch_row(
            """
            select *, extract(epoch from analysis_due_at - now())::float as due_in,
                extract(epoch from lease_until - now())::float as leased_for
            from conversations
            where id = $1
            """,
            conversation_id,
        )
        assert row is not None
        return dict(row)

    async def analyses(self, conversation_id: UUID) -> list[dict[str, Any]]:
        """The ledger, oldest first."""
        rows = await self.database.fetch(
            "select * from analyses where conversation_id = $1 order by created_at, id",
            conversation_id,
        )
        return [dict(row) for row in rows]


@pytest.fixture
def inbox(database: Database) -> Inbox:
    return Inbox(database, QUICK)


@pytest.fixture
async def llm() -> AsyncIterator[ScriptedLLM]:
    async with ScriptedLLM().serving() as server:
        yield server


@pytest.fixture
async def analyser(llm: ScriptedLLM) -> AsyncIterator[OpenAIAnalyser]:
    analyser = OpenAIAnalyser(ai_config(llm))
    try:
        yield analyser
    finally:
        await analyser.aclose()


def only(analyser: Analyser) -> Analysers:
    """Nobody stands in, and it costs nothing."""
    return Analysers(primary=analyser, breaker=Breaker())


def ai_config(llm: ScriptedLLM, **changes: Any) -> AiConfig:
    settings: dict[str, Any] = {
        "model": "scripted-1",
        "api_key": "sk-SECRET",
        "timeout_seconds": 5.0,
    } | changes
    return AiConfig(provider="openai", base_url=llm.base_url, **settings)


@pytest.fixture
async def debouncers() -> AsyncIterator["Debouncers"]:
    async with AsyncExitStack() as stack:
        yield Debouncers(stack)


class Debouncers:
    """Starts debouncers that stop with the test."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def start(
        self,
        database: Database,
        analyser: Analyser | Analysers,
        settings: AnalysisConfig = QUICK,
    ) -> Debouncer:
        analysers = analyser if isinstance(analyser, Analysers) else only(analyser)
        debouncer = Debouncer(database, analysers, settings)
        await debouncer.start()
        self._stack.push_async_callback(debouncer.stop, timeout_seconds=0.1)
        return debouncer


class Gate:
    """Stands between a pool and Postgres; closed, it cuts and refuses every connection."""

    def __init__(self, socket: str, path: Path) -> None:
        self._socket = socket
        self._path = path
        self._writers: list[asyncio.StreamWriter] = []
        self.is_open = True
        self.refused = 0

    @asynccontextmanager
    async def standing(self) -> AsyncIterator["Gate"]:
        server = await asyncio.start_unix_server(self._connected, self._path)
        try:
            yield self
        finally:
            self.close()
            server.close()

    def open(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.is_open:
            self.refused += 1
            writer.transport.abort()
            return
        there, back = await asyncio.open_unix_connection(self._socket)
        self._writers += [writer, back]
        await asyncio.gather(_copy(reader, back), _copy(there, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def gated_database(dsn: str, bus: Bus, folder: Path) -> AsyncIterator[tuple[Database, Gate]]:
    """A database of its own pool that a test can take away and give back."""
    connection = await asyncpg.connect(dsn)
    host, port = await connection.fetchrow(
        "select current_setting('unix_socket_directories'), current_setting('port')"
    )
    await connection.close()
    name = f".s.PGSQL.{port}"
    async with Gate(f"{host}/{name}", folder / name).standing() as gate:
        database = Database(dsn.replace(_host_of(dsn), str(folder)), pool_size=4, bus=bus)
        await database.start()
        try:
            yield database, gate
        finally:
            await database.stop()


def _host_of(dsn: str) -> str:
    return dsn.partition("host=")[2].partition("&")[0]
