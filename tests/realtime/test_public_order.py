"""The promise to visitors, under load: public numbers in order, each once, none missing."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.sync.client import connect as connect_blocking

from tests.client import Api
from tests.public.site import PublicApi, Site
from tests.realtime.conftest import closed, public_address, visitor_socket
from tests.realtime.test_order import JOINS_EACH, LISTENERS, Listener
from tests.realtime.test_public_socket import talking
from tests.realtime.test_slow import slow_client

ENVIRONMENT = {
    "MESSAGING_REALTIME__COMMANDS_PER_SECOND": "1000000",
    "MESSAGING_REALTIME__COMMAND_BURST": "1000000",
    "MESSAGING_REALTIME__SOCKETS_PER_VISITOR": "100",
    "MESSAGING_ANALYSIS__ENABLED": "false",
}
WRITERS = 4


class VisitorListener(Listener):
    """Hears nothing but its own conversation's public messages."""

    async def read(self) -> dict[str, Any]:
        frame = await super().read()
        assert frame.get("event") in (None, "message:new", "ping"), frame
        assert "PRIVATE" not in str(frame)
        return frame


@asynccontextmanager
async def listening(api: Api, page: PublicApi, count: int) -> AsyncIterator[list[VisitorListener]]:
    async with AsyncExitStack() as stack:
        listeners = []
        for _ in range(count):
            connecting = connect(public_address(api), max_size=None)
            connection = await stack.enter_async_context(connecting)
            listeners.append(VisitorListener(connection, None))
            await listeners[-1].call("auth", {"token": page.session["sessionToken"]})
        yield listeners


async def write(api: Api, page: PublicApi, conversation_id: str, *, until: asyncio.Event) -> int:
    """Replies, notes and the visitor's own words in turn; how many of them are public."""
    chance = random.Random(conversation_id)  # noqa: S311  # for tests
    agent = {"Authorization": f"Bearer {api.token}"}
    lead = {"Authorization": f"Bearer {page.session['sessionToken']}"}
    inbox = f"{api.url}/api/v1/conversations/{conversation_id}/messages"
    public = 0
    async with httpx.AsyncClient(timeout=30) as client:
        while not until.is_set():
            kind = chance.choice(["reply", "PRIVATE note", "lead"])
            body = {"contentText": kind}
            if kind == "lead":
                path, headers = f"{api.url}/api/public/v1/messages", lead
            else:
                path, headers = inbox, agent
                body["private"] = kind != "reply"
            response = await client.post(path, json=body, headers=headers)
            assert response.status_code == 201, response.text
            public += kind != "PRIVATE note"
    return public


async def come_and_go(listener: VisitorListener, chance: random.Random) -> None:
    for _ in range(JOINS_EACH):
        await listener.join()
        if chance.random() < 0.2:
            await listener.join(again=True)
        await listener.listen_until(listener.position + chance.randrange(3))
        await listener.leave()
    await listener.join()


def test_joins_during_writes(api: Api, site: Site) -> None:
    """2,000 joins while others write, notes among it: none missing, doubled or out of order."""
    page = site.visitor()
    conversation_id = page.send()["conversationId"]

    async def run() -> None:
        done = asyncio.Event()
        async with listening(api, page, LISTENERS) as listeners:
            writers = [
                asyncio.create_task(write(api, page, conversation_id, until=done))
                for _ in range(WRITERS)
            ]
            chances = (random.Random(seed) for seed in range(LISTENERS))  # noqa: S311  # for tests
            await asyncio.gather(*map(come_and_go, listeners, chances))
            done.set()
            head = 1 + sum(await asyncio.gather(*writers))
            for listener in listeners:
                await listener.listen_until(head)
                assert listener.position == head

    asyncio.run(run())


def test_first_messages_of_many_visitors(api: Api, site: Site) -> None:
    """Each has joined before there was a conversation, and hears its own from number 1 on."""
    pages = [site.visitor() for _ in range(30)]

    async def first_words(page: PublicApi) -> None:
        lead = {"Authorization": f"Bearer {page.session['sessionToken']}"}
        async with (
            listening(api, page, 2) as listeners,
            httpx.AsyncClient(timeout=30) as client,
        ):
            for listener in listeners:
                reply = await listener.call("conversation:join", None)
                assert reply["conversationId"] is None
            path = f"{api.url}/api/public/v1/messages"
            sending = [
                client.post(path, json={"contentText": f"{number}"}, headers=lead)
                for number in range(5)
            ]
            await asyncio.gather(*sending, *(each.listen_until(5) for each in listeners))

    async def run() -> None:
        await asyncio.gather(*map(first_words, pages))

    asyncio.run(run())


def test_slow_visitor_harms_only_itself(api: Api, site: Site) -> None:
    """It is closed with 4008; the other device and the agent hear everything."""
    page, conversation_id = talking(site)
    token = page.session["sessionToken"]
    before = closed(api.url, 4008)
    with (
        visitor_socket(api, page) as healthy,
        connect_blocking(public_address(api), sock=slow_client(api.url), max_queue=1) as slow,
    ):
        slow.send(json.dumps({"id": 1, "event": "auth", "data": {"token": token}}))
        slow.recv(5)
        slow.send(json.dumps({"id": 2, "event": "conversation:join"}))
        healthy.call("conversation:join")
        heard = 1
        while closed(api.url, 4008) == before:
            for _ in range(10):
                api.send(conversation_id, "\N{GRINNING FACE}" * 10_000)
                heard += 1
                assert healthy.wait_event("message:new")["seq"] == heard
            assert heard < 1_000, "the slow socket was never closed"


def test_too_long_a_reply_is_a_reset(api: Api, site: Site) -> None:
    page, conversation_id = talking(site)
    for _ in range(27):
        api.send(conversation_id, "\N{GRINNING FACE}" * 10_000)
    with visitor_socket(api, page) as socket:
        data = socket.call("conversation:join", {"afterSeq": 0})["data"]
        assert (data["messages"], data["lastSeq"], data["reset"]) == ([], 28, True)
