"""Where conversations are played, whoever writes them: the team at its sockets, and the end.

A conversation is over when the sockets in its room heard every message in order and its analysis
covers its last message. Which messages a webhook must have been told of, the receiver learns here.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from msgspec import Struct

from messaging_server.demo.client import AiData, Listener, PromiseBroken, Room, open_socket
from messaging_server.demo.receiver import Receiver
from messaging_server.demo.tally import Tally, Watcher
from messaging_server.demo.team import Member, Team
from messaging_server.models import AiView, Conversation, Message, PublicMessage

ROOMS_PER_SOCKET = 100
CONVERSATIONS_PER_SOCKET = 100
MAX_SOCKETS_PER_USER = 4
DELIVERY_TIMEOUT_SECONDS = 30.0
ANALYSIS_TIMEOUT_SECONDS = 120.0
ANALYSIS_POLL_SECONDS = 3.0


class Seat(Struct, frozen=True):
    """One socket in the room of a conversation."""

    listener: Listener
    room: Room[Message]


class Scene(Struct, frozen=True):
    """A conversation on stage: who answers, and the seats from which two people hear it."""

    name: str
    conversation_id: str
    agent: Member
    admin_seat: Seat
    agent_seat: Seat


class Stage:
    """Opens and closes scenes; `tally` and `watcher` see how it goes."""

    def __init__(
        self,
        url: str,
        team: Team,
        *,
        speed: float,
        tally: Tally,
        watcher: Watcher,
        receiver: Receiver,
    ) -> None:
        self.url = url
        self.team = team
        self.speed = speed
        self.tally = tally
        self.watcher = watcher
        self.receiver = receiver
        self.sockets_per_user = min(
            MAX_SOCKETS_PER_USER, math.ceil(tally.conversations / CONVERSATIONS_PER_SOCKET)
        )
        self._names: dict[str, str] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Everybody's sockets and the webhook's receiver, each listening."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            listening = [tasks.create_task(self.receiver.watch())]
            for member in self.team.members:
                for _ in range(self.sockets_per_user):
                    listener = await self._listener(member)
                    stack.push_async_callback(listener.connection.close)
                    listening.append(tasks.create_task(listener.connection.listen()))
                    await listener.connection.authenticate(member.token)
                    member.sockets.append(listener)
            yield
            for task in listening:
                task.cancel()

    async def _listener(self, member: Member) -> Listener:
        """The analyses are reported once: by the admin, who hears them all."""
        return Listener(
            await open_socket(self.url),
            on_message=self.count_message,
            on_analysis=self._report_analysis if member is self.team.admin else ignore_analysis,
        )

    def count_message(self, _message: Message | PublicMessage) -> None:
        self.tally.received += 1

    def _report_analysis(self, conversation_id: str, ai: AiData) -> None:
        self.tally.analyses += 1
        self.watcher.analysis_arrived(self._names[conversation_id], ai)

    def report_sent(self, kind: str, name: str, text: str) -> None:
        self.tally.sent += 1
        self.watcher.happened(kind, name, text)

    async def pause(self, text: str) -> None:
        """As long as somebody might need to write this, in a film."""
        if self.speed > 0:
            await asyncio.sleep(min(3.0, 0.8 + len(text) / 60) / self.speed)

    async def open(self, index: int, name: str, conversation_id: str) -> Scene:
        """The admin gives the conversation to an agent, and both join it."""
        self._names[conversation_id] = name
        admin, agents = self.team.admin, self.team.agents
        agent = agents[index % len(agents)]
        await admin.api.post(f"/conversations/{conversation_id}/assign", {"agentId": agent.id})
        turn = index // len(agents)
        return Scene(
            name,
            conversation_id,
            agent,
            await take_seat(admin.sockets[index % self.sockets_per_user], conversation_id),
            await take_seat(agent.sockets[turn % self.sockets_per_user], conversation_id),
        )

    async def close(self, scene: Scene, said: Sequence[tuple[str, str]]) -> None:
        """Once all that was promised of it has come; `said` has senders and texts."""
        seats = (scene.admin_seat, scene.agent_seat)
        for seat in seats:
            await seat.room.wait_for(len(said), timeout_seconds=DELIVERY_TIMEOUT_SECONDS)
            check_heard(seat.room, said)
        heard = scene.admin_seat.room.messages
        self.receiver.expect(
            scene.conversation_id, [str(message.id) for message in heard if not message.private]
        )
        view = await self._wait_until_analysed(scene)
        for seat in seats:
            await seat.room.wait_for_analysis(view, timeout_seconds=DELIVERY_TIMEOUT_SECONDS)
            await seat.listener.leave(seat.room)
        self.tally.finished += 1

    async def _wait_until_analysed(self, scene: Scene) -> AiView:
        """The analysis that covers the newest message."""
        path = f"/conversations/{scene.conversation_id}"
        room = scene.admin_seat.room
        try:
            async with asyncio.timeout(ANALYSIS_TIMEOUT_SECONDS):
                while True:
                    await room.wait_for_change(timeout_seconds=ANALYSIS_POLL_SECONDS)
                    conversation = await self.team.admin.api.get(path, Conversation)
                    if conversation.ai is not None and is_analysed(conversation):
                        return conversation.ai
        except TimeoutError:
            raise PromiseBroken(
                f"{scene.name} was not analysed within {ANALYSIS_TIMEOUT_SECONDS:g} s"
            ) from None


async def take_seat(listener: Listener, conversation_id: str) -> Seat:
    return Seat(listener, await listener.join(conversation_id))


def ignore_analysis(_conversation_id: str, _ai: AiData) -> None:
    return


def check_heard(room: Room[Message] | Room[PublicMessage], said: Sequence[tuple[str, str]]) -> None:
    """Word for word; the order `Room` has checked."""
    heard = [(message.sender_type.value, message.content_text) for message in room.messages]
    if heard != list(said):
        raise PromiseBroken(
            f"conversation {room.name}: what came over a socket was not what was sent"
        )


def is_analysed(conversation: Conversation) -> bool:
    """Whether its analysis covers its newest public message."""
    newest = conversation.last_message
    return (
        conversation.ai is not None
        and newest is not None
        and conversation.ai.analyzed_through_seq >= newest.seq
    )
