"""Messages take uploads along: the sender's own, each once, in one transaction."""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api import shapes
from tests.api.shapes import check
from tests.attachments.files import image
from tests.client import Api, together, wait_until


@pytest.fixture
def conversation(api: Api, agent: Api) -> dict[str, Any]:
    return api.new_conversation(agent)


def path_of(conversation: dict[str, Any]) -> str:
    return f"/conversations/{conversation['id']}/messages"


def test_a_message_shows_its_attachments_everywhere(
    api: Api, agent: Api, conversation: dict[str, Any]
) -> None:
    uploads = [agent.upload(image("PNG"), "a.png"), agent.upload(b"%PDF-1.7", "b.pdf")]
    ids = [attachment["id"] for attachment in uploads]
    with api.socket() as socket:
        joined = socket.call("conversation:join", {"conversationId": conversation["id"]})
        assert joined["ok"]
        body = {"contentType": "FILE", "attachmentIds": ids, "clientMessageId": "m"}
        message = agent.post(path_of(conversation), body, expect=201)
        pushed = socket.wait_event("message:new")["data"]["message"]
    check(message, shapes.MESSAGE)
    assert message["attachments"] == uploads
    assert message["mediaUrl"] == uploads[0]["url"]
    assert message["contentText"] is None
    assert pushed == message
    assert agent.post(path_of(conversation), body, expect=200) == message
    agent.send(conversation["id"])
    listed = api.get(path_of(conversation))["items"]
    assert listed[1] == message
    assert listed[0]["attachments"] == []
    assert api.get(path_of(conversation), afterSeq=0)["items"][0] == message
    with api.socket() as socket:
        data = {"conversationId": conversation["id"], "afterSeq": 0}
        assert socket.call("conversation:join", data)["data"]["messages"][0] == message
    seen = api.get(f"/conversations/{conversation['id']}")
    assert seen["lastMessage"]["preview"] == "hello"


def test_media_needs_an_address_or_a_file(agent: Api, conversation: dict[str, Any]) -> None:
    error = agent.post(path_of(conversation), {"contentType": "IMAGE"}, expect=400)
    assert "IMAGE" in error["message"]
    assert "attachmentIds" in error["message"]


def test_the_order_is_the_senders(agent: Api, conversation: dict[str, Any]) -> None:
    ids = [agent.upload(bytes([65 + index]))["id"] for index in range(10)][::-1]
    message = agent.send(conversation["id"], attachmentIds=ids)
    assert [attachment["id"] for attachment in message["attachments"]] == ids
    (listed,) = agent.get(path_of(conversation))["items"]
    assert [attachment["id"] for attachment in listed["attachments"]] == ids


def test_text_and_notes_may_carry_files(agent: Api, conversation: dict[str, Any]) -> None:
    message = agent.send(conversation["id"], attachmentIds=[agent.upload()["id"]])
    assert (message["contentType"], message["contentText"]) == ("TEXT", "hello")
    assert message["mediaUrl"] == message["attachments"][0]["url"]
    note = agent.send(conversation["id"], private=True, attachmentIds=[agent.upload()["id"]])
    assert len(note["attachments"]) == 1


def test_a_media_url_of_the_senders_own_stays(agent: Api, conversation: dict[str, Any]) -> None:
    body = {
        "contentType": "IMAGE",
        "mediaUrl": "https://example.com/a.png",
        "attachmentIds": [agent.upload()["id"]],
        "clientMessageId": "m",
    }
    message = agent.post(path_of(conversation), body, expect=201)
    assert message["mediaUrl"] == "https://example.com/a.png"
    assert agent.post(path_of(conversation), body, expect=200) == message
    agent.post(path_of(conversation), {**body, "mediaUrl": None}, expect=409)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"contentType": "IMAGE"}, "mediaUrl"),
        ({"contentType": "IMAGE", "attachmentIds": None}, "mediaUrl"),
        ({"contentType": "TEXT", "attachmentIds": ["{upload}"]}, "contentText"),
        ({"contentType": "FILE", "attachmentIds": []}, "attachmentIds"),
        ({"contentType": "FILE", "attachmentIds": ["{upload}"] * 2}, "attachmentIds"),
        ({"contentType": "FILE", "attachmentIds": ["{random}"] * 11}, "attachmentIds"),
        ({"contentType": "FILE", "attachmentIds": ["{random}"]}, "attachmentIds"),
        ({"contentType": "FILE", "attachmentIds": ["{upload}", "{random}"]}, "attachmentIds"),
        ({"contentType": "FILE", "attachmentIds": ["x"]}, "attachmentIds[0]"),
        ({"contentType": "FILE", "attachmentIds": "{upload}"}, "attachmentIds"),
        ({"contentType": "FILE", "attachmentIds": [None]}, "attachmentIds[0]"),
    ],
)
def test_bad_attachments(
    agent: Api, conversation: dict[str, Any], fields: dict[str, Any], field: str
) -> None:
    upload = agent.upload()["id"]
    body = fields
    if isinstance(ids := fields.get("attachmentIds"), list):
        filled = {"{upload}": lambda: upload, "{random}": lambda: str(uuid4())}
        body = {**fields, "attachmentIds": [filled.get(x, lambda x=x: x)() for x in ids]}
    error = agent.post(path_of(conversation), body, expect=400)
    assert [detail["field"] for detail in error["details"]] == [field]
    assert agent.get(f"/conversations/{conversation['id']}")["lastSeq"] == 0
    sent = agent.send(conversation["id"], attachmentIds=[upload])
    assert (sent["seq"], len(sent["attachments"])) == (1, 1)


