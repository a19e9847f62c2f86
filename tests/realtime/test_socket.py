"""One socket: getting in, commands and their errors, joining and resuming."""

import json
from typing import Any
from uuid import uuid4

import httpx
import pytest
from websockets.sync.client import connect

from tests.client import Api, LiveServer, wait_until
from tests.realtime.conftest import closed, stranger

UNKNOWN = "01900000-0000-7000-8000-00000000dead"


# --- Getting in -------------------------------------------------------------------------------


def test_auth_says_who_the_caller_is(api: Api) -> None:
    with stranger(api) as visitor:
        visitor.send({"id": "a", "event": "auth", "data": {"token": api.token}})
        reply = visitor.read()
    user = {key: api.user[key] for key in ("id", "email", "name", "role")}
    assert reply["id"] == "a"
    assert reply["ok"] is True
    assert reply["data"]["user"] == user
    assert 0 < reply["data"]["expiresIn"] <= 12 * 3600


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "\0", "é"])
def test_bad_token_is_refused(api: Api, token: str) -> None:
    with stranger(api) as visitor:
        visitor.send({"id": 1, "event": "auth", "data": {"token": token}})
        assert visitor.read()["error"]["code"] == "unauthenticated"
        assert visitor.close_code() == 4401


def test_first_frame_must_be_auth(api: Api) -> None:
    with stranger(api) as visitor:
        visitor.send({"id": 1, "event": "conversation:join", "data": UNKNOWN})
        assert visitor.read()["error"]["code"] == "unauthenticated"
        assert visitor.close_code() == 4401


def test_token_in_the_handshake(api: Api) -> None:
    conversation = api.new_conversation()
    headers = {"Authorization": f"Bearer {api.token}"}
    with stranger(api, additional_headers=headers) as visitor:
        visitor.send({"id": 1, "event": "conversation:join", "data": conversation["id"]})
        assert visitor.read()["ok"]


def test_bad_token_in_the_handshake(api: Api) -> None:
    with stranger(api, additional_headers={"Authorization": "Bearer nonsense"}) as visitor:
        assert visitor.close_code() == 4401


def test_commands_may_follow_auth_at_once(api: Api) -> None:
    conversation = api.new_conversation()
    with stranger(api) as visitor:
        visitor.send({"id": 1, "event": "auth", "data": {"token": api.token}})
        visitor.send({"id": 2, "event": "conversation:join", "data": conversation["id"]})
        visitor.send({"id": 3, "event": "conversation:leave", "data": conversation["id"]})
        assert [visitor.read()["id"] for _ in range(3)] == [1, 2, 3]


def test_a_fresh_token_on_a_live_socket(api: Api) -> None:
    again, other = api.log_in(api.user["email"]), api.new_user()
    with api.socket() as socket:
        assert socket.call("auth", {"token": again.token})["ok"]
        assert socket.call("auth", {"token": other.token})["error"]["code"] == "forbidden"
        assert socket.call("auth", {"token": "nonsense"})["error"]["code"] == "unauthenticated"
        assert socket.call("conversation:leave", UNKNOWN)["ok"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "x"])
def test_foreign_origin_is_refused(api: Api, origin: str) -> None:
    with stranger(api, origin=origin) as visitor:
        assert visitor.close_code() == 4403


def test_own_origin_is_welcome(api: Api) -> None:
    with stranger(api, origin=api.url) as visitor:
        visitor.send({"id": 1, "event": "auth", "data": {"token": api.token}})
        assert visitor.read()["ok"]


def test_plain_http_is_told_what_this_is(api: Api) -> None:
    response = httpx.get(f"{api.url}/ws")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "validation_error"


# --- Bad frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [b"\0\1", "hello", "[1]", "", "null", b'{"event":"pong"}'])
def test_other_protocols_are_refused(api: Api, frame: str | bytes) -> None:
    with api.socket() as socket, stranger(api) as visitor:
        visitor.send(frame)
        assert visitor.close_code() == 4400
        assert socket.call("conversation:leave", UNKNOWN)["ok"]


def test_frame_limits(api: Api) -> None:
    with stranger(api) as visitor:
        visitor.send({"event": "auth", "data": {"token": "x" * 5_000}})
        assert visitor.close_code() == 1009
    with stranger(api) as visitor:
        visitor.send({"id": 1, "event": "auth", "data": {"token": api.token}})
        assert visitor.read()["ok"]
        visitor.send({"id": 2, "event": "shout", "data": "x" * 60_000})
        assert visitor.read()["error"]["code"] == "validation_error"
        visitor.send({"event": "pong", "data": "x" * 66_000})
        assert visitor.close_code() == 1009


