"""A visitor of a website, who chats with an agent through the public API and its socket.

Both directions are checked: the visitor hears every answer, numbered without holes, and nothing
that is not for visitors; the agent hears every message, who is typing, and what was read.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from websockets.asyncio.client import ClientConnection

from messaging_server.demo.client import Api, Connection, PromiseBroken, Push, Room, open_socket
from messaging_server.demo.scripts import Script, ScriptedMessage
from messaging_server.demo.stage import DELIVERY_TIMEOUT_SECONDS, Scene, Stage, check_heard
from messaging_server.models import (
    DeliveryStatus,
    Inbox,
    InboxKind,
    Message,
    Page,
    PublicMessage,
)

CHAT = Path(__file__).with_name("website.jsonl")
NOTE = "Tank owners often forget the pump: check before it is shipped."
"""Written by the agent before the first answer; the visitor must not hear of it."""

PREFIX = "/api/public/v1"
FOR_VISITORS = frozenset({"message:new", "typing:start", "typing:stop"})


class VisitorSocket:
    """Hears the visitor's one conversation; raises `PromiseBroken` for anything else."""

    def __init__(self, socket: ClientConnection, room: Room[PublicMessage]) -> None:
        self.connection = Connection(socket, on_push=self._receive)
        self.room = room

    async def join(self) -> None:
        """Also before there is a conversation: it is heard from its first message on."""
        await self.connection.command(
            "conversation:join", {"afterSeq": 0}, on_reply=self.room.receive_reply
        )

    async def type(self, *, start: bool) -> None:
        await self.connection.command("typing:start" if start else "typing:stop", {})

    def _receive(self, push: Push) -> None:
        if push.event not in FOR_VISITORS:
            raise PromiseBroken(f"a visitor's socket was told of {push.event or 'nothing'}")
        self.room.receive(push)


async def visit(stage: Stage, script: Script, *, index: int) -> None:
    """Play `script` as a visitor's chat; raises `PromiseBroken`, maybe in an exception group."""
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        token = await open_session(stage, script.lead_name)
        api = Api(stage.url, token, prefix=PREFIX)
        stack.push_async_callback(api.close)
        room = Room(f"of {script.lead_name}", PublicMessage, on_message=stage.count_message)
        socket = VisitorSocket(await open_socket(stage.url, "/ws/public"), room)
        stack.push_async_callback(socket.connection.close)
        listening = tasks.create_task(socket.connection.listen())
        await socket.connection.authenticate(token)
        await socket.join()
        await Chat(stage, script, api, socket).play(index)
        listening.cancel()


async def open_session(stage: Stage, name: str) -> str:
    """The token of a new visitor's session with the website's inbox."""
    inboxes = await stage.team.admin.api.get("/inboxes", Page[Inbox])
    inbox = next((each for each in inboxes.items if each.kind is InboxKind.WIDGET), None)
    if inbox is None:
        raise PromiseBroken("there is no inbox for a website's visitors")
    api = Api(stage.url, prefix=PREFIX)
    try:
        session = await api.post(f"/inboxes/{inbox.id}/sessions", {"name": name})
    finally:
        await api.close()
    return str(session["sessionToken"])


class Chat:
    """One script between a visitor and the agent who gets the conversation."""

    def __init__(self, stage: Stage, script: Script, api: Api, socket: VisitorSocket) -> None:
        self._stage = stage
        self._script = script
        self._name = script.lead_name
        self._api = api
        self._socket = socket

    async def play(self, index: int) -> None:
        first, *others = self._script.messages
        await self._stage.pause(first.text)
        await self._write(first, number=1)
        conversation_id = str(self._socket.room.messages[0].conversation_id)
        scene = await self._stage.open(index, self._name, conversation_id)
        await self._write_note(scene)
        for number, message in enumerate(others, start=2):
            if message.sender == "LEAD":
                await self._type(scene, message)
                await self._write(message, number=number)
            else:
                await self._type_answer(scene, message)
                await self._answer(scene, message, number=number)
        check_heard(self._socket.room, self._script.said)
        said = [self._script.said[0], ("AGENT", NOTE), *self._script.said[1:]]
        await self._stage.close(scene, said)

    # --- The visitor --------------------------------------------------------------------------

    async def _type(self, scene: Scene, message: ScriptedMessage) -> None:
        """The agent sees it, as long as it takes."""
        await self._socket.type(start=True)
        await wait_for_typist(scene.agent_seat.room, self._name)
        await self._stage.pause(message.text)
        await self._socket.type(start=False)

    async def _write(self, message: ScriptedMessage, *, number: int) -> None:
        body = {"contentText": message.text, "clientMessageId": f"{self._script.id}/{number}"}
        await self._api.post("/messages", body)
        self._stage.report_sent("WEBSITE", self._name, message.text)
        self._stage.tally.visitor_wrote += 1
        await self._hear(number)

    async def _hear(self, number: int) -> None:
        await self._socket.room.wait_for(number, timeout_seconds=DELIVERY_TIMEOUT_SECONDS)

    # --- The agent ----------------------------------------------------------------------------

    async def _write_note(self, scene: Scene) -> None:
        await scene.agent.api.post(
            f"/conversations/{scene.conversation_id}/messages",
            {"contentText": NOTE, "private": True, "clientMessageId": f"{self._script.id}/note"},
        )
        self._stage.report_sent("NOTE", self._name, NOTE)

    async def _type_answer(self, scene: Scene, message: ScriptedMessage) -> None:
        """The visitor sees it, as long as it takes."""
        seat = scene.agent_seat
        await seat.listener.type_in(seat.room, start=True)
        await wait_for_typist(self._socket.room, scene.agent.name)
        await self._stage.pause(message.text)
        await seat.listener.type_in(seat.room, start=False)

    async def _answer(self, scene: Scene, message: ScriptedMessage, *, number: int) -> None:
        """The visitor hears the answer and reads it, and the agent sees that."""
        sent = await scene.agent.api.post(
            f"/conversations/{scene.conversation_id}/messages",
            {"contentText": message.text, "clientMessageId": f"{self._script.id}/{number}"},
        )
        self._stage.report_sent("AGENT", self._name, message.text)
        await self._hear(number)
        await self._api.post("/seen", {"seq": number})
        room = scene.agent_seat.room
        await room.wait_until(
            lambda: room.statuses.get(sent["seq"]) is DeliveryStatus.READ,
            f"that message {sent['seq']} was read",
            timeout_seconds=DELIVERY_TIMEOUT_SECONDS,
        )
        self._stage.tally.visitor_read += 1
        self._stage.watcher.happened("WEBSITE", self._name, f"has read message {number}")


async def wait_for_typist(room: Room[Message] | Room[PublicMessage], name: str) -> None:
    await room.wait_until(
        lambda: name in room.typing,
        f"that {name} is typing",
        timeout_seconds=DELIVERY_TIMEOUT_SECONDS,
    )