def test_only_ones_own_uploads_and_each_once(
    api: Api, agent: Api, stranger: Api, conversation: dict[str, Any]
) -> None:
    foreign, mine = stranger.upload()["id"], agent.upload()["id"]
    refused = [
        agent.post(
            path_of(conversation), {"contentText": "x", "attachmentIds": [foreign]}, expect=400
        ),
        api.post(path_of(conversation), {"contentText": "x", "attachmentIds": [mine]}, expect=400),
    ]
    agent.send(conversation["id"], attachmentIds=[mine])
    body = {"contentText": "again", "attachmentIds": [mine]}
    refused.append(agent.post(path_of(conversation), body, expect=400))
    assert len({error["message"] for error in refused}) == 1
    assert agent.get(f"/conversations/{conversation['id']}")["lastSeq"] == 1
    assert len(stranger.get(f"/attachments/{foreign}")) == 8


def test_a_refused_send_leaves_the_upload_unused(
    api: Api, agent: Api, conversation: dict[str, Any]
) -> None:
    upload = agent.upload()["id"]
    api.send(conversation["id"])
    stale = {"contentText": "x", "attachmentIds": [upload], "expectedLastSeq": 0}
    agent.post(path_of(conversation), stale, expect=409)
    foreign = api.new_conversation()
    body = {"contentText": "x", "attachmentIds": [upload]}
    agent.post(path_of(foreign), body, expect=404)
    assert agent.send(conversation["id"], attachmentIds=[upload])["seq"] == 2


@pytest.mark.parametrize("other", ["none", "another", "order", "more"])
def test_the_same_id_with_other_attachments_is_another_message(
    agent: Api, conversation: dict[str, Any], other: str
) -> None:
    first, second, third = (agent.upload()["id"] for _ in range(3))
    body = {"contentType": "FILE", "mediaUrl": "https://example.com/a", "clientMessageId": "m"}
    agent.post(path_of(conversation), {**body, "attachmentIds": [first, second]}, expect=201)
    ids = {
        "none": None,
        "another": [first, third],
        "order": [second, first],
        "more": [first, second, third],
    }
    repeated = {**body, "attachmentIds": ids[other]}
    agent.post(path_of(conversation), repeated, expect=409)


def test_of_two_sends_with_the_same_upload_one_wins(
    agent: Api, conversation: dict[str, Any]
) -> None:
    for _ in range(10):
        upload = agent.upload()["id"]

        def send(upload: str = upload) -> httpx.Response:
            body = {"contentText": "x", "attachmentIds": [upload]}
            return agent.http.post(path_of(conversation), json=body)

        statuses = sorted(answer.status_code for answer in together([send] * 4))
        assert statuses == [201, 400, 400, 400]
    messages = agent.get(path_of(conversation))["items"]
    assert [message["seq"] for message in messages] == list(range(10, 0, -1))
    assert all(len(message["attachments"]) == 1 for message in messages)


def test_repetitions_at_the_same_moment_find_the_first(
    agent: Api, conversation: dict[str, Any]
) -> None:
    for name in "abcde":
        body = {
            "contentType": "FILE",
            "attachmentIds": [agent.upload()["id"]],
            "clientMessageId": name,
        }
        answers = together(
            [lambda body=body: agent.http.post(path_of(conversation), json=body)] * 4
        )  # type: ignore[misc]
        assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
        assert len({answer.json()["data"]["id"] for answer in answers}) == 1


def test_the_analyser_reads_a_file_as_a_marker(api: Api, conversation: dict[str, Any]) -> None:
    upload = api.upload()["id"]
    api.post(path_of(conversation), {"contentType": "FILE", "attachmentIds": [upload]})
    path = f"/conversations/{conversation['id']}"
    wait_until(lambda: api.get(path)["ai"])
    assert upload not in api.get(path)["summary"]


def test_inbound_takes_no_attachments(api: Api) -> None:
    key = api.new_key()
    body = {
        "externalId": uuid4().hex,
        "lead": {"name": "Luis"},
        "message": {"contentText": "x", "attachmentIds": [api.upload()["id"]]},
    }
    error = key.post("/inbound", body, expect=400)
    assert error["details"][0]["field"] == "message.attachmentIds"
