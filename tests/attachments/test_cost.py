"""A message without attachments costs one statement, to send and to read, as it always did."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from messaging_server.attachments import queries as attachment_queries
from messaging_server.attachments.queries import NewAttachment, Uploader
from messaging_server.conversations import messages, service
from messaging_server.conversations.append_queries import Debounce
from messaging_server.conversations.appender import Appender
from messaging_server.conversations.messages import NewMessage
from messaging_server.conversations.service import NewConversation
from messaging_server.database import Database
from messaging_server.events import Bus
from messaging_server.leads.service import NewLead
from messaging_server.models import Caller, Role
from messaging_server.security import Links
from tests.conftest import SECRET

DEBOUNCE = Debounce(quiet=timedelta(seconds=10), max_wait=timedelta(seconds=60))


class CountedDatabase(Database):
    """Counts its statements and transactions."""

    statements = 0
    transactions = 0

    async def _call(self, method: str, sql: str, arguments: tuple[Any, ...]) -> Any:
        self.statements += 1
        return await super()._call(method, sql, arguments)

    def transaction(self) -> Any:
        self.transactions += 1
        return super().transaction()

    async def cost(self, work: Callable[[], Awaitable[Any]]) -> tuple[int, int]:
        before = self.statements, self.transactions
        await work()
        return self.statements - before[0], self.transactions - before[1]


async def a_caller(database: Database) -> Caller:
    user_id = await database.fetch_value(
        "insert into users (email, password_hash) values ('a@b.de', 'x') returning id"
    )
    return Caller(id=user_id, email="a@b.de", name=None, role=Role.ADMIN)


async def an_upload(database: Database, caller: Caller) -> UUID:
    attachment = NewAttachment(
        id=uuid7(),
        file_name="a.txt",
        content_type="text/plain",
        size_bytes=1,
        width=None,
        height=None,
        storage_key="a",
        thumbnail_key=None,
    )
    await attachment_queries.insert_attachment(database, Uploader(user_id=caller.id), attachment)
    return attachment.id


def test_statements(dsn: str) -> None:
    async def scenario() -> None:
        links = Links(SECRET, public_url="http://x")
        database = CountedDatabase(dsn, pool_size=2, bus=Bus(), links=links)
        await database.start()
        appender = Appender(database, DEBOUNCE)
        try:
            caller = await a_caller(database)
            new = NewConversation(lead=NewLead(name="Ana"))
            conversation = await service.create_conversation(database, caller, new)

            async def send(*attachment_ids: UUID) -> None:
                message = NewMessage(content_text="x", attachment_ids=attachment_ids or None)
                await messages.send_message(database, appender, caller, conversation.id, message)

            async def read() -> None:
                await messages.list_messages(
                    database, caller, conversation.id, limit=50, cursor=None
                )

            assert await database.cost(send) == (1, 0)
            await send()
            assert await database.cost(read) == (1, 0)
            upload = await an_upload(database, caller)
            assert await database.cost(lambda: send(upload)) == (2, 1)
            assert await database.cost(read) == (2, 0)
        finally:
            await database.stop()

    asyncio.run(scenario())
