"""What a conversation shows: unread, waiting, status, snooze, priority, tags, assignment."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.client import Api, together, wait_until


class Thread:
    """A conversation with a lead that can write."""

    def __init__(self, api: Api, key: Api, agent: Api | None = None) -> None:
        self.api = api
        self.key = key
        conversation = api.new_conversation(agent)
        self.id: str = conversation["id"]
        self.lead = {"name": "Ana", "email": conversation["lead"]["email"]}
        self.path = f"/conversations/{self.id}"

    def lead_writes(self, text: str = "help") -> dict[str, Any]:
        received = self.key.inbound(text, lead=self.lead)
        assert received["conversationId"] == self.id
        message: dict[str, Any] = received["message"]
        return message

    def seen_by(self, user: Api) -> dict[str, Any]:
        seen: dict[str, Any] = user.get(self.path)
        return seen

    @property
    def now(self) -> dict[str, Any]:
        return self.seen_by(self.api)

    def patch(self, expect: int = 200, **changes: Any) -> dict[str, Any]:
        changed: dict[str, Any] = self.api.patch(self.path, changes, expect=expect)
        return changed


@pytest.fixture
def thread(api: Api, key: Api, agent: Api) -> Thread:
    return Thread(api, key, agent)


def in_future(**time: float) -> str:
    return (datetime.now(UTC) + timedelta(**time)).isoformat()


# --- Read marks -------------------------------------------------------------------------------


def test_unread_counts_the_leads_messages_after_the_mark(thread: Thread, agent: Api) -> None:
    for text in ("one", "two"):
        thread.lead_writes(text)  # 1, 2
    agent.send(thread.id)  # 3
    thread.lead_writes("three")  # 4
    agent.send(thread.id, private=True)  # 5
    assert thread.seen_by(agent)["unreadCount"] == 3
    for seq, unread in ((1, 2), (2, 1), (3, 1), (4, 0), (5, 0)):
        mark = agent.post(f"{thread.path}/read", {"seq": seq})
        assert mark == {"conversationId": thread.id, "seq": seq, "unreadCount": unread}
        assert thread.seen_by(agent)["unreadCount"] == unread
        listed = agent.get("/conversations")["items"]
        assert [item["unreadCount"] for item in listed] == [unread]
    assert thread.seen_by(thread.api)["unreadCount"] == 3  # each user has a mark of their own
    thread.lead_writes("four")
    assert thread.seen_by(agent)["unreadCount"] == 1


def test_a_mark_never_goes_back_or_beyond_the_end(thread: Thread, agent: Api) -> None:
    for _ in range(3):
        thread.lead_writes()
    read = f"{thread.path}/read"
    assert agent.post(read, {"seq": 2_147_483_647})["seq"] == 3
    assert agent.post(read, {"seq": 1}) == {
        "conversationId": thread.id,
        "seq": 3,
        "unreadCount": 0,
    }
    thread.lead_writes()
    assert thread.seen_by(agent)["unreadCount"] == 1
    marks = together(
        [lambda seq=seq: agent.post(read, {"seq": seq}) for seq in (4, 1, 3, 2, 0) * 4]
    )
    assert all(mark["unreadCount"] >= 0 for mark in marks)
    assert agent.post(read, {"seq": 0}) == {"conversationId": thread.id, "seq": 4, "unreadCount": 0}


def test_marks_while_the_lead_writes_are_never_negative(thread: Thread, agent: Api) -> None:
    def mark() -> int:
        return int(agent.post(f"{thread.path}/read", {"seq": 2_147_483_647})["unreadCount"])

    def write() -> int:
        thread.lead_writes()
        return 0

    assert min(together([mark, write, mark] * 20, threads=12)) == 0
    assert agent.post(f"{thread.path}/read", {"seq": 20})["unreadCount"] == 0


# --- Waiting ----------------------------------------------------------------------------------


def test_waiting_since_the_first_unanswered_message(thread: Thread, agent: Api) -> None:
    assert thread.now["waitingSince"] is None
    first = thread.lead_writes()
    thread.lead_writes()
    assert thread.now["waitingSince"] == first["createdAt"]
    agent.send(thread.id, "a note", private=True)
    assert thread.now["waitingSince"] == first["createdAt"]
    agent.send(thread.id, "an answer")
    assert thread.now["waitingSince"] is None
    third = thread.lead_writes()
    assert thread.now["waitingSince"] == third["createdAt"]


def test_unreplied_is_waiting_and_not_resolved(thread: Thread, agent: Api) -> None:
    def is_listed(value: str) -> bool:
        items = agent.get("/conversations", unreplied=value)["items"]
        return [item["id"] for item in items] == [thread.id]

    assert (is_listed("true"), is_listed("false")) == (False, True)
    thread.lead_writes()
    assert (is_listed("true"), is_listed("false")) == (True, False)
    thread.patch(status="RESOLVED")
    assert (is_listed("true"), is_listed("false")) == (False, True)
    assert thread.now["waitingSince"] is not None
    thread.patch(status="OPEN")
    assert is_listed("true")
    agent.send(thread.id)
    assert is_listed("false")


def test_notes_are_not_the_last_message(thread: Thread, agent: Api) -> None:
    agent.send(thread.id, "a note", private=True)
    assert thread.now["lastMessage"] is None
    message = agent.send(thread.id, "public")
    agent.send(thread.id, "another note", private=True)
    seen = thread.now
    assert seen["lastSeq"] == 3
    assert seen["lastMessage"] == {
        "seq": 2,
        "senderType": "AGENT",
        "contentType": "TEXT",
        "preview": "public",
        "createdAt": message["createdAt"],
    }


# --- Status -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"status": "RESOLVED"}, {"status": "SNOOZED"}, {"snoozedUntil": 1}]
)
def test_a_leads_message_reopens(thread: Thread, agent: Api, changes: dict[str, Any]) -> None:
    if "snoozedUntil" in changes:
        changes = {"snoozedUntil": in_future(days=1)}
    thread.patch(**changes)
    agent.send(thread.id, "still closed")
    agent.send(thread.id, "a note", private=True)
    assert thread.now["status"] != "OPEN"
    thread.lead_writes()
    assert (thread.now["status"], thread.now["snoozedUntil"]) == ("OPEN", None)


def test_a_snooze_ends_in_time(thread: Thread) -> None:
    snoozed = thread.patch(snoozedUntil=in_future(seconds=0.5))
    assert snoozed["status"] == "SNOOZED"
    assert snoozed["snoozedUntil"] is not None
    later = Thread(thread.api, thread.key)
    later.patch(status="SNOOZED", snoozedUntil=in_future(hours=1))
    endless = Thread(thread.api, thread.key)
    assert endless.patch(status="SNOOZED")["snoozedUntil"] is None
    awake = wait_until(lambda: (now := thread.now)["status"] == "OPEN" and now)
    assert awake["snoozedUntil"] is None
    assert awake["version"] > snoozed["version"]
    assert (later.now["status"], endless.now["status"]) == ("SNOOZED", "SNOOZED")


def test_snoozing_and_waking_by_hand(thread: Thread) -> None:
    until = in_future(hours=1)
    assert thread.patch(snoozedUntil=until)["status"] == "SNOOZED"
    for status in ("OPEN", "RESOLVED"):
        thread.patch(snoozedUntil=until)
        changed = thread.patch(status=status)
        assert (changed["status"], changed["snoozedUntil"]) == (status, None)
    thread.patch(snoozedUntil=until)
    assert thread.patch(priority="LOW")["snoozedUntil"] is not None  # another change leaves it
    woken = thread.patch(snoozedUntil=None)
    assert (woken["status"], woken["snoozedUntil"]) == ("OPEN", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "OPEN"},
        {"status": "RESOLVED"},
        {"status": "SNOOZED"},
        {"snoozedUntil": "2999-01-01T00:00:00Z"},
        {"snoozedUntil": None},
        {"priority": "HIGH"},
        {"priority": None},
        {"tags": ["a", "b"]},
        {"tags": None},
    ],
)
def test_a_change_that_changes_nothing(thread: Thread, changes: dict[str, Any]) -> None:
    """The version stays, so nothing is pushed."""
    changed = thread.patch(**changes)
    assert thread.patch(**changes) == changed
    assert thread.patch(**(changes | {"tags": ["c"]}))["version"] == changed["version"] + 1


def test_the_same_value_by_a_person_is_a_change(thread: Thread) -> None:
    """It stays, whatever the AI says later."""
    before = analysed(thread)
    after = thread.patch(priority=before["priority"])
    assert (before["prioritySource"], after["prioritySource"]) == ("AI", "HUMAN")
    assert after["version"] == before["version"] + 1


def test_a_snooze_until_the_end_of_time(thread: Thread) -> None:
    until = "9999-12-31T23:59:59.999Z"
    assert thread.patch(snoozedUntil=until)["snoozedUntil"] == thread.now["snoozedUntil"] == until


def test_ending_a_snooze_that_is_not_there_changes_no_status(thread: Thread) -> None:
    thread.patch(status="RESOLVED")
    assert thread.patch(snoozedUntil=None)["status"] == "RESOLVED"


def test_no_snooze(thread: Thread) -> None:
    before = thread.now
    thread.patch(status="OPEN", snoozedUntil=in_future(hours=1), expect=400)
    thread.patch(snoozedUntil=in_future(seconds=-1), expect=400)
    thread.patch(snoozedUntil="tomorrow", expect=400)
    thread.patch(snoozedUntil="2999-01-01T00:00:00", expect=400)  # where?
    assert thread.now == before


# --- Priority and tags ------------------------------------------------------------------------


def analysed(thread: Thread) -> dict[str, Any]:
    thread.lead_writes("My invoice is wrong and I am very angry. Refund me now, this is urgent!")
    thread.api.post(f"{thread.path}/analyze")
    seen: dict[str, Any] = wait_until(lambda: (now := thread.now)["ai"] and now)
    return seen


def test_what_a_person_set_stays_until_it_is_handed_back(thread: Thread) -> None:
    before = thread.now
    assert (before["prioritySource"], before["tagsSource"]) == ("AI", "AI")
    ours = thread.patch(priority="LOW", tags=["mine"])
    assert (ours["prioritySource"], ours["tagsSource"]) == ("HUMAN", "HUMAN")
    seen = analysed(thread)
    assert (seen["priority"], seen["tags"]) == ("LOW", ["mine"])
    ai = seen["ai"]
    assert (ai["priority"], ai["tags"]) != ("LOW", ["mine"])

    back = thread.patch(priority=None)
    assert (back["priority"], back["prioritySource"]) == (ai["priority"], "AI")
    assert (back["tags"], back["tagsSource"]) == (["mine"], "HUMAN")
    back = thread.patch(tags=None)
    assert (back["tags"], back["tagsSource"]) == (ai["tags"], "AI")
    none = thread.patch(tags=[])
    assert (none["tags"], none["tagsSource"]) == ([], "HUMAN")


def test_handing_back_before_any_analysis(thread: Thread) -> None:
    thread.patch(priority="HIGH", tags=["mine"])
    back = thread.patch(priority=None, tags=None)
    assert (back["priority"], back["prioritySource"]) == (None, "AI")
    assert (back["tags"], back["tagsSource"]) == ([], "AI")


def test_every_change_makes_a_version_and_no_change_none(thread: Thread, agent: Api) -> None:
    versions = [thread.now["version"]]
    assert thread.patch()["version"] == versions[0]
    versions.append(thread.patch(status="RESOLVED")["version"])
    thread.lead_writes()
    versions.append(thread.now["version"])
    agent.send(thread.id, private=True)
    versions.append(thread.now["version"])
    path = f"{thread.path}/assign"
    versions.append(thread.api.post(path, {"agentId": None})["version"])
    assert versions == sorted(set(versions))
    assert thread.api.post(path, {"agentId": None})["version"] == versions[-1]


# --- Assignment -------------------------------------------------------------------------------


def test_assignment(thread: Thread, api: Api, agent: Api, stranger: Api) -> None:
    path = f"{thread.path}/assign"
    same = api.post(path, {"agentId": agent.user["id"]}, expect=200)
    assert same["version"] == 1
    moved = api.post(path, {"agentId": stranger.user["id"]}, expect=200)
    assert moved["assignedAgent"]["id"] == stranger.user["id"]
    assert moved["version"] == 2
    agent.get(thread.path, expect=404)
    stranger.get(thread.path, expect=200)
    mine = stranger.get("/conversations", assignedAgentId=stranger.user["id"])["items"]
    assert [item["id"] for item in mine] == [thread.id]
    assert api.post(path, {"agentId": None})["assignedAgent"] is None
    api.post(path, {}, expect=400)
    api.post(f"/conversations/{uuid4()}/assign", {"agentId": None}, expect=404)


def test_only_an_active_user_can_be_assigned(thread: Thread, api: Api, stranger: Api) -> None:
    api.patch(f"/users/{stranger.user['id']}", {"active": False})
    for unusable in (stranger.user["id"], str(uuid4())):
        error = api.post(f"{thread.path}/assign", {"agentId": unusable}, expect=400)
        assert [detail["field"] for detail in error["details"]] == ["agentId"]
        body = {"lead": {"name": "Ana"}, "assignedAgentId": unusable}
        error = api.post("/conversations", body, expect=400)
        assert [detail["field"] for detail in error["details"]] == ["assignedAgentId"]
    assert thread.now["version"] == 1


def test_an_agents_new_conversation_is_the_agents_own(agent: Api, stranger: Api) -> None:
    made = agent.post("/conversations", {"lead": {"name": "Ana"}}, expect=201)
    assert made["assignedAgent"]["id"] == agent.user["id"]
    body = {"lead": {"name": "Ana"}, "assignedAgentId": stranger.user["id"]}
    agent.post("/conversations", body, expect=403)


@pytest.mark.parametrize(
    "body", [{}, {"leadId": None}, {"leadId": str(uuid4()), "lead": {"name": "A"}}]
)
def test_a_conversation_has_one_lead(api: Api, body: dict[str, Any]) -> None:
    api.post("/conversations", body, expect=400)


def test_a_refused_conversation_leaves_no_lead(api: Api) -> None:
    name = f"Nobody {uuid4().hex}"
    body = {"lead": {"name": name}, "assignedAgentId": str(uuid4())}
    api.post("/conversations", body, expect=400)
    assert api.get("/leads", search=name)["items"] == []


# --- Leads ------------------------------------------------------------------------------------


def test_a_lead_is_shown_as_it_is_now(thread: Thread, agent: Api) -> None:
    lead_id = thread.now["lead"]["id"]
    agent.patch(f"/leads/{lead_id}", {"name": "Ana María", "attributes": {"plan": "pro"}})
    message = thread.lead_writes()
    assert message["sender"]["name"] == "Ana María"
    assert thread.now["lead"]["name"] == "Ana María"
    assert thread.now["lead"]["attributes"] == {"plan": "pro"}


def test_an_agent_sees_the_leads_of_their_conversations(thread: Thread, agent: Api) -> None:
    lead_id = thread.now["lead"]["id"]
    agent.get(f"/leads/{lead_id}", expect=200)
    made = agent.post("/leads", {"name": "Luis"}, expect=201)
    agent.get(f"/leads/{made['id']}", expect=200)
    with thread.api.new_user() as colleague:
        colleague.get(f"/leads/{made['id']}", expect=404)
        colleague.get(f"/leads/{lead_id}", expect=404)


async def count(dsn: str, sql: str, *arguments: str) -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return int(await connection.fetchval(sql, *arguments))
    finally:
        await connection.close()


def rows_about(dsn: str, conversation_id: str) -> list[int]:
    statements = [
        "select count(*) from conversations where id = $1",
        *(
            f"select count(*) from {table} where conversation_id = $1"
            for table in ("messages", "conversation_reads", "analyses")
        ),
    ]
    return [asyncio.run(count(dsn, sql, conversation_id)) for sql in statements]


def test_deleting_a_lead_erases_everything_of_it(
    thread: Thread, api: Api, agent: Api, api_dsn: str
) -> None:
    seen = analysed(thread)
    agent.post(f"{thread.path}/read", {"seq": 1})
    lead_id = seen["lead"]["id"]
    assert min(rows_about(api_dsn, thread.id)) > 0
    agent.delete(f"/leads/{lead_id}", expect=403)
    api.delete(f"/leads/{lead_id}", expect=200)
    assert rows_about(api_dsn, thread.id) == [0, 0, 0, 0]
    for path in (f"/leads/{lead_id}", thread.path, f"{thread.path}/messages"):
        agent.get(path, expect=404)
        api.get(path, expect=404)
    assert agent.get("/conversations")["items"] == []
    assert agent.get("/dashboard/metrics")["totalConversations"] == 0
    api.delete(f"/leads/{lead_id}", expect=404)


def test_whatever_runs_while_a_lead_is_deleted_ends_well(
    api: Api, key: Api, agent: Api, api_dsn: str
) -> None:
    """Found or gone, but never a defect, and nothing is left of the lead."""
    for _ in range(8):
        thread = Thread(api, key, agent)
        lead_id = thread.now["lead"]["id"]
        thread.lead_writes()
        inbound = {"lead": thread.lead, "message": {"contentText": "me again"}}

        def receive(inbound: dict[str, Any] = inbound) -> int:
            body = {"externalId": uuid4().hex, **inbound}
            return key.http.post("/inbound", json=body).status_code

        def call(caller: Api, method: str, path: str, body: Any = None) -> int:
            return caller.http.request(method, path, json=body).status_code

        path = thread.path
        calls = [
            *[lambda path=path: call(agent, "POST", f"{path}/read", {"seq": 1})] * 3,
            *[lambda path=path: call(agent, "POST", f"{path}/messages", {"contentText": "x"})] * 2,
            *[lambda lead=lead_id: call(api, "POST", "/conversations", {"leadId": lead})] * 3,
            receive,
            lambda lead=lead_id: call(api, "DELETE", f"/leads/{lead}"),
            receive,
            lambda path=path: call(api, "POST", f"{path}/assign", {"agentId": None}),
            lambda path=path: call(agent, "PATCH", path, {"status": "OPEN"}),
            *[lambda path=path: call(api, "POST", f"{path}/read", {"seq": 1})] * 3,
            lambda lead=lead_id: call(api, "PATCH", f"/leads/{lead}", {"name": "Eva"}),
        ]
        assert set(together(calls, threads=len(calls))) <= {200, 201, 404, 409}
    for table in ("messages", "conversation_reads", "analyses"):
        gone = "conversation_id not in (select id from conversations)"
        assert asyncio.run(count(api_dsn, f"select count(*) from {table} where {gone}")) == 0
