"""Visitors send files, too, and get those of the agents; nobody else's, and none of the notes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.api import shapes
from tests.api.shapes import check
from tests.attachments.conftest import Execute
from tests.attachments.files import image
from tests.client import Api, wait_until
from tests.public.site import PublicApi, Site
from tests.realtime.conftest import visitor_socket

A_TEXT = {"file": ("note.txt", b"hello")}


@pytest.fixture
def site(api: Api) -> Iterator[Site]:
    website = Site(api)
    yield website
    website.close()


def upload(page: PublicApi, content: bytes = b"hello", name: str = "note.txt") -> dict[str, Any]:
    response = page.http.post("/attachments", files={"file": (name, content)})
    attachment: dict[str, Any] = Api.unwrap(response, 201)
    return attachment


def test_a_visitors_file_reaches_the_agents(api: Api, site: Site) -> None:
    page = site.visitor(name="Ana")
    attachment = upload(page, image("PNG"), "a.png")
    check(attachment, shapes.ATTACHMENT)
    body = {"contentType": "IMAGE", "attachmentIds": [attachment["id"]], "clientMessageId": "m"}
    message = page.post("/messages", body, expect=201)
    assert message["attachments"] == [attachment]
    assert message["mediaUrl"] == attachment["url"]
    assert page.post("/messages", body, expect=200) == message
    page.post("/messages", {**body, "attachmentIds": [upload(page)["id"]]}, expect=409)
    assert page.messages() == [message]
    assert page.messages(afterSeq=0) == [message]
    path = f"/conversations/{message['conversationId']}"
    (seen,) = api.get(f"{path}/messages")["items"]
    assert seen["attachments"] == [attachment]
    assert api.get(f"/attachments/{attachment['id']}") == attachment
    assert api.get(path)["lastMessage"]["preview"] == "[image]"


def test_the_first_message_may_be_a_file_that_is_refused(site: Site) -> None:
    """Then there is no conversation either."""
    page = site.visitor()
    body = {"contentType": "FILE", "attachmentIds": [str(uuid4())]}
    error = page.post("/messages", body, expect=400)
    assert error["details"][0]["field"] == "attachmentIds"
    assert site.open(visitorToken=page.visitor_token)["conversationId"] is None


def test_agents_files_reach_the_visitor_but_those_of_notes_do_not(api: Api, site: Site) -> None:
    page = site.visitor()
    conversation_id = page.send()["conversationId"]
    shown, hidden = api.upload(b"shown"), api.upload(b"hidden")
    api.send(conversation_id, private=True, attachmentIds=[hidden["id"]])
    api.send(conversation_id, attachmentIds=[shown["id"]])
    messages = page.messages()
    assert [message["attachments"] for message in messages] == [[shown], []]
    assert httpx.get(messages[0]["mediaUrl"]).content == b"shown"
    assert hidden["id"] not in str(messages)


def test_the_public_socket_carries_files_but_those_of_notes(api: Api, site: Site) -> None:
    page = site.visitor()
    conversation_id = page.send()["conversationId"]
    shown, hidden = api.upload(b"shown"), api.upload(b"hidden")
    with visitor_socket(api, page) as socket:
        assert socket.call("conversation:join", {"afterSeq": 1})["ok"]
        api.send(conversation_id, private=True, attachmentIds=[hidden["id"]])
        api.send(conversation_id, attachmentIds=[shown["id"]])
        frame = socket.wait_event("message:new")
        assert frame["data"]["message"]["attachments"] == [shown]
        assert frame["data"]["message"] == page.messages()[0]
    with visitor_socket(api, page) as socket:
        joined = socket.call("conversation:join", {"afterSeq": 1})["data"]
        assert [message["attachments"] for message in joined["messages"]] == [[shown]]
        assert hidden["id"] not in str((joined, socket.frames))


def test_uploads_belong_to_their_sender(api: Api, site: Site) -> None:
    page, other = site.visitor(), site.visitor()
    elsewhere = Site(api)
    for foreign in (upload(other), api.upload(), upload(elsewhere.visitor())):
        body = {"contentText": "x", "attachmentIds": [foreign["id"]]}
        page.post("/messages", body, expect=400)
    elsewhere.close()
    mine = upload(page)
    conversation = api.new_conversation()
    body = {"contentText": "x", "attachmentIds": [mine["id"]]}
    api.post(f"/conversations/{conversation['id']}/messages", body, expect=400)
    assert len(page.send(attachmentIds=[mine["id"]])["attachments"]) == 1


def test_a_visitor_who_identifies_keeps_the_files(api: Api, site: Site) -> None:
    page = site.visitor()
    sent, unsent = upload(page), upload(page)
    page.send(attachmentIds=[sent["id"]])
    known = site.visitor(identityToken=site.identity(uuid4().hex))
    known.send()
    session = site.open(visitorToken=page.visitor_token, identityToken=site.identity(uuid4().hex))
    verified = site.page(session)
    assert verified.messages()[0]["attachments"][0]["id"] == sent["id"]
    assert len(verified.send(attachmentIds=[unsent["id"]])["attachments"]) == 1


def test_merged_into_a_known_lead_the_files_stay(site: Site) -> None:
    subject = uuid4().hex
    known = site.visitor(identityToken=site.identity(subject))
    known.send("from the laptop")
    page = site.visitor()
    sent, unsent = upload(page), upload(page)
    page.send(attachmentIds=[sent["id"]])
    token = site.identity(subject)
    merged = site.page(site.open(visitorToken=page.visitor_token, identityToken=token))
    assert merged.lead_id == known.lead_id
    assert merged.messages()[0]["attachments"][0]["id"] == sent["id"]
    assert httpx.get(sent["url"]).content == b"hello"
    assert len(merged.send(attachmentIds=[unsent["id"]])["attachments"]) == 1


def test_erasing_the_lead_erases_what_it_uploaded(
    api: Api, site: Site, execute: Execute, data_dir: Path, remove_unused: Callable[[], None]
) -> None:
    page = site.visitor()
    sent, unsent = upload(page), upload(page)
    page.send(attachmentIds=[sent["id"]])
    api.delete(f"/leads/{page.lead_id}")
    ids = [sent["id"], unsent["id"]]
    assert execute("select 1 from attachments where id = any($1::uuid[])", ids) == []
    response = page.http.post("/attachments", files=A_TEXT)
    assert response.status_code == 401
    remove_unused()
    wait_until(lambda: not any(list(data_dir.rglob(f"{each}*")) for each in ids), 25)


@pytest.mark.parametrize("token", ["", "garbage", "agent", "visitor token"])
def test_other_tokens(api: Api, site: Site, token: str) -> None:
    session = site.open()
    tokens = {"agent": api.token, "visitor token": session["visitorToken"]}
    headers = {"Authorization": f"Bearer {tokens.get(token, token)}"} if token else {}
    url = f"{api.url}/api/public/v1/attachments"
    assert httpx.post(url, files=A_TEXT, headers=headers).status_code == 401
    with Api(api.url, session["sessionToken"]) as visitor:
        visitor.get(f"/attachments/{api.upload()['id']}", expect=401)
        assert visitor.http.post("/attachments", files=A_TEXT).status_code == 401


def test_only_pages_of_the_inbox(api: Api) -> None:
    site = Site(api, allowedOrigins=["https://shop.example"])
    try:
        origin = {"Origin": "https://shop.example"}
        page = site.page(site.page(None, **origin).post(site.path, {}, expect=201), **origin)
        answer = page.http.post("/attachments", files=A_TEXT)
        assert answer.status_code == 201
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        foreign = page.http.post(
            "/attachments", files=A_TEXT, headers={"Origin": "https://evil.example"}
        )
        assert foreign.status_code == 403
    finally:
        site.close()
