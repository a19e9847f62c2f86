"""Plays scripts: leads write through `/inbound`, agents answer over REST."""

import asyncio
from collections.abc import Sequence

from messaging_server.demo.scripts import Script, ScriptedMessage
from messaging_server.demo.stage import ROOMS_PER_SOCKET, Scene, Stage

PACED_CONCURRENCY = 3
FULL_SPEED = 20.0
FULL_SPEED_CONCURRENCY = 8


class Player:
    """Plays scripts, a few at a time."""

    def __init__(self, stage: Stage, scripts: Sequence[Script]) -> None:
        self._stage = stage
        self._scripts = scripts
        at_full_speed = not 0 < stage.speed < FULL_SPEED
        self._places = asyncio.Semaphore(
            FULL_SPEED_CONCURRENCY if at_full_speed else PACED_CONCURRENCY
        )
        self._rooms = asyncio.Semaphore(ROOMS_PER_SOCKET * stage.sockets_per_user)

    async def play(self) -> None:
        """Raises `PromiseBroken`, in an exception group, as soon as something does not hold."""
        async with asyncio.TaskGroup() as tasks:
            for index, script in enumerate(self._scripts):
                await self._rooms.acquire()
                task = tasks.create_task(self._play(index, script))
                task.add_done_callback(lambda _: self._rooms.release())

    async def _play(self, index: int, script: Script) -> None:
        first, *others = script.messages
        async with self._places:
            await self._stage.pause(first.text)
            conversation_id = await self._write_in(script, first, number=1)
            scene = await self._stage.open(index, script.lead_name, conversation_id)
            for number, message in enumerate(others, start=2):
                await self._stage.pause(message.text)
                if message.sender == "LEAD":
                    await self._write_in(script, message, number=number)
                else:
                    await self._answer(scene, script, message, number=number)
        await self._stage.close(scene, script.said)

    async def _write_in(self, script: Script, message: ScriptedMessage, *, number: int) -> str:
        """As the lead, whose first message makes the conversation; returns its id."""
        result = await self._stage.team.inbound.post(
            "/inbound",
            {
                "externalId": f"{script.id}/{number}",
                "lead": {"externalId": script.id, "name": script.lead_name},
                "conversationExternalId": script.id,
                "message": {"contentText": message.text},
            },
        )
        self._stage.report_sent("LEAD", script.lead_name, message.text)
        return str(result["conversationId"])

    async def _answer(
        self, scene: Scene, script: Script, message: ScriptedMessage, *, number: int
    ) -> None:
        await scene.agent.api.post(
            f"/conversations/{scene.conversation_id}/messages",
            {"contentText": message.text, "clientMessageId": f"{script.id}/{number}"},
        )
        self._stage.report_sent("AGENT", script.lead_name, message.text)
