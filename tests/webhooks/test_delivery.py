"""Attempts, their order and their limits, against receivers that behave badly."""

import asyncio
import itertools
import random
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from uuid import UUID

import asyncpg
import pytest
from loguru import logger

from messaging_server import metrics
from messaging_server.events import ConversationUpdated
from messaging_server.webhooks import queue_queries
from messaging_server.webhooks.delivery import RETRY_SECONDS
from messaging_server.webhooks.sender import retry_after_seconds
from tests.webhooks.engine import World, running, until
from tests.webhooks.receiver import Received, Receiver, Reply


def failing(times: int) -> "Decide":
    return Decide([Reply(status=500)] * times)


class Decide:
    """Gives each delivery these replies, one an attempt, and 200 after them."""

    def __init__(self, replies: list[Reply]) -> None:
        self._replies = replies
        self._seen: dict[str, int] = defaultdict(int)

    def __call__(self, received: Received) -> Reply:
        number = self._seen[received.id]
        self._seen[received.id] += 1
        return self._replies[number] if number < len(self._replies) else Reply()


def test_the_schedule() -> None:
    minute, hour = 60, 3_600
    later = [hours * hour for hours in (2, 5, 10, 14, 20, 24)]
    assert list(RETRY_SECONDS) == [5, 5 * minute, 30 * minute, *later]


def test_it_is_tried_again_with_the_same_bytes(dsn: str, receiver: Receiver) -> None:
    receiver.decide = failing(3)

    async def scenario() -> None:
        delays = (0.2, 0.3, 0.4)
        async with running(dsn, retry_seconds=delays) as world:
            webhook_id = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "hello")
            await world.until_done(webhook_id, 1)
            (row,) = await world.rows(webhook_id)
            assert (row["status"], row["attempts"], row["response_status"]) == ("SUCCEEDED", 4, 200)
            assert row["error"] is None
        assert len(receiver.requests) == 4
        assert {each.id for each in receiver.requests} == {str(row["id"])}
        assert len({each.body for each in receiver.requests}) == 1
        times = [each.at for each in receiver.requests]
        waited = [after - before for before, after in itertools.pairwise(times)]
        assert all(w >= delay * 0.9 for w, delay in zip(waited, delays, strict=True))

    asyncio.run(scenario())


def test_a_fact_of_this_process_is_told_at_once(dsn: str, receiver: Receiver) -> None:
    async def scenario() -> None:
        async with running(dsn, poll_seconds=30) as world:
            await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            world.loops[0].wake()
            await until(lambda: not world.loops[0]._woken.is_set())
            await world.say(conversation_id, "hello")
            world.bus.publish(ConversationUpdated(conversation_id=conversation_id, version=2))
            await until(lambda: receiver.requests, 5)

    asyncio.run(scenario())


