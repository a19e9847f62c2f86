"""Another system reports how far agents' messages got."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.client import Api, together


class Channel:
    """An API inbox with a key, and one conversation that came through it."""

    def __init__(self, api: Api) -> None:
        self.api = api
        inbox = api.post("/inboxes", {"name": "Channel", "kind": "API"})
        made = api.post("/api-keys", {"name": "channel", "inboxId": inbox["id"]})
        self.key = Api(api.url, made["key"])
        received = self.key.inbound("hola")
        self.conversation_id = received["conversationId"]
        self.from_lead = received["message"]["id"]

    def send(self, **fields: Any) -> str:
        return str(self.api.send(self.conversation_id, "answer", **fields)["id"])

    def report(self, *receipts: dict[str, Any]) -> Any:
        return self.key.post("/receipts", {"receipts": list(receipts)}, expect=200)

    def status(self, message_id: str) -> Any:
        items = self.api.get(f"/conversations/{self.conversation_id}/messages", limit=100)["items"]
        return next(item["status"] for item in items if item["id"] == message_id)


@pytest.fixture
def channel(api: Api) -> Iterator[Channel]:
    channel = Channel(api)
    yield channel
    channel.key.close()


def receipt(message_id: str, status: str, **fields: Any) -> dict[str, Any]:
    return {"messageId": message_id, "status": status, **fields}


def test_a_message_gets_further_and_never_back(channel: Channel) -> None:
    message_id = channel.send()
    for status, expected in [
        ("failed", "failed"), ("failed", "failed"), ("delivered", "delivered"),
        ("failed", "delivered"), ("read", "read"), ("delivered", "read"), ("read", "read"),
    ]:  # fmt: skip
        before = channel.status(message_id)
        result = channel.report(receipt(message_id, status))
        assert channel.status(message_id) == expected
        moved = before != expected
        assert result == {
            "updated": [message_id] if moved else [],
            "unchanged": [] if moved else [message_id],
            "unknown": [],
        }


def test_whose_messages(api: Api, channel: Channel) -> None:
    other = Channel(api)
    mine, note = channel.send(), channel.send(private=True)
    foreign, nobodys = other.send(), str(uuid4())
    by_hand = api.send(api.new_conversation()["id"])["id"]
    unknown = [note, channel.from_lead, foreign, nobodys, by_hand]
    result = channel.report(*(receipt(each, "read") for each in [mine, *unknown]))
    assert result == {"updated": [mine], "unchanged": [], "unknown": unknown}
    assert other.status(foreign) == "sent"
    other.key.close()


def test_of_several_receipts_the_furthest_counts(channel: Channel) -> None:
    message_id = channel.send()
    result = channel.report(
        receipt(message_id, "delivered"),
        receipt(message_id, "read"),
        receipt(message_id, "failed", error="no"),
    )
    assert result["updated"] == [message_id]
    assert channel.status(message_id) == "read"


def test_agents_hear_of_it(channel: Channel) -> None:
    failed, read = channel.send(), channel.send()
    with channel.api.socket() as socket:
        socket.call("conversation:join", {"conversationId": channel.conversation_id})
        channel.report(receipt(failed, "failed", error="no such number"), receipt(read, "read"))
        pushed = [socket.wait_event("message:status")["data"] for _ in range(2)]
    assert {item["messageId"]: (item["status"], item["error"]) for item in pushed} == {
        failed: ("failed", "no such number"),
        read: ("read", None),
    }


def test_receipts_at_the_same_moment(channel: Channel) -> None:
    messages = [channel.send() for _ in range(20)]
    calls = [
        lambda status=status, order=order: channel.report(
            *(receipt(each, status) for each in messages[::order])
        )
        for status in ("delivered", "read", "failed")
        for order in (1, -1)
    ] * 5
    together(calls)
    assert {channel.status(each) for each in messages} == {"read"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"status": "sent"}, "receipts[0].status"),
        ({"status": "READ"}, "receipts[0].status"),
        ({"status": "read", "error": "x"}, "receipts[0].error"),
        ({"status": "failed", "error": "x" * 501}, "receipts[0].error"),
        ({"status": "failed", "error": ""}, "receipts[0].error"),
        ({"messageId": "x"}, "receipts[0].messageId"),
    ],
)
def test_no_receipts(channel: Channel, changes: dict[str, Any], field: str) -> None:
    body = {"receipts": [{**receipt(str(uuid4()), "read"), **changes}]}
    error = channel.key.post("/receipts", body, expect=400)
    assert error["details"][0]["field"] == field


def test_how_many(channel: Channel) -> None:
    many = [receipt(str(uuid4()), "read") for _ in range(101)]
    channel.key.post("/receipts", {"receipts": many}, expect=400)
    channel.key.post("/receipts", {"receipts": []}, expect=400)
    assert len(channel.report(*many[:100])["unknown"]) == 100
