"""Plays conversations through the public API, and holds the server to its contract.

Leads write through `/inbound`, an admin assigns, agents answer over REST, and everybody's
sockets listen. A conversation is over when both sockets in its room heard every message in
order and its analysis covers its last message.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol

import msgspec
from msgspec import Struct

from messaging_server.demo.client import AiData, Api, Listener, PromiseBroken, Room, open_socket
from messaging_server.demo.scripts import Script, ScriptedMessage
from messaging_server.models import AiView, Conversation, Message, Page, Role, SenderType

PACED_CONCURRENCY = 3
FULL_SPEED = 20.0
FULL_SPEED_CONCURRENCY = 8
ROOMS_PER_SOCKET = 100
CONVERSATIONS_PER_SOCKET = 100
MAX_SOCKETS_PER_USER = 4
DELIVERY_TIMEOUT_SECONDS = 30.0
ANALYSIS_TIMEOUT_SECONDS = 120.0
ANALYSIS_POLL_SECONDS = 3.0


class Person(Struct, frozen=True):
    """Somebody who works with the demo's inbox."""

    name: str
    email: str
    password: str
    role: Role


class Tally(Struct):
    """What happened so far."""

    conversations: int
    played: int = 0
    finished: int = 0
    sent: int = 0
    received: int = 0
    analyses: int = 0
    in_order: bool = True
    seconds: float = 0.0


class Watcher(Protocol):
    """Who is told what happens, as it happens."""

    def message_sent(self, name: str, message: ScriptedMessage) -> None: ...

    def analysis_arrived(self, name: str, ai: AiData) -> None: ...


class Member(Struct, frozen=True):
    """A person who is logged in: calls, and sockets to spread rooms over."""

    id: str
    token: str
    api: Api
    sockets: list[Listener]


class Team(Struct, frozen=True):
    admin: Member
    agents: tuple[Member, ...]
    inbound: Api
    """With the API key: how leads write in."""

    @property
    def members(self) -> tuple[Member, ...]:
        return (self.admin, *self.agents)


# --- The team ---------------------------------------------------------------------------------


def new_people() -> tuple[Person, ...]:
    """An admin first, then two agents, with passwords of their own for this one demo."""
    return tuple(
        Person(
            name=name,
            email=f"{name.lower()}@demo.example",
            password=secrets.token_hex(6),
            role=role,
        )
        for name, role in (
            ("Alex", Role.ADMIN),
            ("Ines", Role.SALES_AGENT),
            ("Sam", Role.SALES_AGENT),
        )
    )


@asynccontextmanager
async def gather_team(url: str, people: Sequence[Person]) -> AsyncIterator[Team]:
    """Registers the people on a fresh server, logs them in and makes an API key."""
    async with AsyncExitStack() as stack:

        async def api(token: str = "") -> Api:
            opened = Api(url, token)
            stack.push_async_callback(opened.close)
            return opened

        members: list[Member] = []
        visitor = await api()
        for person in people:
            registrar = members[0].api if members else visitor
            await registrar.post("/auth/register", msgspec.to_builtins(person))
            credentials = {"email": person.email, "password": person.password}
            login = await visitor.post("/auth/login", credentials)
            token = login["token"]
            members.append(Member(login["user"]["id"], token, await api(token), []))
        key = await members[0].api.post("/api-keys", {"name": "demo"})
        yield Team(members[0], tuple(members[1:]), await api(key["key"]))


# --- The play ---------------------------------------------------------------------------------


class Scene(Struct, frozen=True):
    """A conversation on stage: who answers, and the rooms in which it is heard."""

    script: Script
    conversation_id: str
    agent: Member
    rooms: tuple[tuple[Listener, Room], ...]