def test_invalid_utf8_is_refused_as_the_rfc_says(api: Api) -> None:
    with stranger(api) as visitor:
        visitor.connection.send(b'{"event":"\xff"}', text=True)
        assert visitor.close_code() == 1007


@pytest.mark.parametrize(
    "frame",
    [
        b"\x81\x02{}",
        b"\xc1\x82\0\0\0\0{}",
        b"\x83\x80\0\0\0\0",
        b"\x80\x80\0\0\0\0",
        b"\x09\x80\0\0\0\0",
        b"\x88\x82\0\0\0\0\x03\xed",
        b"\x88\x82\0\0\0\0\xff\xff",
    ],
    ids=["unmasked", "compressed", "opcode", "continued", "split ping", "1005", "65535"],
)
def test_frames_that_break_the_rfc(api: Api, frame: bytes) -> None:
    """Its sender is told so, and nobody else hears of it."""
    before = closed(api.url, 1002)
    with api.socket() as healthy, stranger(api) as visitor:
        visitor.connection.socket.sendall(frame)
        assert visitor.close_code() == 1002
        assert healthy.call("conversation:leave", UNKNOWN)["ok"]
    assert wait_until(lambda: closed(api.url, 1002) == before + 1)


def test_fragmented_commands_and_pings_between(api: Api) -> None:
    with api.socket() as socket:
        fragments = ['{"id":77,"event":"conversa', 'tion:leave","data":"', UNKNOWN, '"}']
        socket.connection.send(iter(fragments))
        assert socket.wait(lambda frame: frame.get("id") == 77)["ok"]
        assert socket.connection.ping().wait(5)
        assert socket.call("conversation:leave", UNKNOWN)["ok"]


@pytest.mark.parametrize(
    "frame",
    [
        {"id": 9, "event": "shout"},
        {"id": 9, "event": "conversation:join", "data": {"conversationId": 5}},
        {
            "id": 9,
            "event": "conversation:join",
            "data": {"conversationId": UNKNOWN, "afterSeq": -1},
        },
        {
            "id": 9,
            "event": "conversation:join",
            "data": {"conversationId": UNKNOWN, "afterSeq": 2**40},
        },
        '{"id":9,"event":"conversation:join","data":"\\ud800"}',
        '{"id":9,"event":"conversation:join","data":"\\u0000"}',
    ],
)
def test_a_bad_command_is_answered_and_the_socket_lives(api: Api, frame: Any) -> None:
    with api.socket() as socket:
        socket.connection.send(frame if isinstance(frame, str) else json.dumps(frame))
        reply = socket.wait(lambda frame: frame.get("id") == 9)
        assert reply["error"]["code"] == "validation_error"
        assert reply["error"]["retryable"] is False
        assert socket.call("conversation:leave", UNKNOWN)["ok"]


def test_absurd_nesting_is_answered_with_null(api: Api) -> None:
    with api.socket() as socket:
        deep = "[" * 10_000 + "]" * 10_000
        socket.connection.send(f'{{"id":9,"event":"conversation:join","data":{deep}}}')
        reply = socket.wait(lambda frame: "id" in frame and frame["id"] is None)
        assert reply["error"]["code"] == "validation_error"
        assert socket.call("conversation:leave", UNKNOWN)["ok"]


def test_without_an_id_nothing_is_answered(api: Api) -> None:
    with stranger(api) as visitor:
        visitor.send({"event": "auth", "data": {"token": api.token}})
        visitor.send({"event": "shout"})
        visitor.send({"event": "conversation:join", "data": UNKNOWN})
        visitor.send({"id": 4, "event": "conversation:leave", "data": UNKNOWN})
        while (frame := visitor.read()).get("event") == "presence:update":
            pass
        assert frame == {"id": 4, "ok": True, "data": {}}


# --- Who may do what --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent(api: Api) -> Api:
    return api.new_user(name="Bea")


@pytest.fixture(scope="module")
def colleague(api: Api) -> Api:
    return api.new_user(name="Carl")


