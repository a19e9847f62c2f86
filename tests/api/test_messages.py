"""The log of a conversation: numbered without gaps, each message once, whoever sends at once."""

from typing import Any
from uuid import uuid4

import pytest

from tests.api.shapes import MESSAGE, check
from tests.client import Api, together


def path_of(conversation: dict[str, Any]) -> str:
    return f"/conversations/{conversation['id']}"


def log_of(api: Api, conversation: dict[str, Any]) -> list[dict[str, Any]]:
    """All messages, oldest first."""
    messages: list[dict[str, Any]] = []
    while True:
        after = messages[-1]["seq"] if messages else 0
        path = f"{path_of(conversation)}/messages"
        page = api.get(path, afterSeq=after, limit=100)["items"]
        if not page:
            return messages
        messages += page


# --- Order ------------------------------------------------------------------------------------


def test_50_senders_leave_no_gap(api: Api, agent: Api, key: Api) -> None:
    conversation = api.new_conversation(agent)
    external = uuid4().hex
    lead = {"name": "Ana", "email": conversation["lead"]["email"]}

    def send(number: int) -> str:
        text = f"message {number}"
        if number % 3 == 0:
            return str(
                key.inbound(text, externalId=f"{external}-{number}", lead=lead)["message"]["id"]
            )
        sender = api if number % 3 == 1 else agent
        return str(sender.send(conversation["id"], text, private=number % 2 == 0)["id"])

    sent = together([lambda number=number: send(number) for number in range(250)], threads=50)
    log = log_of(agent, conversation)
    assert [message["seq"] for message in log] == list(range(1, 251))
    assert {message["id"] for message in log} == set(sent)
    times = [message["createdAt"] for message in log]
    assert times == sorted(times)
    shown = api.get(path_of(conversation))
    assert shown["lastSeq"] == 250
    newest_public = [message for message in log if not message["private"]][-1]
    assert shown["lastMessage"]["seq"] == newest_public["seq"]
    assert shown["lastMessage"]["preview"] == newest_public["contentText"]
    assert shown["unreadCount"] == sum(message["senderType"] == "LEAD" for message in log)


# --- The same message again -------------------------------------------------------------------


def test_100_equal_sends_make_one_message(api: Api, agent: Api) -> None:
    conversation = api.new_conversation(agent)
    body = {"contentText": "once", "clientMessageId": uuid4().hex}
    path = f"{path_of(conversation)}/messages"
    responses = together([lambda: agent.http.post(path, json=body)] * 100, threads=50)
    assert sorted(response.status_code for response in responses) == [200] * 99 + [201]
    assert len({response.text for response in responses}) == 1
    check(responses[0].json()["data"], MESSAGE)
    assert [message["contentText"] for message in log_of(agent, conversation)] == ["once"]
    assert agent.get(path_of(conversation))["lastSeq"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"contentText": "Once"},
        {"private": True},
        {"contentType": "IMAGE", "mediaUrl": "https://example.com/a.png"},
    ],
)
def test_one_id_for_two_messages_is_a_conflict(api: Api, changes: dict[str, Any]) -> None:
    conversation = api.new_conversation()
    body = {"contentText": "once", "clientMessageId": "m1"}
    path = f"{path_of(conversation)}/messages"
    first = api.post(path, body, expect=201)
    api.post(path, {**body, **changes}, expect=409)
    assert api.post(path, body, expect=200) == first


def test_an_id_belongs_to_one_sender_in_one_conversation(api: Api, agent: Api) -> None:
    conversations = [api.new_conversation(agent) for _ in range(2)]
    body = {"contentText": "once", "clientMessageId": "m1"}
    for conversation in conversations:
        for sender in (api, agent):
            sender.post(f"{path_of(conversation)}/messages", body, expect=201)
    assert [len(log_of(api, conversation)) for conversation in conversations] == [2, 2]


# --- What the sender had not seen -------------------------------------------------------------