class Player:
    """Plays scripts, a few at a time; `tally` and `watcher` see how it goes."""

    def __init__(
        self,
        url: str,
        team: Team,
        scripts: Sequence[Script],
        *,
        speed: float,
        watcher: Watcher,
        tally: Tally,
    ) -> None:
        self._url = url
        self._team = team
        self._scripts = scripts
        self._speed = speed
        self._watcher = watcher
        self._tally = tally
        self._names: dict[str, str] = {}
        at_full_speed = not 0 < speed < FULL_SPEED
        self._stage = asyncio.Semaphore(
            FULL_SPEED_CONCURRENCY if at_full_speed else PACED_CONCURRENCY
        )
        self._sockets_per_user = min(
            MAX_SOCKETS_PER_USER, math.ceil(len(scripts) / CONVERSATIONS_PER_SOCKET)
        )
        self._rooms = asyncio.Semaphore(ROOMS_PER_SOCKET * self._sockets_per_user)

    async def play(self) -> None:
        """Raises `PromiseBroken`, in an exception group, as soon as something does not hold."""
        started_at = time.perf_counter()
        try:
            async with self._listening(), asyncio.TaskGroup() as tasks:
                for index, script in enumerate(self._scripts):
                    await self._rooms.acquire()
                    task = tasks.create_task(self._play(index, script))
                    task.add_done_callback(lambda _: self._rooms.release())
        finally:
            self._tally.seconds = time.perf_counter() - started_at

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        """Everybody's sockets, open and listening."""
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            listening = []
            for member in self._team.members:
                for _ in range(self._sockets_per_user):
                    listener = await self._listener(member)
                    stack.push_async_callback(listener.close)
                    listening.append(tasks.create_task(listener.listen()))
                    await listener.authenticate(member.token)
                    member.sockets.append(listener)
            yield
            for task in listening:
                task.cancel()

    async def _listener(self, member: Member) -> Listener:
        """The analyses are reported once: by the admin, who hears them all."""
        return Listener(
            await open_socket(self._url),
            on_message=self._count_message,
            on_analysis=self._report_analysis if member is self._team.admin else ignore_analysis,
        )

    def _count_message(self, _message: Message) -> None:
        self._tally.received += 1

    def _report_analysis(self, conversation_id: str, ai: AiData) -> None:
        self._tally.analyses += 1
        self._watcher.analysis_arrived(self._names[conversation_id], ai)

    async def _play(self, index: int, script: Script) -> None:
        async with self._stage:
            scene, seq = await self._open(index, script)
            for number in range(2, len(script.messages) + 1):
                seq = await self._say(scene, number)
        self._tally.played += 1
        await self._check_delivery(scene, seq)
        view = await self._wait_until_analysed(scene)
        for listener, room in scene.rooms:
            await room.wait_for_analysis(view, timeout_seconds=DELIVERY_TIMEOUT_SECONDS)
            await listener.leave(room)
        self._tally.finished += 1

    async def _open(self, index: int, script: Script) -> tuple[Scene, int]:
        """The lead's first message makes the conversation; the admin gives it to an agent."""
        await self._pause(script.messages[0])
        conversation_id, seq = await self._write_in(script, number=1)
        self._names[conversation_id] = script.lead_name
        agent = self._team.agents[index % len(self._team.agents)]
        await self._team.admin.api.post(
            f"/conversations/{conversation_id}/assign", {"agentId": agent.id}
        )
        turn = index // len(self._team.agents)
        listeners = [
            self._team.admin.sockets[index % self._sockets_per_user],
            agent.sockets[turn % self._sockets_per_user],
        ]
        rooms = [(listener, await listener.join(conversation_id)) for listener in listeners]
        return Scene(script, conversation_id, agent, tuple(rooms)), seq

    async def _say(self, scene: Scene, number: int) -> int:
        """The script's message `number`, from 1; returns its `seq`."""
        message = scene.script.messages[number - 1]
        await self._pause(message)
        if message.sender == "LEAD":
            _, seq = await self._write_in(scene.script, number=number)
            return seq
        sent = await scene.agent.api.post(
            f"/conversations/{scene.conversation_id}/messages",
            {"contentText": message.text, "clientMessageId": f"{scene.script.id}/{number}"},
        )
        self._report_sent(scene.script, message)
        return int(sent["seq"])

    async def _write_in(self, script: Script, *, number: int) -> tuple[str, int]:
        """As the lead; returns the conversation's id and the message's `seq`."""
        message = script.messages[number - 1]
        result = await self._team.inbound.post(
            "/inbound",
            {
                "externalId": f"{script.id}/{number}",
                "lead": {"externalId": script.id, "name": script.lead_name},
                "conversationExternalId": script.id,
                "message": {"contentText": message.text},
            },
        )
        self._report_sent(script, message)
        return result["conversationId"], int(result["message"]["seq"])

    def _report_sent(self, script: Script, message: ScriptedMessage) -> None:
        self._tally.sent += 1
        self._watcher.message_sent(script.lead_name, message)

    async def _pause(self, message: ScriptedMessage) -> None:
        """As long as somebody might need to write this, in a film."""
        if self._speed > 0:
            await asyncio.sleep(min(3.0, 0.8 + len(message.text) / 60) / self._speed)

    async def _check_delivery(self, scene: Scene, seq: int) -> None:
        """Every room has heard the whole script, word for word; the order `Room` checked."""
        said = [(message.sender, message.text) for message in scene.script.messages]
        for _, room in scene.rooms:
            await room.wait_for(seq, timeout_seconds=DELIVERY_TIMEOUT_SECONDS)
            heard = [
                (message.sender_type.value, message.content_text)
                for message in room.messages
                if message.sender_type is not SenderType.SYSTEM
            ]
            if heard != said:
                raise PromiseBroken(
                    f"{scene.script.id}: what came over a socket was not what was sent"
                )

    async def _wait_until_analysed(self, scene: Scene) -> AiView:
        """The analysis that covers the newest message."""
        path = f"/conversations/{scene.conversation_id}"
        _, room = scene.rooms[0]
        try:
            async with asyncio.timeout(ANALYSIS_TIMEOUT_SECONDS):
                while True:
                    await room.wait_for_change(timeout_seconds=ANALYSIS_POLL_SECONDS)
                    conversation = await self._team.admin.api.get(path, Conversation)
                    if conversation.ai is not None and is_analysed(conversation):
                        return conversation.ai
        except TimeoutError:
            raise PromiseBroken(
                f"{scene.script.id} was not analysed within {ANALYSIS_TIMEOUT_SECONDS:g} s"
            ) from None


def ignore_analysis(_conversation_id: str, _ai: AiData) -> None:
    return


def is_analysed(conversation: Conversation) -> bool:
    """Whether its analysis covers its newest public message."""
    newest = conversation.last_message
    return (
        conversation.ai is not None
        and newest is not None
        and conversation.ai.analyzed_through_seq >= newest.seq
    )


async def fetch_conversations(api: Api) -> list[Conversation]:
    """All of them, page after page."""
    conversations: list[Conversation] = []
    path: str | None = "/conversations?limit=100"
    while path is not None:
        page = await api.get(path, Page[Conversation])
        conversations += page.items
        path = page.next_cursor and f"/conversations?limit=100&cursor={page.next_cursor}"
    return conversations
