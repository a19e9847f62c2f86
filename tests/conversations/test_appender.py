"""Messages that go together are appended as they would be one after the other."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from messaging_server.conversations import appender
from messaging_server.conversations.append_queries import (
    PARAMETERS,
    Appended,
    Draft,
    statement_of,
    values_of,
)
from messaging_server.conversations.appender import AT_ONCE, LARGEST_GROUP
from messaging_server.errors import Unavailable, ValidationFailed
from tests.analysis.waiting import until
from tests.conversations.conftest import (
    DEADLINE_SECONDS,
    Inbox,
    Kind,
    Outcome,
    RecordedDatabase,
    outsider,
)

pytestmark = pytest.mark.anyio

LOCK = "select from conversations where id = any($1) for update"
LOCK_LOG = "lock table messages in share mode"
KINDS: tuple[Kind, ...] = ("reply", "note", "lead")
SOON_SECONDS = 20


class Message(NamedTuple):
    """One of a sequence, in the conversation with this number."""

    conversation: int
    kind: Kind
    client_message_id: str | None = None
    expected_last_seq: int | None = None
    pause_seconds: float = 0


def comparable(outcome: Outcome) -> Any:
    if isinstance(outcome, Appended):
        return outcome.seq, outcome.public_seq, outcome.version, outcome.assigned_agent_id
    return outcome and type(outcome)


def drafts_of(
    inbox: Inbox, messages: Sequence[Message], conversations: Sequence[UUID]
) -> list[Draft]:
    return [
        inbox.draft(
            conversations[message.conversation],
            str(number),
            message.kind,
            client_message_id=message.client_message_id,
            expected_last_seq=message.expected_last_seq,
        )
        for number, message in enumerate(messages)
    ]


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is locked is not given up while a slow machine tests."""
    monkeypatch.setattr(appender, "LONGEST_WAIT_SECONDS", 60)


async def assert_as_singly(
    inbox: Inbox, messages: Sequence[Message], *, locked_seconds: float = 0
) -> None:
    """Outcomes, logs and states are those of the same messages sent one after the other.

    Somebody else has the first conversation locked for so long.
    """
    count = 1 + max(message.conversation for message in messages)
    conversations = await inbox.conversations(count)
    twins = await inbox.conversations(count)
    drafts = drafts_of(inbox, messages, conversations)
    tasks: list[asyncio.Task[Appended | None]] = []

    async def send() -> None:
        for message, draft in zip(messages, drafts, strict=True):
            tasks.append(asyncio.create_task(inbox.appender.append(draft)))
            if message.pause_seconds:
                await asyncio.sleep(message.pause_seconds)

    async with asyncio.timeout(DEADLINE_SECONDS):
        if locked_seconds:
            async with outsider(inbox.database.dsn, LOCK, conversations[:1]):
                await send()
                await asyncio.sleep(locked_seconds)
        else:
            await send()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    singly = [await inbox.append_singly(draft) for draft in drafts_of(inbox, messages, twins)]

    assert [*map(comparable, outcomes)] == [*map(comparable, singly)]
    for conversation_id, twin in zip(conversations, twins, strict=True):
        assert await inbox.log(conversation_id) == await inbox.log(twin)
        assert await inbox.state(conversation_id) == await inbox.state(twin)
        await inbox.texts(conversation_id)
    for draft, outcome in zip(drafts, outcomes, strict=True):
        if isinstance(outcome, Appended):
            await inbox.assert_stored(draft, outcome)
    await inbox.assert_idle()


async def test_many_conversations(inbox: Inbox) -> None:
    chance = random.Random(1)  # noqa: S311  # repeatable
    messages = [Message(chance.randrange(60), chance.choice(KINDS)) for _ in range(300)]
    before = len(inbox.database.statements)
    await assert_as_singly(inbox, messages)
    one_by_one = len(messages) + 1  # the twins', and one when all is done
    assert len(inbox.database.statements) - before - one_by_one < len(messages) / 4


