"""Lists come from a cache: they must never show anything but what Postgres holds."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from msgspec import structs
from uuid_utils.compat import uuid7

from messaging_server.conversations import view_cache
from messaging_server.conversations.urgency import Wait
from messaging_server.conversations.view_cache import View, ViewCache
from messaging_server.models import Conversation
from tests.client import Api, together


def execute(dsn: str, sql: str, *arguments: Any) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    asyncio.run(run())


def listed(user: Api, conversation_id: str) -> dict[str, Any] | None:
    items = user.get("/conversations", limit=100)["items"]
    return next((item for item in items if item["id"] == conversation_id), None)


def assert_listed_as_it_is(user: Api, conversation_id: str) -> None:
    """Between two equal readings, for an analysis may come at any moment."""
    path = f"/conversations/{conversation_id}"
    for _ in range(10):
        before, shown = user.get(path), listed(user, conversation_id)
        if user.get(path) == before:
            assert shown == before
            return
    pytest.fail("it never stood still")


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "conversation": (
        "update conversations set priority = 'HIGH' where id = $1",
        lambda seen: seen["priority"] == "HIGH",
    ),
    "lead": (
        """
        update leads set name = 'Zoe'
        where id = (select lead_id from conversations where id = $1)
        """,
        lambda seen: seen["lead"]["name"] == "Zoe",
    ),
    "agent": (
        """
        update users set name = 'Bea'
        where id = (select assigned_agent_id from conversations where id = $1)
        """,
        lambda seen: seen["assignedAgent"]["name"] == "Bea",
    ),
    "assignment": (
        "update conversations set assigned_agent_id = null where id = $1",
        lambda seen: seen["assignedAgent"] is None,
    ),
    "waiting": (
        "update conversations set waiting_since = now() - interval '3 hours' where id = $1",
        lambda seen: seen["urgency"]["score"] == pytest.approx(15, abs=0.11),
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whoever_changes_a_row_the_list_shows_it(
    api: Api, agent: Api, api_dsn: str, what: str
) -> None:
    conversation_id = api.new_conversation(agent)["id"]
    change, shows = CHANGES[what]
    before = listed(api, conversation_id)
    assert before is not None
    assert before == listed(api, conversation_id) == api.get(f"/conversations/{conversation_id}")
    execute(api_dsn, change, UUID(conversation_id))
    after = listed(api, conversation_id)
    assert after is not None
    assert shows(after)
    assert after == api.get(f"/conversations/{conversation_id}")


def test_a_number_of_a_lead_is_shown_as_it_is_written(api: Api, api_dsn: str) -> None:
    """Postgres finds 1 and 1.0 equal."""
    conversation = api.new_conversation()
    for number in ("1", "1.0"):
        attributes = "jsonb_build_object('n', $2::text::numeric)"
        change = f"update leads set attributes = {attributes} where id = $1"
        execute(api_dsn, change, UUID(conversation["lead"]["id"]), number)
        seen = listed(api, conversation["id"])
        assert seen
        assert str(seen["lead"]["attributes"]["n"]) == number


def test_what_a_cache_holds_is_still_each_users_own(api: Api, agent: Api, stranger: Api) -> None:
    conversation = api.new_conversation(agent)
    key = api.new_key()
    key.inbound("one", lead={"name": "Ana", "email": conversation["lead"]["email"]})
    key.inbound("two", lead={"name": "Ana", "email": conversation["lead"]["email"]})
    agent.post(f"/conversations/{conversation['id']}/read", {"seq": 1}, expect=200)
    for _ in range(2):
        seen = [listed(user, conversation["id"]) for user in (api, agent, stranger)]
        assert [view and view["unreadCount"] for view in seen] == [2, 1, None]
    api.post(f"/conversations/{conversation['id']}/assign", {"agentId": None}, expect=200)
    assert listed(agent, conversation["id"]) is None


def test_random_changes_never_leave_a_stale_list(api: Api, agent: Api) -> None:
    rng = random.Random(7)  # noqa: S311  # the same changes each time
    ids = [api.new_conversation(agent)["id"] for _ in range(5)]
    for _ in range(60):
        path = f"/conversations/{rng.choice(ids)}"
        step = rng.randrange(4)
        if step == 0:
            api.patch(path, {"priority": rng.choice(["HIGH", "LOW", None])}, expect=200)
        elif step == 1:
            agent.send(path.rpartition("/")[2], str(rng.random()))
        elif step == 2:
            api.patch(path, {"status": rng.choice(["OPEN", "RESOLVED"])}, expect=200)
        else:
            lead_id = api.get(path)["lead"]["id"]
            api.patch(f"/leads/{lead_id}", {"name": f"Ana {rng.random()}"}, expect=200)
        for user in (api, agent):
            assert_listed_as_it_is(user, path.rpartition("/")[2])


def shown_id(view: View) -> UUID:
    return msgspec.json.decode(view.shown(unread_count=0, now=0), type=Conversation).id


@pytest.fixture
def conversation(api: Api) -> Conversation:
    return msgspec.convert(api.new_conversation(), Conversation)


def test_the_oldest_view_makes_room(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_cache, "MAX_VIEWS", 3)
    cache = ViewCache()
    ids = [uuid7() for _ in range(5)]
    for each in ids:
        plain = structs.replace(conversation, id=each, unread_count=0, urgency=None)
        view = View.of((1, 3), plain, wait=None)
        cache.keep(each, view)
        cache.keep(each, view)
    kept = [cache.find(each, (1, 3)) for each in ids]
    assert [view and shown_id(view) for view in kept] == [None, None, *ids[2:]]
    assert cache.find(ids[4], (1, 4)) is None


def test_a_view_is_shown_again_until_something_changes(conversation: Conversation) -> None:
    """To the byte as it was, and made anew for another viewer or a minute later."""
    plain = structs.replace(conversation, unread_count=0, urgency=None)
    view = View.of((1, 3), plain, Wait.of(None, since=1_000.0, urgent_since=1_000.0))

    def shown(unread_count: int, seconds: float) -> tuple[int, str]:
        raw = view.shown(unread_count=unread_count, now=1_000.0 + seconds)
        seen = msgspec.json.decode(raw, type=Conversation)
        assert seen.urgency
        assert structs.replace(seen, unread_count=0, urgency=None) == plain
        return seen.unread_count, seen.urgency.reason

    first = view.shown(unread_count=2, now=1_001.0)
    assert view.shown(unread_count=2, now=1_059.0) is first
    assert shown(2, 59) == (2, "No priority yet, waiting less than a minute")
    assert shown(3, 59) == (3, "No priority yet, waiting less than a minute")
    assert shown(3, 60) == (3, "No priority yet, waiting 1 min")
    assert shown(2, 119) == (2, "No priority yet, waiting 1 min")
    assert shown(2, 120) == (2, "No priority yet, waiting 2 min")
    assert shown(2, 1) == (2, "No priority yet, waiting less than a minute")  # the clock was set


@pytest.mark.parametrize("unread_count", [0, 1, -1])  # which only SQL by hand can make of it
def test_a_view_that_waits_for_nobody_changes_with_its_viewer_alone(
    conversation: Conversation, unread_count: int
) -> None:
    plain = structs.replace(conversation, unread_count=0, urgency=None)
    view = View.of((1, 3), plain, wait=None)
    for now in (1e9, 2e9, 0.0):
        seen = msgspec.json.decode(view.shown(unread_count=unread_count, now=now))
        expected = structs.replace(plain, unread_count=unread_count)
        assert seen == msgspec.to_builtins(expected)


HOLDS_TEXT_OF_LEAD = """
select c.lead_text = l.search_text
from conversations c join leads l on l.id = c.lead_id
where c.id = $1
"""
CHANGES_UNDER_WAY = {
    "lead": (
        "insert into conversations (id, lead_id) values ($1, $2)",
        "update leads set name = 'New' where id = $2 and $1::uuid is not null",
        lambda seen: seen["lead"]["name"],
    ),
    "agent": (
        "insert into conversations (id, lead_id, assigned_agent_id) values ($1, $2, $3)",
        "update users set name = 'New' where id = $3 and $1::uuid <> $2::uuid",
        lambda seen: seen["assignedAgent"]["name"],
    ),
}


@pytest.mark.parametrize("is_change_first", [False, True])
@pytest.mark.parametrize("what", CHANGES_UNDER_WAY)
def test_changes_that_overlap_are_shown_when_both_are_there(
    api: Api, agent: Api, api_dsn: str, what: str, is_change_first: bool
) -> None:
    """A conversation comes while whom it shows is being changed; the list is read in between."""
    insert, change, name = CHANGES_UNDER_WAY[what]
    lead_id = UUID(api.new_conversation(agent)["lead"]["id"])
    conversation_id, agent_id = uuid7(), UUID(agent.user["id"])
    known = {"lead": (conversation_id, lead_id), "agent": (conversation_id, lead_id, agent_id)}
    statements = [change, insert] if is_change_first else [insert, change]

    async def overlap() -> dict[str, Any] | None:
        first, second = await asyncpg.connect(api_dsn), await asyncpg.connect(api_dsn)
        try:
            begun, following = first.transaction(), second.transaction()
            await begun.start()
            await first.execute(statements[0], *known[what])
            await following.start()
            under_way = asyncio.create_task(second.execute(statements[1], *known[what]))
            await asyncio.wait([under_way], timeout=0.2 if what == "lead" else 20)
            assert under_way.done() is (what == "agent")  # of a lead, one waits for the other
            await begun.commit()
            await under_way
            between = await asyncio.to_thread(listed, api, str(conversation_id))
            await following.commit()
            after = await asyncio.to_thread(listed, api, str(conversation_id))
            assert after
            assert name(after) == "New"
            assert await first.fetchval(HOLDS_TEXT_OF_LEAD, conversation_id)
            return between
        finally:
            await first.close()
            await second.close()

    between = asyncio.run(overlap())
    assert between is None if is_change_first else between and name(between) != "New"


def test_changes_of_leads_agents_and_messages_do_not_block_each_other(api: Api, agent: Api) -> None:
    """A deadlock would be a 503."""
    conversations = [api.new_conversation(agent) for _ in range(4)]

    def change(number: int) -> None:
        conversation = conversations[number % 4]
        path = f"/conversations/{conversation['id']}"
        match number % 5:
            case 0:
                lead = f"/leads/{conversation['lead']['id']}"
                api.patch(lead, {"name": f"Ana {number}"}, expect=200)
            case 1:
                api.patch(f"/users/{agent.user['id']}", {"name": f"Bea {number}"}, expect=200)
            case 2:
                api.post(f"{path}/assign", {"agentId": agent.user["id"]}, expect=200)
            case _:
                agent.post(f"{path}/messages", {"contentText": "Hello"}, expect=201)

    together([partial(change, number) for number in range(200)], threads=8)
    for conversation in conversations:
        assert_listed_as_it_is(api, conversation["id"])
