"""The promise, under load: `message:new` in order, each once, none missing."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from tests.client import Api

ENVIRONMENT = {
    "MESSAGING_REALTIME__COMMANDS_PER_SECOND": "1000000",
    "MESSAGING_REALTIME__COMMAND_BURST": "1000000",
    "MESSAGING_REALTIME__SOCKETS_PER_USER": "100",
    "MESSAGING_ANALYSIS__QUIET_SECONDS": "2",  # a busy machine pauses a burst for longer than 0.5
    "MESSAGING_ANALYSIS__MAX_WAIT_SECONDS": "60",
}
LISTENERS = 20
JOINS_EACH = 100
WRITERS = 4


class Listener:
    """Joins, listens and leaves, and checks that its numbers have no holes."""

    def __init__(self, connection: ClientConnection, conversation_id: str | None) -> None:
        self._connection = connection
        self._conversation_id = conversation_id
        self._id = 1
        self.position = 0

    async def read(self) -> dict[str, Any]:
        frame: dict[str, Any] = json.loads(await asyncio.wait_for(self._connection.recv(), 20))
        if frame.get("event") == "message:new":
            assert frame["seq"] == self.position + 1
            assert frame["data"]["message"]["seq"] == frame["seq"]
            self.position += 1
        elif frame.get("event") == "ping":
            await self._connection.send('{"event":"pong"}')
        return frame

    async def call(self, event: str, data: Any) -> Any:
        self._id += 1
        command = {"id": self._id, "event": event, "data": data}
        await self._connection.send(json.dumps(command))
        while (frame := await self.read()).get("id") != self._id:
            pass
        assert frame["ok"], frame
        return frame["data"]

    async def join(self, *, again: bool = False) -> None:
        """`again`: in the room already, so that pushes may come before the reply."""
        before = self.position
        target = {"conversationId": self._conversation_id, "afterSeq": before}
        reply = await self.call("conversation:join", target)
        assert self.position == before or again, "a message came before the reply"
        assert self.position <= reply["lastSeq"]
        assert not reply["reset"]
        seqs = [message["seq"] for message in reply["messages"]]
        assert seqs == list(range(before + 1, reply["lastSeq"] + 1))
        self.position = reply["lastSeq"]

    async def leave(self) -> None:
        await self.call("conversation:leave", self._conversation_id)

    async def listen_until(self, seq: int) -> None:
        while self.position < seq:
            await self.read()


@asynccontextmanager
async def listening(api: Api, conversation_id: str, count: int) -> AsyncIterator[list[Listener]]:
    """Authenticated, not yet in the room."""
    async with AsyncExitStack() as stack:
        listeners = []
        for _ in range(count):
            connecting = connect(f"{api.url.replace('http', 'ws', 1)}/ws", max_size=None)
            connection = await stack.enter_async_context(connecting)
            listeners.append(Listener(connection, conversation_id))
            await listeners[-1].call("auth", {"token": api.token})
        yield listeners


async def write(api: Api, conversation_id: str, until: asyncio.Event, *, at_most: int) -> int:
    """How many messages were acknowledged."""
    headers = {"Authorization": f"Bearer {api.token}"}
    path = f"{api.url}/api/v1/conversations/{conversation_id}/messages"
    sent = 0
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        while not until.is_set() and sent < at_most:
            response = await client.post(path, json={"contentText": f"message {sent}"})
            assert response.status_code == 201, response.text
            sent += 1
    return sent


def test_joins_during_writes(api: Api) -> None:
    """2,000 joins while others write: none missing, doubled or out of order."""
    conversation_id = api.new_conversation()["id"]

    async def come_and_go(listener: Listener, chance: random.Random) -> None:
        for _ in range(JOINS_EACH):
            await listener.join()
            if chance.random() < 0.2:
                await listener.join(again=True)
            await listener.listen_until(listener.position + chance.randrange(3))
            await listener.leave()
        await listener.join()

    async def scenario(listeners: list[Listener]) -> None:
        done = asyncio.Event()
        writers = [
            asyncio.create_task(write(api, conversation_id, done, at_most=100_000))
            for _ in range(WRITERS)
        ]
        chances = (random.Random(seed) for seed in range(LISTENERS))  # noqa: S311  # for tests
        await asyncio.gather(*map(come_and_go, listeners, chances))
        done.set()
        sent = sum(await asyncio.gather(*writers))
        for listener in listeners:
            await listener.listen_until(sent)
            assert listener.position == sent

    async def run() -> None:
        async with listening(api, conversation_id, LISTENERS) as listeners:
            await scenario(listeners)

    asyncio.run(run())


def test_a_burst_into_one_conversation(api: Api) -> None:
    """1,000 messages: every socket hears all of them in order; one analysis, two at most."""
    conversation_id = api.new_conversation()["id"]

    async def scenario(listeners: list[Listener]) -> None:
        for listener in listeners:
            await listener.join()
        never = asyncio.Event()
        sending = [write(api, conversation_id, never, at_most=100) for _ in range(10)]
        hearing = [listener.listen_until(1_000) for listener in listeners]
        await asyncio.gather(*sending, *hearing)
        while (await listeners[0].read()).get("event") != "conversation:ai:update":
            pass

    async def run() -> None:
        async with listening(api, conversation_id, 5) as listeners:
            await scenario(listeners)

    asyncio.run(run())
    analyses = api.get(f"/conversations/{conversation_id}/analyses")["items"]
    assert 1 <= len(analyses) <= 2