@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    messages=st.lists(
        st.builds(
            Message,
            conversation=st.integers(0, 6),
            kind=st.sampled_from(KINDS),
            client_message_id=st.sampled_from([None, None, None, "a", "b"]),
            expected_last_seq=st.sampled_from([None, None, None, None, 0, 2, 5]),
            pause_seconds=st.sampled_from([0, 0, 0, 0, 0.002]),
        ),
        min_size=20,
        max_size=60,
    ),
    locked_seconds=st.sampled_from([0, 0.001, 0.05]),
)
async def test_any_messages(inbox: Inbox, messages: list[Message], locked_seconds: float) -> None:
    await assert_as_singly(inbox, messages, locked_seconds=locked_seconds)


def test_values_are_in_the_order_of_the_parameters() -> None:
    names: dict[str, Any] = {name: name for name in PARAMETERS if name != "attachment_count"}
    expected = {**names, "attachment_count": 0}
    assert dict(zip(PARAMETERS, values_of(Draft(**names)), strict=True)) == expected


async def test_many_cost_few_statements(inbox: Inbox) -> None:
    drafts = [inbox.draft(each) for each in await inbox.conversations(40)]
    before = len(inbox.database.statements)
    outcomes = await inbox.append_all(drafts)
    assert all(isinstance(outcome, Appended) for outcome in outcomes)
    groups = -(-(len(drafts) - AT_ONCE) // LARGEST_GROUP)
    assert len(inbox.database.statements) - before <= AT_ONCE + groups < 10


async def test_one_alone_costs_one_statement_and_no_task(inbox: Inbox) -> None:
    (conversation_id,) = await inbox.conversations(1)
    tasks: list[str] = []

    def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> Any:
        tasks.append(str(coroutine))
        return asyncio.Task(coroutine, loop=loop, **options)

    draft = inbox.draft(conversation_id)
    before = len(inbox.database.statements)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(make_task)
    try:
        await inbox.appender.append(draft)
    finally:
        loop.set_task_factory(None)
    assert inbox.database.statements[before:] == [statement_of(draft).one]
    assert tasks == []


async def test_a_group_has_nothing_of_who_started_it(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
    seen: dict[str, str | None] = {}
    call = RecordedDatabase._call

    async def see(self: RecordedDatabase, method: str, sql: str, arguments: Any) -> Any:
        seen[sql] = request_id.get()
        return await call(self, method, sql, arguments)

    monkeypatch.setattr(RecordedDatabase, "_call", see)
    drafts = [inbox.draft(each) for each in await inbox.conversations(AT_ONCE + 2)]
    request_id.set("mine")
    await inbox.append_all(drafts)
    statement = statement_of(drafts[0])
    assert seen == {statement.one: "mine", statement.many: None}


INBOX_ID = uuid4()
OFFENCES: dict[str, tuple[Kind, dict[str, Any], type[Exception] | None]] = {
    "clientMessageId": ("reply", {"client_message_id": "used"}, asyncpg.UniqueViolationError),
    "externalId": (
        "lead",
        {"external_id": "used", "inbox_id": INBOX_ID},
        asyncpg.UniqueViolationError,
    ),
    "unknown conversation": ("note", {"conversation_id": uuid4()}, None),
    "another agent's": ("reply", {"only_agent_id": uuid4()}, None),
    "another lead's": ("lead", {"sender_id": uuid4()}, None),
    "stale": ("reply", {"expected_last_seq": 0}, None),
    "NUL": ("note", {"content_text": "\0"}, ValidationFailed),
    "out of range": ("reply", {"expected_last_seq": 2**40}, ValidationFailed),
    "lone surrogate": ("reply", {"content_text": "\ud800"}, asyncpg.DataError),
}


@pytest.mark.parametrize("name", OFFENCES)
async def test_a_refusal_is_for_whom_it_concerns(inbox: Inbox, name: str) -> None:
    """The next message of each conversation waits meanwhile, and is appended, too."""
    kind, options, error = OFFENCES[name]
    conversations = await inbox.conversations(9)
    first = {"client_message_id": "used", "inbox_id": INBOX_ID, "external_id": f"used {name}"}
    used = inbox.draft(conversations[4], "used", kind, **first)
    assert isinstance(await inbox.append_singly(used), Appended)
    if "external_id" in options:
        options = {**options, "external_id": used.external_id}

    drafts = [inbox.draft(each, "first", kind) for each in conversations]
    drafts[4] = inbox.draft(**{"conversation_id": conversations[4], "kind": kind, **options})
    after = [inbox.draft(each, "second", kind) for each in conversations]
    outcomes = await inbox.append_together([*drafts, *after])

    assert statement_of(drafts[4]).many in inbox.database.statements
    assert comparable(outcomes[4]) is error
    for number, (draft, outcome) in enumerate(zip([*drafts, *after], outcomes, strict=True)):
        if number != 4:
            await inbox.assert_stored(draft, outcome)
    for conversation_id in conversations:
        expected = ["used" if conversation_id == conversations[4] else "first", "second"]
        assert await inbox.texts(conversation_id) == expected
    await inbox.assert_idle()


@pytest.mark.parametrize("locked_first", [True, False], ids=["alone", "in a group"])
async def test_a_locked_conversation_delays_only_its_own(inbox: Inbox, locked_first: bool) -> None:
    locked = await inbox.conversations(AT_ONCE + 1)
    free = await inbox.conversations(20)

    def send(conversations: Sequence[UUID], text: str) -> list[asyncio.Task[Appended | None]]:
        drafts = [inbox.draft(each, text, kind) for each in conversations for kind in KINDS]
        return [asyncio.create_task(inbox.appender.append(draft)) for draft in drafts]

    async with outsider(inbox.database.dsn, LOCK, locked):
        if locked_first:
            delayed = send(locked, "first")
            soon = send(free, "first")
        else:
            soon = send(free, "first")
            delayed = send(locked, "first")
        refused = asyncio.create_task(inbox.appender.append(inbox.draft(uuid4())))
        async with asyncio.timeout(SOON_SECONDS):
            await asyncio.gather(*soon, refused)
            delayed += send(locked, "second")
            await asyncio.gather(*send(free, "second"))
        assert not any(task.done() for task in delayed)
        assert not any([await inbox.log(each) for each in locked])
    async with asyncio.timeout(SOON_SECONDS):
        appended = await asyncio.gather(*delayed)
    assert all(appended)
    for each in [*locked, *free]:
        assert await inbox.texts(each) == ["first"] * 3 + ["second"] * 3
        assert [row["private"] for row in await inbox.log(each)] == [False, True, False] * 2
    await inbox.assert_idle()


@pytest.mark.parametrize("texts", [["second"], ["second", "third"]], ids=["one", "two"])
async def test_what_waits_for_a_message_tried_again_comes_next(
    inbox: Inbox, texts: list[str]
) -> None:
    """Also when no statement is under way whose end could start it."""
    *others, locked = await inbox.conversations(AT_ONCE + 2)

    def send(conversation_id: UUID, text: str = "x") -> asyncio.Task[Appended | None]:
        return asyncio.create_task(inbox.appender.append(inbox.draft(conversation_id, text)))

    async with outsider(inbox.database.dsn, LOCK, [locked]):
        quick = [send(each) for each in others]
        first = send(locked, "first")
        await asyncio.gather(*quick)
        await until(lambda: inbox.appender._under_way == 0)
        waiting = [send(locked, text) for text in texts]
        await asyncio.sleep(0)
    await first
    waiting.append(send(locked, "last"))
    async with asyncio.timeout(SOON_SECONDS):
        await asyncio.gather(*waiting)
    assert await inbox.texts(locked) == ["first", *texts, "last"]
    await inbox.assert_idle()


async def test_nobody_waits_for_ever(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given up is not appended later."""
    monkeypatch.setattr(appender, "LONGEST_WAIT_SECONDS", 0.1)
    (conversation_id,) = await inbox.conversations(1)
    async with outsider(inbox.database.dsn, LOCK, [conversation_id]):
        drafts = [inbox.draft(conversation_id, text) for text in ("first", "second", "third")]
        first, *others = [asyncio.create_task(inbox.appender.append(draft)) for draft in drafts]
        async with asyncio.timeout(SOON_SECONDS):
            outcomes = await asyncio.gather(*others, return_exceptions=True)
        assert [*map(type, outcomes)] == [Unavailable] * 2
        last = asyncio.create_task(inbox.appender.append(inbox.draft(conversation_id, "last")))
        await asyncio.sleep(0)
    await asyncio.gather(first, last)
    assert await inbox.texts(conversation_id) == ["first", "last"]
    await inbox.assert_idle()


async def test_cancelled_while_it_waits(inbox: Inbox) -> None:
    conversations = await inbox.conversations(AT_ONCE + 4)
    drafts = [inbox.draft(each, text) for text in ("first", "second") for each in conversations]
    tasks = [asyncio.create_task(inbox.appender.append(draft)) for draft in drafts]
    await asyncio.sleep(0)
    *_, before_another, alone, _ = conversations
    cancelled = {
        number
        for number, draft in enumerate(drafts)
        if draft.conversation_id == alone
        or (draft.conversation_id == before_another and draft.content_text == "first")
    }
    for number in cancelled:
        tasks[number].cancel()
    async with asyncio.timeout(SOON_SECONDS):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for number, outcome in enumerate(outcomes):
        expected = asyncio.CancelledError if number in cancelled else Appended
        assert isinstance(outcome, expected)
    assert await inbox.texts(alone) == []
    assert await inbox.texts(before_another) == ["second"]
    await inbox.append_all([inbox.draft(alone, "later")])
    assert await inbox.texts(alone) == ["later"]
    await inbox.assert_idle()


async def test_cancelled_under_way(inbox: Inbox) -> None:
    """One that went alone and one of a group: may be appended or not, and nobody else minds."""
    conversations = await inbox.conversations(AT_ONCE + 6)
    in_group, alone = conversations[AT_ONCE + 2], conversations[0]
    before = len(inbox.database.statements)
    async with outsider(inbox.database.dsn, LOCK_LOG):
        drafts = [inbox.draft(each, text) for text in ("first", "second") for each in conversations]
        tasks = [asyncio.create_task(inbox.appender.append(draft)) for draft in drafts]
        await until(lambda: len(inbox.database.statements) == before + AT_ONCE + 1)
        cancelled = [tasks[0], tasks[AT_ONCE + 2]]
        for task in cancelled:
            task.cancel()
        async with asyncio.timeout(SOON_SECONDS):
            await asyncio.wait(cancelled)
    async with asyncio.timeout(SOON_SECONDS):
        await asyncio.wait(tasks)
    assert all(task.cancelled() for task in cancelled)
    for each in conversations:
        texts = await inbox.texts(each)
        if each in (in_group, alone):
            assert texts in (["second"], ["first", "second"])
        else:
            assert texts == ["first", "second"]
    for draft, task in zip(drafts, tasks, strict=True):
        if task not in cancelled:
            await inbox.assert_stored(draft, task.result())
    await inbox.assert_idle()


async def test_any_may_be_cancelled_at_any_time(inbox: Inbox) -> None:
    chance = random.Random(2)  # noqa: S311  # repeatable
    conversations = await inbox.conversations(10)
    tasks: dict[asyncio.Task[Appended | None], Draft] = {}
    for number in range(400):
        kind = chance.choice(KINDS)
        draft = inbox.draft(chance.choice(conversations), f"{number:03}", kind)
        tasks[asyncio.create_task(inbox.appender.append(draft))] = draft
        if chance.random() < 0.3:
            chance.choice(list(tasks)[-20:]).cancel()
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random() / 100)
    async with asyncio.timeout(SOON_SECONDS):
        await asyncio.wait(tasks)
    assert sum(task.cancelled() for task in tasks) > 20
    needed = defaultdict(set)
    for task, draft in tasks.items():
        if not task.cancelled():
            await inbox.assert_stored(draft, task.result())
            needed[draft.conversation_id].add(draft.content_text)
    for each in conversations:
        texts = await inbox.texts(each)
        assert texts == sorted(set(texts))
        assert needed[each] <= set(texts)
    await inbox.assert_idle()


async def test_the_database_goes_away(inbox: Inbox) -> None:
    conversations = await inbox.conversations(12)
    outcomes: dict[UUID, Outcome] = {}

    async def write(number: int) -> None:
        for _ in range(25):
            draft = inbox.draft(conversations[number % 12], str(uuid4()), KINDS[number % 3])
            (outcomes[draft.id],) = await inbox.append_all([draft])

    async def terminate() -> None:
        for _ in range(5):
            await asyncio.sleep(0.03)
            await inbox.reader.execute(
                """
                select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and pid <> pg_backend_pid()
                """
            )

    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(terminate(), *(write(number) for number in range(30)))
    kinds = {type(outcome) for outcome in outcomes.values()}
    assert kinds == {Appended, Unavailable}, kinds
    stored = [text for each in conversations for text in await inbox.texts(each)]
    assert len(stored) == len(set(stored))
    for draft_id, outcome in outcomes.items():
        if isinstance(outcome, Appended):
            seq = await inbox.reader.fetchval("select seq from messages where id = $1", draft_id)
            assert seq == outcome.seq
    await inbox.assert_idle()


async def test_a_lost_answer_is_not_asked_for_again(
    inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages may have been appended, as they are here."""
    conversations = await inbox.conversations(5)
    drafts = [inbox.draft(each) for each in conversations]
    call = RecordedDatabase._call

    async def lose(self: RecordedDatabase, method: str, sql: str, arguments: Any) -> Any:
        answer = await call(self, method, sql, arguments)
        if sql == statement_of(drafts[0]).many:
            raise Unavailable("The answer is lost")
        return answer

    monkeypatch.setattr(RecordedDatabase, "_call", lose)
    outcomes = await inbox.append_together(drafts)
    assert [*map(type, outcomes)] == [Unavailable] * len(drafts)
    for each in conversations:
        assert await inbox.texts(each) == ["x"]
    await inbox.assert_idle()


async def test_inside_a_transaction(inbox: Inbox) -> None:
    """It is a part of it, and waits for nobody's turn."""
    *busy, conversation_id = await inbox.conversations(AT_ONCE + 1)

    class RollBack(Exception):
        pass

    async def append_and_roll_back() -> None:
        async with inbox.database.transaction():
            appended = await inbox.appender.append(inbox.draft(conversation_id, "rolled back"))
            assert comparable(appended) == (1, 1, 2, None)
            assert await inbox.log(conversation_id) == []
            raise RollBack

    async with outsider(inbox.database.dsn, LOCK, busy):
        tasks = [asyncio.create_task(inbox.appender.append(inbox.draft(each))) for each in busy]
        await asyncio.sleep(0)
        async with asyncio.timeout(SOON_SECONDS):
            with pytest.raises(RollBack):
                await append_and_roll_back()
            async with inbox.database.transaction():
                await inbox.appender.append(inbox.draft(conversation_id, "committed"))
    await asyncio.gather(*tasks)
    assert await inbox.texts(conversation_id) == ["committed"]
    await inbox.assert_idle()


async def test_no_change_from_outside_is_lost(inbox: Inbox) -> None:
    conversations = await inbox.conversations(8)
    changes = dict.fromkeys(conversations, 0)
    done = asyncio.Event()

    async def change(pause_seconds: float) -> None:
        connection = await asyncpg.connect(inbox.database.dsn)
        while not done.is_set():
            for each in conversations:
                async with connection.transaction():
                    await connection.execute(
                        "update conversations set version = version + 1 where id = $1", each
                    )
                    await asyncio.sleep(pause_seconds)
                changes[each] += 1
        await connection.close()

    changing = [asyncio.create_task(change(pause)) for pause in (0, 0, 0.002)]
    for number in range(20):
        kind = KINDS[number % 3]
        outcomes = await inbox.append_all(
            [inbox.draft(each, "x", kind) for _ in range(2) for each in conversations]
        )
        assert all(isinstance(outcome, Appended) for outcome in outcomes)
    done.set()
    await asyncio.gather(*changing)
    for each in conversations:
        assert len(await inbox.texts(each)) == 40
        assert changes[each] > 10
        assert (await inbox.state(each))["version"] == 1 + 40 + changes[each]
    await inbox.assert_idle()