def test_after_the_last_attempt_the_next_one_has_its_turn(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda received: Reply(status=500 if received.text == "first" else 200)

    async def scenario() -> None:
        async with running(dsn) as world:
            webhook_id = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            for text in ("first", "second", "third"):
                await world.say(conversation_id, text)
            await world.until_done(webhook_id, 3)
            rows = await world.rows(webhook_id)
            assert [row["status"] for row in rows] == ["FAILED", "SUCCEEDED", "SUCCEEDED"]
            assert (rows[0]["attempts"], rows[0]["error"]) == (10, "answered 500")
            assert not any(row["parked"] and row["status"] == "PENDING" for row in rows)
        assert [each.text for each in receiver.requests] == ["first"] * 10 + ["second", "third"]

    asyncio.run(scenario())


def test_a_wrong_word_by_sql_holds_nobody_up(dsn: str, receiver: Receiver) -> None:
    async def scenario() -> None:
        async with running(dsn) as world:
            webhook_id = await world.hook(
                receiver.url, events=["conversation.ai_updated", "message.created"]
            )
            conversation_ids = await world.conversations(2)
            await world.database.execute(
                """
                update conversations
                set status = 'LOST', priority = 'URGENT', ai_priority = 'NONSENSE',
                    ai_summary = 'x', ai_tags = '{}', ai_provider = 'x', ai_updated_at = now()
                where id = $1
                """,
                conversation_ids[0],
            )
            await world.say(conversation_ids[1], "hello")
            await world.until_done(webhook_id, 2)
        told = {each.type: each for each in receiver.requests}
        conversation = told["conversation.ai_updated"].json["data"]["conversation"]
        assert (conversation["status"], conversation["ai"]["priority"]) == ("LOST", "NONSENSE")
        assert told["message.created"].text == "hello"

    asyncio.run(scenario())


POISON = """
    insert into webhook_outbox (event, ordering_key, subject_id, detail)
    values ('conversation.exploded', $1, $1, null),
        ('conversation.assigned', $1, $1, '{"agentId": "nobody", "previousAgentId": null}'),
        ('conversation.updated', $1, $1, '"secret"')
"""


def test_what_cannot_be_told_is_dropped_and_the_rest_goes_on(dsn: str, receiver: Receiver) -> None:
    """Facts that were written by hand, and a message that can't be read any more."""
    logged: list[str] = []
    sink = logger.add(
        lambda line: logged.append(str(line)), level="ERROR", format="{message} {extra}"
    )
    dropped = metrics.WEBHOOK_DROPPED._value.get()

    async def scenario() -> None:
        async with running(dsn) as world:
            webhook_id = await world.hook(receiver.url, events=())
            async with world.database.transaction():
                conversation_ids = await world.conversations(2)
                for number in range(20):
                    await world.say(conversation_ids[number % 2], str(number))
                    if number == 10:
                        await world.database.execute(POISON, conversation_ids[0])
                await world.database.execute(
                    "update messages set content_type = 'secret' where content_text = '4'"
                )
            await world.until_done(webhook_id, 3 + 19)
            assert await world.database.fetch_value("select count(*) from webhook_outbox") == 0

    try:
        asyncio.run(scenario())
    finally:
        logger.remove(sink)
    texts = [each.text for each in receiver.requests if each.type == "message.created"]
    for parity in (0, 1):
        numbers = [int(text) for text in texts if int(text) % 2 == parity]
        assert numbers == [n for n in range(parity, 20, 2) if n != 4]
    assert len(logged) == 4
    assert metrics.WEBHOOK_DROPPED._value.get() == dropped + 4
    assert "secret" not in "".join(logged)
    for event in ("message.created", "conversation.exploded", "conversation.assigned"):
        assert any(event in line and "subject_id" in line for line in logged)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("loops", [1, 2])
def test_order_within_a_conversation(dsn: str, receiver: Receiver, seed: int, loops: int) -> None:
    """Under failures, with one server and with two: first successes come in order."""
    dice = random.Random(seed)  # noqa: S311  # no secret
    successes: dict[str, list[int]] = defaultdict(list)

    def decide(received: Received) -> Reply:
        if dice.random() < 0.3:
            return dice.choice([Reply(status=500), Reply(cut=True), Reply(status=302)])
        successes[received.conversation_id].append(int(received.text))
        return Reply(delay_seconds=dice.choice([0, 0, 0.01]))

    receiver.decide = decide

    async def scenario() -> None:
        async with running(dsn, loops=loops) as world:
            webhook_id = await world.hook(receiver.url)
            ids = await world.conversations(6)
            for number in range(60):
                await world.say(dice.choice(ids), str(number))
            await world.until_done(webhook_id, 60)

    asyncio.run(scenario())
    assert sum(len(numbers) for numbers in successes.values()) == 60
    for numbers in successes.values():
        assert numbers == sorted(numbers)


def test_a_lane_waits_but_no_other(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda received: Reply(status=500 if received.text == "stuck" else 200)

    async def scenario() -> None:
        async with running(dsn, retry_seconds=(60,) * 9) as world:
            webhook_id = await world.hook(receiver.url)
            stuck, free = await world.conversations(2)
            await world.say(stuck, "stuck")
            for number in range(20):
                await world.say(stuck, f"behind {number}")
                await world.say(free, f"free {number}")
            await world.until_done(webhook_id, 20)
            await asyncio.sleep(0.3)
        assert not [each for each in receiver.requests if each.text.startswith("behind")]
        assert [each.text for each in receiver.requests if each.text.startswith("free")] == [
            f"free {number}" for number in range(20)
        ]

    asyncio.run(scenario())


def test_receivers_that_hang_hold_nobody_up(dsn: str, receiver: Receiver) -> None:
    async def scenario() -> None:
        with Receiver().serving() as hanging:
            hanging.decide = lambda _: Reply(hang=True)
            async with running(dsn, timeout_seconds=60.0) as world:
                for _ in range(6):
                    await world.hook(hanging.url)
                ids = await world.conversations(40)
                for conversation_id in ids:
                    await world.say(conversation_id, "to those that hang")
                await until(lambda: hanging.open >= 64)
                good = await world.hook(receiver.url)
                for conversation_id in ids:
                    await world.say(conversation_id, "to the good one")
                await world.until_done(good, 40)  # within 20 seconds, those hang for 60
                assert hanging.most_open <= 6 * 16
            await asyncio.sleep(0)

    asyncio.run(scenario())


def test_one_webhook_has_at_most_16_calls_at_a_time(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(delay_seconds=0.1)

    async def scenario() -> None:
        async with running(dsn) as world:
            webhook_id = await world.hook(receiver.url)
            for conversation_id in await world.conversations(60):
                await world.say(conversation_id, "hello")
            await world.until_done(webhook_id, 60)

    asyncio.run(scenario())
    assert receiver.most_open == 16


@pytest.mark.parametrize(
    ("reply", "status", "error"),
    [
        (Reply(status=204, body=b""), 204, None),
        (Reply(endless=True), 200, None),
        (
            Reply(status=302, headers=(("location", "/elsewhere"),)),
            302,
            "answered 302; redirects are not followed",
        ),
        (Reply(status=400), 400, "answered 400"),
        (Reply(status=503, endless=True), 503, "answered 503"),
        (Reply(cut=True), None, "no answer: the connection was closed"),
        (Reply(hang=True), None, "no answer within 1 s"),
        (Reply(headers=(("x", "y" * 100_000),)), None, "the answer is not valid HTTP"),
    ],
)
def test_answers(
    dsn: str, receiver: Receiver, reply: Reply, status: int | None, error: str | None
) -> None:
    receiver.decide = lambda _: reply

    async def scenario() -> None:
        async with running(dsn, retry_seconds=(), timeout_seconds=1.0) as world:
            webhook_id = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "hello")
            await world.until_done(webhook_id, 1)
            (row,) = await world.rows(webhook_id)
            assert row["response_status"] == status
            if error is None:
                assert (row["status"], row["error"]) == ("SUCCEEDED", None)
            else:
                assert row["status"] == "FAILED"
                assert row["error"].startswith(error)

    asyncio.run(scenario())
    assert {each.path for each in receiver.requests} == {"/hook"}


def test_410_pauses_and_nothing_is_lost(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(status=410 if len(receiver.requests) == 1 else 200)

    async def scenario() -> None:
        async with running(dsn) as world:
            webhook_id = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "first")
            await until(lambda: is_disabled(world, webhook_id))
            assert (await world.webhook(webhook_id))["disabled_reason"] == "It answered 410 Gone"
            await world.say(conversation_id, "second")
            await asyncio.sleep(0.5)
            assert len(receiver.requests) == 1
            assert len(await world.rows(webhook_id, "PENDING")) == 2
            await enable(world, webhook_id)
            await world.until_done(webhook_id, 2)
        assert [each.text for each in receiver.requests] == ["first", "first", "second"]

    asyncio.run(scenario())


async def is_disabled(world: World, webhook_id: UUID) -> bool:
    return not (await world.webhook(webhook_id))["enabled"]


async def enable(world: World, webhook_id: UUID) -> None:
    await world.database.execute(
        "update webhooks set enabled = true, failing_since = null where id = $1", webhook_id
    )


def test_nothing_but_failures_disables_in_the_end(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(status=500)

    async def scenario() -> None:
        async with running(dsn, retry_seconds=(0.1,) * 100, give_up_seconds=1.0) as world:
            webhook_id = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "hello")
            await until(lambda: is_disabled(world, webhook_id))
            webhook = await world.webhook(webhook_id)
            assert webhook["disabled_reason"].startswith("Nothing but failures since 20")
            assert webhook["disabled_reason"].endswith("the last one: answered 500")
            (row,) = await world.rows(webhook_id)
            assert row["status"] == "PENDING"
            assert row["attempts"] >= 5

    asyncio.run(scenario())


def test_a_success_ends_the_count_of_failures(dsn: str, receiver: Receiver) -> None:
    receiver.decide = failing(2)

    async def scenario() -> None:
        async with running(dsn, retry_seconds=(0.5,) * 9, give_up_seconds=1.5) as world:
            webhook_id = await world.hook(receiver.url)
            for conversation_id in await world.conversations(3):
                await world.say(conversation_id, "hello")
                await until(lambda: has_failed_lately(world, webhook_id))
                done = len(await world.rows(webhook_id, "SUCCEEDED"))
                await world.until_done(webhook_id, done + 1)
            webhook = await world.webhook(webhook_id)
            assert webhook["enabled"]
            assert webhook["failing_since"] is None

    asyncio.run(scenario())


async def has_failed_lately(world: World, webhook_id: UUID) -> bool:
    return (await world.webhook(webhook_id))["failing_since"] is not None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_kept(dsn: str, receiver: Receiver, status: int, as_date: bool) -> None:
    """By all deliveries of the webhook, not only by the one that heard it."""
    seconds = 3 if as_date else 2  # a date has no fractions

    def decide(_: Received) -> Reply:
        if len(receiver.requests) > 1:
            return Reply()
        at = format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)
        value = at if as_date else str(seconds)
        return Reply(status=status, headers=(("Retry-After", value),))

    receiver.decide = decide

    async def scenario() -> None:
        async with running(dsn) as world:
            webhook_id = await world.hook(receiver.url)
            first, second = await world.conversations(2)
            await world.say(first, "hello")
            await until(lambda: receiver.requests)
            await until(lambda: has_failed_lately(world, webhook_id))
            await world.say(second, "hello")
            await world.until_done(webhook_id, 2)
        times = [each.at for each in receiver.requests]
        assert len(times) == 3
        assert min(times[1:]) - times[0] >= 1.9

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("999999999999999999999", 86_400),
        ("86401", 86_400),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400),
        ("²", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


def test_a_receiver_that_was_killed_and_comes_back(dsn: str, receiver: Receiver) -> None:
    async def scenario() -> None:
        async with running(dsn, retry_seconds=(0.1,) * 100) as world:
            webhook_id = await world.hook(receiver.url)
            ids = await world.conversations(5)
            for number in range(20):
                await world.say(ids[number % 5], str(number))
            await until(lambda: len(receiver.requests) >= 5)
            receiver.go_away()
            for number in range(20, 40):
                await world.say(ids[number % 5], str(number))
            await until(lambda: has_failed_lately(world, webhook_id))
            receiver.come_back()
            await world.until_done(webhook_id, 40)
            assert len(await world.rows(webhook_id, "SUCCEEDED")) == 40
        assert {int(each.text) for each in receiver.requests} == set(range(40))

    asyncio.run(scenario())


def test_two_servers_share_the_work_without_doubles(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(delay_seconds=0.02)

    async def scenario() -> int:
        """How many were to be delivered: as many as it takes until both have had some."""
        async with running(dsn, loops=2) as world, asyncio.timeout(60):
            hooks = [await world.hook(f"{receiver.url}/{number}") for number in range(3)]
            said = 0
            while not said or any(loop.sender._session is None for loop in world.loops):
                for conversation_id in await world.conversations(100):
                    await world.say(conversation_id, "hello")
                said += 100
                for webhook_id in hooks:
                    await world.until_done(webhook_id, said)
            return 3 * said

    count = asyncio.run(scenario())
    ids = [each.id for each in receiver.requests]
    assert len(ids) == len(set(ids)) == count


def test_a_webhook_that_is_deleted_meanwhile(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(delay_seconds=0.5)

    async def scenario() -> None:
        async with running(dsn) as world:
            gone = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "hello")
            await until(lambda: receiver.requests)
            await world.database.execute("delete from webhooks where id = $1", gone)
            other = await world.hook(receiver.url)
            await world.say(conversation_id, "hello")
            await world.until_done(other, 1)
            await until(lambda: not world.loops[0]._attempts and not world.loops[0]._ended)

    asyncio.run(scenario())


def test_while_a_webhook_is_locked_others_go_on(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(delay_seconds=0.2)

    async def scenario() -> None:
        async with running(dsn) as world:
            locked, other = await world.hook(receiver.url), await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "first")
            await until(lambda: len(receiver.requests) == 2)
            async with world.database.transaction():
                lock = "select from webhooks where id = $1 for no key update"
                await world.database.execute(lock, locked)
                await until(lambda: is_first_done(dsn, other))
                assert not await is_first_done(dsn, locked)
            await world.until_done(locked, 1)
            assert len(receiver.requests) == 2

    asyncio.run(scenario())


async def is_first_done(dsn: str, webhook_id: UUID) -> bool:
    """Asked on a connection of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        status = "select status from webhook_deliveries where webhook_id = $1"
        return bool(await connection.fetchval(status, webhook_id) == "SUCCEEDED")
    finally:
        await connection.close()


def test_a_stop_gives_leases_back(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda _: Reply(hang=True)

    async def scenario() -> None:
        async with running(dsn, timeout_seconds=60.0) as world:
            webhook_id = await world.hook(receiver.url)
            (conversation_id,) = await world.conversations(1)
            await world.say(conversation_id, "hello")
            await until(lambda: receiver.requests)
            started = time.monotonic()
            await world.loops[0].stop()
            assert time.monotonic() - started < 30
            (row,) = await world.rows(webhook_id)
            assert (row["status"], row["attempts"], row["lease_until"]) == ("PENDING", 0, None)

    asyncio.run(scenario())


# --- A large backlog ---------------------------------------------------------------------------

BACKLOG = """
    with deliveries as (
        insert into webhook_deliveries (position, webhook_id, event, ordering_key, created_at)
        select 1000000 + n, $1, 'message.created', md5((n % $3)::text)::uuid, now()
        from generate_series(1, $2) n
        returning position
    )
    insert into webhook_bodies (position, body) select position, '{}' from deliveries
"""


DELIVERIES_READ = """
    select (select seq_tup_read from pg_stat_xact_user_tables where relid = t.oid)
        + (select sum(pg_stat_get_xact_tuples_returned(indexrelid))
           from pg_index where indrelid = t.oid)
    from pg_class t where t.oid = 'webhook_deliveries'::regclass
"""
"""By this connection lately, in the table and in its indexes."""


@pytest.mark.parametrize("lanes", [10, 100_000])
def test_a_dead_webhooks_backlog_costs_nothing(dsn: str, receiver: Receiver, lanes: int) -> None:
    """100,000 deliveries that wait: looking for work and claiming don't read them."""

    async def scenario() -> None:
        async with running(dsn, retry_seconds=(60,) * 9) as world:
            database = world.database
            dead = await world.hook("http://127.0.0.1:9/")
            good = await world.hook(receiver.url)
            await database.execute(
                "update webhooks set held_until = 'infinity' where id = $1", dead
            )
            await database.execute(BACKLOG, dead, 100_000, lanes)
            await database.execute("analyze webhook_deliveries")
            rows_read = []
            for number, conversation_id in enumerate(await world.conversations(20)):
                await world.say(conversation_id, str(number))
                async with database.transaction():
                    await queue_queries.look_for_work(database)
                    await queue_queries.lock_targets(database, [])
                    await queue_queries.claim_due(database, {dead: 16}, lease_seconds=0.001)
                    rows_read.append(await database.fetch_value(DELIVERIES_READ))
            assert max(rows_read) < 20_000
            await world.until_done(good, 20)

    asyncio.run(scenario())


# --- Keeping house ----------------------------------------------------------------------------

AGE = "update webhook_deliveries set created_at = now() - interval '31 days' where webhook_id = $1"


async def prune(world: World) -> None:
    async with world.database.transaction():
        await queue_queries.prune(world.database)


async def bodies(world: World) -> int:
    return int(await world.database.fetch_value("select count(*) from webhook_bodies"))


def test_what_is_old_is_pruned(dsn: str, receiver: Receiver) -> None:
    receiver.decide = lambda received: Reply(status=500 if received.text == "stuck" else 200)

    async def scenario() -> None:
        async with running(dsn, retry_seconds=(60,) * 9) as world:
            webhook_id = await world.hook(receiver.url)
            stuck, free = await world.conversations(2)
            await world.say(free, "free")
            await world.say(stuck, "stuck")
            await world.until_done(webhook_id, 1)
            await until(lambda: len(receiver.requests) == 2)
            await prune(world)
            assert len(await world.rows(webhook_id)) == 2
            await world.database.execute(AGE, webhook_id)
            await prune(world)
            assert [row["status"] for row in await world.rows(webhook_id)] == ["PENDING"]
            assert await bodies(world) == 1
            await world.database.execute("update webhooks set enabled = false")
            await prune(world)
            assert await world.rows(webhook_id) == []
            assert await bodies(world) == 0

    asyncio.run(scenario())


def test_what_belonged_to_deleted_webhooks_is_pruned(dsn: str, receiver: Receiver) -> None:
    async def scenario() -> None:
        async with running(dsn) as world:
            first, second, third = [await world.hook(receiver.url) for _ in range(3)]
            (conversation_id,) = await world.conversations(1)
            for number in range(3):
                await world.say(conversation_id, str(number))
            for webhook_id in (first, second, third):
                await world.until_done(webhook_id, 3)
            for gone in (first, third):
                await world.database.execute("delete from webhooks where id = $1", gone)
            await prune(world)
            assert [len(await world.rows(each)) for each in (first, second, third)] == [0, 3, 0]
            assert await bodies(world) == 3
            await world.database.execute("delete from webhooks")
            await prune(world)
            assert await bodies(world) == 0

    asyncio.run(scenario())