def test_a_stale_send_is_told_what_it_missed(api: Api, agent: Api) -> None:
    conversation = api.new_conversation(agent)
    path = f"{path_of(conversation)}/messages"
    agent.post(path, {"contentText": "one", "expectedLastSeq": 0}, expect=201)
    missed = [
        api.send(conversation["id"], text, private=text == "note") for text in ("two", "note")
    ]
    missed.append(api.send(conversation["id"], "three"))

    error = agent.post(path, {"contentText": "late", "expectedLastSeq": 1}, expect=409)
    assert error["code"] == "conflict"
    assert error["missed"] == {"lastSeq": 4, "messages": missed}
    error = agent.post(path, {"contentText": "late", "expectedLastSeq": 3}, expect=409)
    assert error["missed"] == {"lastSeq": 4, "messages": missed[2:]}
    agent.post(path, {"contentText": "in time", "expectedLastSeq": 4}, expect=201)
    assert [message["contentText"] for message in log_of(agent, conversation)] == [
        "one", "two", "note", "three", "in time",
    ]  # fmt: skip


def test_a_note_makes_no_send_stale(api: Api) -> None:
    conversation = api.new_conversation()
    api.send(conversation["id"], "one")
    api.send(conversation["id"], "note", private=True)
    api.send(conversation["id"], "two", expectedLastSeq=1)


def test_a_repeated_send_is_not_stale(api: Api) -> None:
    conversation = api.new_conversation()
    path = f"{path_of(conversation)}/messages"
    body = {"contentText": "one", "clientMessageId": "m1", "expectedLastSeq": 0}
    first = api.post(path, body, expect=201)
    assert api.post(path, body, expect=200) == first
    api.post(path, {**body, "contentText": "other"}, expect=409)


def test_of_20_equally_informed_senders_one_wins(api: Api) -> None:
    conversation = api.new_conversation()
    path = f"{path_of(conversation)}/messages"
    body = {"contentText": "first!", "expectedLastSeq": 0}
    responses = together([lambda: api.http.post(path, json=body)] * 20)
    assert sorted(response.status_code for response in responses) == [201] + [409] * 19
    won = next(r.json()["data"] for r in responses if r.status_code == 201)
    for lost in (r.json()["error"] for r in responses if r.status_code == 409):
        assert lost["missed"] == {"lastSeq": 1, "messages": [won]}


def test_at_most_50_missed_messages_come_along(api: Api) -> None:
    conversation = api.new_conversation()
    together([lambda: api.send(conversation["id"])] * 60)
    body = {"contentText": "late", "expectedLastSeq": 0}
    error = api.post(f"{path_of(conversation)}/messages", body, expect=409)
    assert [message["seq"] for message in error["missed"]["messages"]] == list(range(11, 61))
    assert error["missed"]["lastSeq"] == 60


# --- Content ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000,
        "😀" * 10_000,
        "línea\nnueva\ttab \\ ' \" % _ ; -- $1 {0} <b>",
        "\u202eright to left\u202c \u200d zero width \ufeff",
        "e\u0301 is not é, and stays",
        "\\u0000 as text",
        "{'a': [1]}",
    ],
)
def test_text_comes_back_as_it_was_sent(api: Api, text: str) -> None:
    conversation = api.new_conversation()
    message = api.send(conversation["id"], text)
    assert message["contentText"] == text
    assert log_of(api, conversation) == [message]
    preview = api.get(path_of(conversation))["lastMessage"]["preview"]
    assert 0 < len(preview) <= 120
    assert "\n" not in preview


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "contentText"),
        ({"contentText": None}, "contentText"),
        ({"contentText": ""}, "contentText"),
        ({"contentText": " \n\t"}, "contentText"),
        ({"contentText": "x" * 10_001}, "contentText"),
        ({"contentText": "x", "mediaUrl": "https://example.com/a"}, "mediaUrl"),
        ({"contentType": "IMAGE"}, "mediaUrl"),
        ({"contentType": "FILE", "contentText": "caption"}, "mediaUrl"),
        ({"contentType": "SYSTEM", "contentText": "x"}, "contentType"),
        ({"contentType": "text", "contentText": "x"}, "contentType"),
    ],
)
def test_no_content(api: Api, key: Api, body: dict[str, Any], field: str) -> None:
    conversation = api.new_conversation()
    error = api.post(f"{path_of(conversation)}/messages", body, expect=400)
    assert [detail["field"] for detail in error["details"]] == [field]
    inbound = {"externalId": uuid4().hex, "lead": {"name": "Ana"}, "message": body}
    error = key.post("/inbound", inbound, expect=400)
    assert error["details"][0]["field"].rpartition(".")[2] == field


