"""What happens reaches whom it concerns, and nobody else."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.client import Api, Socket
from tests.realtime.conftest import close_code

ENVIRONMENT = {"MESSAGING_REALTIME__TYPING_SECONDS": "5"}
UNKNOWN = "01900000-0000-7000-8000-00000000dead"


@pytest.fixture(scope="module")
def agent(api: Api) -> Api:
    return api.new_user(name="Bea")


@pytest.fixture(scope="module")
def colleague(api: Api) -> Api:
    return api.new_user(name="Carl")


@pytest.fixture
def sockets(api: Api, agent: Api, colleague: Api) -> Iterator[tuple[Socket, Socket, Socket]]:
    """Of the admin, the agent and the colleague."""
    with ExitStack() as stack:
        opened = [stack.enter_context(each.socket()) for each in (api, agent, colleague)]
        yield opened[0], opened[1], opened[2]


def about(event: str, conversation_id: str, **data: Any) -> Any:
    """Matches a push about a conversation whose `data` has these values."""

    def matches(frame: dict[str, Any]) -> bool:
        return (
            frame.get("event") == event
            and frame.get("conversationId") == conversation_id
            and data.items() <= frame["data"].items()
        )

    return matches


def shows(conversation_id: str, check: Callable[[dict[str, Any]], bool]) -> Any:
    """Matches a push that brings the conversation in a state that `check` wants."""

    def matches(frame: dict[str, Any]) -> bool:
        seen = frame.get("data", {}).get("conversation", {})
        return seen.get("id") == conversation_id and check(seen)

    return matches


def heard(socket: Socket, conversation_id: str) -> list[str]:
    """The events about a conversation that have come until now; a command is the fence."""
    socket.call("conversation:leave", UNKNOWN)
    return [
        frame["event"] for frame in socket.frames if frame.get("conversationId") == conversation_id
    ]


# --- The inbox --------------------------------------------------------------------------------


def test_inbox_without_a_join(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    """Who may see the conversation hears of every change; what each sees is its own."""
    admin, owner, other = sockets
    conversation = api.new_conversation(agent)
    conversation_id = conversation["id"]
    gained = owner.wait(about("conversation:assigned", conversation_id))
    assert gained["data"]["conversation"]["id"] == conversation_id
    key = api.new_key()
    lead = conversation["lead"]
    sent = key.inbound("Hola", lead={"name": lead["name"], "email": lead["email"]})
    assert sent["conversationId"] == conversation_id

    for socket, caller in ((admin, api), (owner, agent)):
        push = socket.wait(shows(conversation_id, lambda seen: seen["lastSeq"] == 1))
        fresh = caller.get(f"/conversations/{conversation_id}")
        assert push["version"] == push["data"]["conversation"]["version"]
        assert push["data"]["conversation"]["unreadCount"] == fresh["unreadCount"] == 1
    assert heard(other, conversation_id) == []


def test_reading_is_told_only_to_the_reader(
    api: Api, agent: Api, sockets: tuple[Socket, ...]
) -> None:
    admin, owner, _ = sockets
    conversation_id = api.new_conversation(agent)["id"]
    sent = api.send(conversation_id)
    for socket in (admin, owner):
        socket.wait(shows(conversation_id, lambda seen: seen["ai"] is not None))
    agent.post(f"/conversations/{conversation_id}/read", {"seq": sent["seq"]})
    owner.wait(about("conversation:updated", conversation_id))
    assert heard(admin, conversation_id)[1:] == []


def test_changes_reach_the_inbox(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    """State and events give what a fresh read gives."""
    _, owner, _ = sockets
    conversation_id = api.new_conversation(agent)["id"]
    api.patch(f"/conversations/{conversation_id}", {"status": "RESOLVED", "tags": ["vip"]})
    api.send(conversation_id, "We are on it, thank you for waiting.")
    fresh = agent.get(f"/conversations/{conversation_id}")

    push = owner.wait(shows(conversation_id, lambda seen: seen["version"] >= fresh["version"]))
    assert push["data"]["conversation"]["tags"] == ["vip"]
    assert push["data"]["conversation"]["lastSeq"] == 1


def test_lead_changes_reach_the_inbox(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    _, owner, _ = sockets
    conversation = api.new_conversation(agent)
    api.patch(f"/leads/{conversation['lead']['id']}", {"name": "Renamed"})
    owner.wait(shows(conversation["id"], lambda seen: seen["lead"]["name"] == "Renamed"))


def test_analysis_reaches_room_and_inbox(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    admin, owner, other = sockets
    conversation_id = api.new_conversation(agent)["id"]
    owner.call("conversation:join", conversation_id)
    api.send(conversation_id, "The parcel is broken and I want my money back at once!")
    ai = owner.wait(about("conversation:ai:update", conversation_id))["data"]["aiData"]
    assert set(ai) == {"summary", "priority", "tags", "updatedAt"}
    push = admin.wait(shows(conversation_id, lambda seen: seen["ai"] is not None))
    seen = push["data"]["conversation"]["ai"]
    assert {key: seen[key] for key in ai} == ai
    assert "conversation:ai:update" not in heard(admin, conversation_id)
    assert heard(other, conversation_id) == []


def test_status_reaches_the_room(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    """How far a message got, as another system reports it; to who has joined, and to them only."""
    admin, owner, other = sockets
    key = api.new_key()
    conversation_id = key.inbound("Hola")["conversationId"]
    api.post(f"/conversations/{conversation_id}/assign", {"agentId": agent.user["id"]})
    owner.call("conversation:join", conversation_id)
    sent = agent.send(conversation_id, "hello")
    steps = [("failed", "no such number"), ("delivered", None), ("failed", "late"), ("read", None)]
    for status, error in steps:
        receipt = {"messageId": sent["id"], "status": status}
        key.post("/receipts", {"receipts": [receipt | ({"error": error} if error else {})]})
        if error == "late":
            continue
        push = owner.wait(about("message:status", conversation_id))
        assert push["data"] == {
            "messageId": sent["id"],
            "seq": sent["seq"],
            "status": status,
            "error": error,
        }
    assert "message:status" not in heard(owner, conversation_id)
    assert "message:status" not in heard(admin, conversation_id)
    assert heard(other, conversation_id) == []


# --- Losing and gaining sight -----------------------------------------------------------------


def test_reassignment(api: Api, agent: Api, colleague: Api, sockets: tuple[Socket, ...]) -> None:
    admin, loser, winner = sockets
    conversation_id = api.new_conversation(agent)["id"]
    for socket in (admin, loser):
        assert socket.call("conversation:join", conversation_id)["ok"]
    assign = f"/conversations/{conversation_id}/assign"
    api.post(assign, {"agentId": colleague.user["id"]})
    loser.wait(about("conversation:removed", conversation_id, reason="reassigned"))
    gained = winner.wait(about("conversation:assigned", conversation_id))
    assert gained["data"]["conversation"]["assignedAgent"]["id"] == colleague.user["id"]
    assert "conversation:removed" not in heard(loser, conversation_id)
    loser.frames.clear()
    api.send(conversation_id, "not for everyone")
    assert admin.wait_event("message:new")["seq"] == 1
    assert heard(loser, conversation_id) == []
    assert "conversation:removed" not in heard(admin, conversation_id)
    refused = loser.call("typing:start", conversation_id)
    assert refused["error"]["code"] == "not_found"
    api.post(assign, {"agentId": agent.user["id"]})
    loser.wait(about("conversation:assigned", conversation_id))
    assert loser.call("conversation:join", conversation_id)["ok"]


def test_unassigning(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    _, loser, _ = sockets
    conversation_id = api.new_conversation(agent)["id"]
    api.post(f"/conversations/{conversation_id}/assign", {"agentId": None})
    loser.wait(about("conversation:removed", conversation_id))


def test_erasure(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    admin, owner, other = sockets
    conversation = api.new_conversation(agent)
    admin.call("conversation:join", conversation["id"])
    owner.call("conversation:join", conversation["id"])
    api.delete(f"/leads/{conversation['lead']['id']}")
    for socket in (admin, owner):
        socket.wait(about("conversation:removed", conversation["id"], reason="deleted"))
    assert admin.call("conversation:join", conversation["id"])["error"]["code"] == "not_found"
    assert heard(other, conversation["id"]) == []


@pytest.mark.parametrize("how", ["logout", "password", "role", "deactivation"])
def test_revocation_closes_sockets(api: Api, how: str) -> None:
    user = api.new_user()
    with user.socket() as one, user.socket() as two, api.socket() as untouched:
        path = f"/users/{user.user['id']}"
        if how == "logout":
            user.post("/auth/logout")
        elif how == "password":
            change = {"currentPassword": "correct horse", "newPassword": "battery staple"}
            user.post("/auth/password", change)
        elif how == "role":
            api.patch(path, {"role": "ADMIN"})
        else:
            api.patch(path, {"active": False})
        assert close_code(one.connection) == 4401
        assert close_code(two.connection) == 4401
        assert untouched.call("conversation:leave", UNKNOWN)["ok"]


# --- Typing and presence ----------------------------------------------------------------------


@pytest.fixture
def room(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> str:
    """A conversation that the admin and the agent have joined."""
    conversation_id: str = api.new_conversation(agent)["id"]
    for socket in sockets[:2]:
        assert socket.call("conversation:join", conversation_id)["ok"]
    return conversation_id


def test_typing_is_told_to_the_others(agent: Api, room: str, sockets: tuple[Socket, ...]) -> None:
    admin, owner, other = sockets
    person = {"userId": agent.user["id"], "email": agent.user["email"], "name": "Bea"}
    assert owner.call("typing:start", room)["ok"]
    assert owner.call("typing:start", {"conversationId": room})["ok"]
    assert admin.wait(about("typing:start", room))["data"] == person
    assert owner.call("typing:stop", room)["ok"]
    assert admin.wait(about("typing:stop", room))["data"] == person
    assert "typing:start" not in heard(admin, room)
    assert "typing:start" not in heard(owner, room)
    assert heard(other, room) == []


def test_typing_ends_by_itself(room: str, sockets: tuple[Socket, ...]) -> None:
    admin, owner, _ = sockets
    owner.call("typing:start", room)
    admin.wait(about("typing:start", room))
    admin.wait(about("typing:stop", room))


@pytest.mark.parametrize("how", ["leave", "disconnect"])
def test_typing_ends_with_its_socket(
    agent: Api, room: str, sockets: tuple[Socket, ...], how: str
) -> None:
    admin, _, _ = sockets
    with agent.socket() as second:
        second.call("conversation:join", room)
        second.call("typing:start", room)
        admin.wait(about("typing:start", room))
        if how == "leave":
            second.call("conversation:leave", room)
            admin.wait(about("typing:stop", room), timeout=4)
    if how == "disconnect":
        admin.wait(about("typing:stop", room), timeout=4)


def test_presence(api: Api, agent: Api, sockets: tuple[Socket, ...]) -> None:
    admin, _, _ = sockets
    newcomer = api.new_user("ADMIN", name="Dora")
    conversation_id = api.new_conversation(agent)["id"]
    admin.call("conversation:join", conversation_id)

    def online(frame: dict[str, Any]) -> bool:
        people = [person["userId"] for person in frame["data"].get("online", ())]
        return frame.get("event") == "presence:update" and newcomer.user["id"] in people

    def viewing(count: int) -> Any:
        return about("presence:update", conversation_id, viewingCount=count)

    with newcomer.socket() as socket:
        admin.wait(lambda frame: "data" in frame and online(frame))
        socket.wait(lambda frame: "data" in frame and online(frame))
        socket.call("conversation:join", conversation_id)
        people = admin.wait(viewing(2))["data"]["viewing"]
        assert {person["name"] for person in people} >= {"Dora"}
    admin.wait(viewing(1))