COMMANDS = ["conversation:join", "conversation:leave", "typing:start", "typing:stop"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("who", ["owner", "admin", "colleague"])
def test_commands_by_role(api: Api, agent: Api, colleague: Api, who: str, command: str) -> None:
    """A foreign conversation looks like one that does not exist."""
    conversation = api.new_conversation(agent)
    caller = {"owner": agent, "admin": api, "colleague": colleague}[who]
    with caller.socket() as socket:
        if command.startswith("typing"):
            socket.call("conversation:join", conversation["id"])
        reply = socket.call(command, conversation["id"])
        unknown = socket.call(command, UNKNOWN)
    if command == "conversation:leave":
        assert reply["ok"]
        assert unknown["ok"]
        return
    assert reply["ok"] == (who != "colleague")
    assert unknown["error"]["code"] == "not_found"
    if who == "colleague":
        assert reply["error"] == unknown["error"]


@pytest.mark.parametrize("command", COMMANDS)
def test_strangers_may_nothing(api: Api, command: str) -> None:
    conversation = api.new_conversation()
    with stranger(api) as visitor:
        visitor.send({"id": 1, "event": command, "data": conversation["id"]})
        assert visitor.read()["error"]["code"] == "unauthenticated"
        assert visitor.close_code() == 4401


# --- Joining and resuming ---------------------------------------------------------------------


def test_join_resumes_after_a_number(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    for number in range(1, 6):
        api.send(conversation_id, f"message {number}")
    with api.socket() as socket:
        target = {"conversationId": conversation_id, "afterSeq": 3}
        data = socket.call("conversation:join", target)["data"]
        assert data["lastSeq"] == 5
        assert data["reset"] is False
        assert [message["seq"] for message in data["messages"]] == [4, 5]
        assert data["conversation"] == api.get(f"/conversations/{conversation_id}")
        sent = api.send(conversation_id, "message 6")
        push = socket.wait_event("message:new")
        assert push["seq"] == 6
        assert push["conversationId"] == conversation_id
        assert push["data"]["message"] == sent


def test_join_without_a_number_brings_no_messages(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    api.send(conversation_id)
    with api.socket() as socket:
        data = socket.call("conversation:join", conversation_id)["data"]
        assert (data["messages"], data["lastSeq"]) == ([], 1)


def test_too_much_to_resume_is_a_reset(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    for number in range(301):
        api.send(conversation_id, f"message {number}")
    with api.socket() as socket:

        def join(after_seq: int) -> dict[str, Any]:
            target = {"conversationId": conversation_id, "afterSeq": after_seq}
            data: dict[str, Any] = socket.call("conversation:join", target)["data"]
            return data

        assert len(join(1)["messages"]) == 300
        assert join(0) | {"conversation": None} == {
            "conversation": None,
            "lastSeq": 301,
            "messages": [],
            "reset": True,
        }
        api.send(conversation_id, "and one")
        assert socket.wait_event("message:new")["seq"] == 302


def test_leaving_ends_it(api: Api) -> None:
    first, second = api.new_conversation()["id"], api.new_conversation()["id"]
    with api.socket() as socket:
        socket.call("conversation:join", first)
        socket.call("conversation:join", second)
        socket.call("conversation:leave", first)
        api.send(first)
        api.send(second)
        assert socket.wait_event("message:new")["conversationId"] == second


def test_every_socket_of_a_room_hears_the_same(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    agent = api.new_user("ADMIN")
    with api.socket() as one, api.socket() as two, agent.socket() as three:
        for socket in (one, two, three):
            socket.call("conversation:join", conversation_id)
        api.send(conversation_id, "hello", clientMessageId=uuid4().hex)
        frames = [socket.wait_event("message:new") for socket in (one, two, three)]
        assert frames[0] == frames[1] == frames[2]


def test_metrics_count_sockets_and_deliveries(api: Api) -> None:
    conversation_id = api.new_conversation()["id"]
    with api.socket() as socket:
        socket.call("conversation:join", conversation_id)
        api.send(conversation_id)
        socket.wait_event("message:new")
        text = httpx.get(f"{api.url}/metrics").text
        assert "messaging_sockets 1.0" in text
        assert "messaging_rooms 1.0" in text
        assert 'messaging_deliveries_total{event="message:new"}' in text
    wait_until(lambda: "messaging_sockets 0.0" in httpx.get(f"{api.url}/metrics").text)


def test_a_token_in_the_address_is_ignored_and_not_logged(server: LiveServer, api: Api) -> None:
    with connect(f"{api.url.replace('http', 'ws', 1)}/ws?token=top-secret") as connection:
        connection.send(json.dumps({"id": 1, "event": "auth", "data": {"token": api.token}}))
        assert json.loads(connection.recv(20))["ok"]
    assert "top-secret" not in server.log()