@pytest.mark.parametrize(
    "url",
    ["http://x:99999/", "http://x:0/", "http://x:y/",
     "javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "ftp://example.com/a",
     "//e.com",
     "/relative", "example.com/a", "http://", "https:///path", "http:example.com",
     "https://a b.com/",
     "https://e.com/\n", "http://[::1", "JAVASCRIPT:alert(1)", "x" * 2_001, "https://e.com/\u202e"],
)  # fmt: skip
def test_no_media_url(api: Api, url: str) -> None:
    conversation = api.new_conversation()
    body = {"contentType": "IMAGE", "mediaUrl": url}
    error = api.post(f"{path_of(conversation)}/messages", body, expect=400)
    assert [detail["field"] for detail in error["details"]] == ["mediaUrl"]


@pytest.mark.parametrize("content_type", ["IMAGE", "FILE", "AUDIO", "VIDEO"])
@pytest.mark.parametrize("url", ["https://example.com/á?b=c#d", "HTTP://127.0.0.1:8080/x"])
def test_media(api: Api, content_type: str, url: str) -> None:
    conversation = api.new_conversation()
    path = f"{path_of(conversation)}/messages"
    message = api.post(path, {"contentType": content_type, "mediaUrl": url}, expect=201)
    assert (message["mediaUrl"], message["contentText"]) == (url, None)
    last = api.get(path_of(conversation))["lastMessage"]
    assert (last["contentType"], last["preview"]) == (content_type, f"[{content_type.lower()}]")
    captioned = {"contentType": content_type, "mediaUrl": url, "contentText": "look"}
    api.post(path, captioned, expect=201)
    assert api.get(path_of(conversation))["lastMessage"]["preview"] == "look"


def test_a_preview_is_one_short_line(api: Api) -> None:
    conversation = api.new_conversation()
    api.send(conversation["id"], "  first line\n\nsecond  line " + "word " * 100)
    preview = api.get(path_of(conversation))["lastMessage"]["preview"]
    assert preview.startswith("first line second line word")
    assert preview.endswith("…")
    assert len(preview) == 120


def test_the_senders_name(api: Api, agent: Api) -> None:
    conversation = api.new_conversation(agent)
    nameless = api.new_user()
    api.post(f"{path_of(conversation)}/assign", {"agentId": nameless.user["id"]})
    local_part = nameless.user["email"].partition("@")[0]
    assert nameless.send(conversation["id"])["sender"]["name"] == local_part
    api.post(f"{path_of(conversation)}/assign", {"agentId": agent.user["id"]})
    assert agent.send(conversation["id"])["sender"]["name"] == "Eva"
    senders = [message["sender"]["name"] for message in log_of(api, conversation)]
    assert senders == [local_part, "Eva"]


def test_pages_of_the_log(api: Api) -> None:
    conversation = api.new_conversation()
    for number in range(1, 8):
        api.send(conversation["id"], str(number))
    path = f"{path_of(conversation)}/messages"

    def texts(page: dict[str, Any]) -> str:
        return "".join(message["contentText"] for message in page["items"])

    first = api.get(path, limit=3)
    assert texts(first) == "765"
    api.send(conversation["id"], "8")
    second = api.get(path, limit=3, cursor=first["nextCursor"])
    assert texts(second) == "432"
    third = api.get(path, limit=3, cursor=second["nextCursor"])
    assert (texts(third), third["nextCursor"]) == ("1", None)
    upwards = api.get(path, limit=3, afterSeq=2)
    assert texts(upwards) == "345"
    assert texts(api.get(path, limit=3, cursor=upwards["nextCursor"])) == "678"
    assert api.get(path, afterSeq=8) == {"items": [], "nextCursor": None}
    assert api.get(path, afterSeq=2_147_483_647)["items"] == []
    api.get(path, afterSeq=1, cursor=first["nextCursor"], expect=400)
    empty = api.new_conversation()
    assert api.get(f"{path_of(empty)}/messages") == {"items": [], "nextCursor": None}
