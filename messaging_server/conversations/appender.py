"""Appending messages together: what comes while others are being appended goes as one statement.

Eight messages in one statement cost Postgres a third of what eight statements with a commit each
cost it, and the driver a quarter (measured). Nobody waits in order to be grouped: a message that
finds fewer than `AT_ONCE` statements under way goes at once, alone.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextvars import Context
from uuid import UUID

import asyncpg
from msgspec import Struct

from messaging_server.conversations.append_queries import (
    Appended,
    Debounce,
    Draft,
    Statement,
    append_message,
    append_messages,
    statement_of,
)
from messaging_server.database import ACQUIRE_TIMEOUT_SECONDS, RETRY_AFTER_SECONDS, Database
from messaging_server.errors import Unavailable, ValidationFailed

AT_ONCE = 2
"""Statements: while Postgres works on one, the answers to the other are written."""

LARGEST_GROUP = 32

AGAIN_AT_ONCE = 4
"""Messages that were left out of a group and may each wait for a lock, on a connection."""

PATIENCE_SECONDS = 0.02
"""After which messages go although so many statements are under way: something holds them up."""

LONGEST_WAIT_SECONDS = ACQUIRE_TIMEOUT_SECONDS
"""For others that come first, as for a connection."""

HELD_UP = "Messages can't be stored in time"


class Waiting(Struct, eq=False):
    draft: Draft
    statement: Statement
    since: float
    appended: asyncio.Future[Appended | None]

    def answer(self, appended: Appended | None) -> None:
        if not self.appended.done():
            self.appended.set_result(appended)

    def fail(self, error: Exception) -> None:
        if not self.appended.done():
            self.appended.set_exception(error)

    def give_up(self) -> None:
        if not self.appended.done():
            self.fail(Unavailable(HELD_UP, retry_after_seconds=RETRY_AFTER_SECONDS))


class Appender:
    """Appends messages, those of one conversation one after the other, as they came."""

    def __init__(self, database: Database, debounce: Debounce) -> None:
        self._database = database
        self._debounce = debounce
        self._under_way = 0
        self._busy: set[UUID] = set()  # the conversations of the statements under way
        self._waiting: dict[UUID, deque[Waiting]] = {}  # by conversation
        self._ready: deque[UUID] = deque()  # the conversations that wait and are not busy
        self._again = asyncio.Semaphore(AGAIN_AT_ONCE)
        self._watch: asyncio.TimerHandle | None = None
        self._groups: set[asyncio.Task[None]] = set()

    async def append(self, draft: Draft) -> Appended | None:
        """See `append_message`; inside a transaction at once, as a part of it.

        Raises `Unavailable` when the messages before it take too long.
        """
        if self._database.in_transaction:
            return await append_message(self._database, draft, self._debounce)
        conversation_id = draft.conversation_id
        behind = conversation_id in self._busy or conversation_id in self._waiting
        if behind or self._under_way >= AT_ONCE:
            return await self._wait(draft)
        self._under_way += 1
        self._busy.add(conversation_id)
        try:
            return await append_message(self._database, draft, self._debounce)
        finally:
            self._release(conversation_id)
            self._end_statement()

    async def stop(self) -> None:
        """End what is still under way, whose senders have gone."""
        if self._watch is not None:
            self._watch.cancel()
        for group in self._groups:
            group.cancel()
        await asyncio.gather(*self._groups, return_exceptions=True)

    def _wait(self, draft: Draft) -> asyncio.Future[Appended | None]:
        loop = asyncio.get_running_loop()
        appended = loop.create_future()
        queue = self._waiting.setdefault(draft.conversation_id, deque())
        queue.append(Waiting(draft, statement_of(draft), loop.time(), appended))
        if len(queue) == 1 and draft.conversation_id not in self._busy:
            self._ready.append(draft.conversation_id)
        if self._watch is None:
            self._watch = loop.call_later(PATIENCE_SECONDS, self._look_after)
        return appended

    def _release(self, conversation_id: UUID) -> None:
        """Its next message may be appended."""
        self._busy.discard(conversation_id)
        if conversation_id in self._waiting:
            self._ready.append(conversation_id)

    def _end_statement(self) -> None:
        self._under_way -= 1
        self._go_on()

    def _go_on(self) -> None:
        while self._under_way < AT_ONCE and self._start_group():
            pass

    def _look_after(self) -> None:
        """As long as any wait: go on although statements are held up; nobody waits for ever."""
        loop = asyncio.get_running_loop()
        self._start_group()
        for queue in self._waiting.values():
            for each in queue:
                if each.since > loop.time() - LONGEST_WAIT_SECONDS:
                    break
                each.give_up()
        self._watch = None
        if self._waiting:
            self._watch = loop.call_later(PATIENCE_SECONDS, self._look_after)

    def _start_group(self) -> bool:
        """Append the first of those that are ready, and all that go with it; False: none is."""
        group = self._take_group()
        if not group:
            return False
        self._under_way += 1
        # Nothing of whoever happens to start it, such as a request id, belongs to the group.
        task = asyncio.create_task(self._append_group(group), context=Context())
        self._groups.add(task)
        task.add_done_callback(self._groups.discard)
        return True

    def _take_group(self) -> list[Waiting]:
        """At most one message of each conversation, all of one kind; they are busy from now on."""
        group: list[Waiting] = []
        others: list[UUID] = []
        while self._ready and len(group) < LARGEST_GROUP:
            conversation_id = self._ready.popleft()
            queue = self._waiting[conversation_id]
            while queue and queue[0].appended.done():  # nobody waits for it any more
                queue.popleft()
            if queue and group and queue[0].statement is not group[0].statement:
                others.append(conversation_id)
                continue
            if queue:
                group.append(queue.popleft())
                self._busy.add(conversation_id)
            if not queue:
                del self._waiting[conversation_id]
        self._ready.extendleft(reversed(others))
        return group

    async def _append_group(self, group: Sequence[Waiting]) -> None:
        rest: Sequence[Waiting] = ()
        if len(group) == 1 and self._under_way <= AT_ONCE:
            await self._append_one(group[0])
        else:  # even one alone, while others are held up: together they don't wait for locks
            rest = await self._append_together(group)
        self._end_statement()
        await asyncio.gather(*map(self._append_again, rest))

    async def _append_again(self, waiting: Waiting) -> None:
        """Alone, and beside the statements that are counted: it may wait long for a lock."""
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                await self._again.acquire()
        except TimeoutError:
            waiting.give_up()
            self._release(waiting.draft.conversation_id)
        else:
            try:
                await self._append_one(waiting)
            finally:
                self._again.release()
        self._go_on()

    async def _append_one(self, waiting: Waiting) -> None:
        try:
            waiting.answer(await append_message(self._database, waiting.draft, self._debounce))
        except Exception as error:  # noqa: BLE001  # it is for whoever waits
            waiting.fail(error)
        self._release(waiting.draft.conversation_id)

    async def _append_together(self, group: Sequence[Waiting]) -> Sequence[Waiting]:
        """Returns those that must be tried alone; all of them when any broke a rule."""
        statement, drafts = group[0].statement, [each.draft for each in group]
        try:
            found = await append_messages(self._database, statement, drafts, self._debounce)
        except (asyncpg.PostgresError, ValidationFailed):
            return group  # nothing was stored, for the sake of one of them
        except Exception as error:  # noqa: BLE001  # it is for all who wait
            for each in group:
                each.fail(error)
                self._release(each.draft.conversation_id)
            return ()
        rest = []
        for each in group:
            appended = found.get(each.draft.id)
            if appended is None:
                rest.append(each)
            else:
                each.answer(appended)
                self._release(each.draft.conversation_id)
        return rest
