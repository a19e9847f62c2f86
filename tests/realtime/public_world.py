"""A small world in memory for visitors' sockets: conversations, facts, and who hears what.

The domain is played, so that any interleaving can be made; everything of realtime is real.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.conversations.service import Opened
from messaging_server.conversations.visitors import VisitorOpened, to_public
from messaging_server.errors import Unauthenticated, Unavailable
from messaging_server.events import Bus, ConversationCreated, MessageCreated
from messaging_server.http import Headers
from messaging_server.models import (
    AiView,
    AssignedAgent,
    Caller,
    ContentType,
    Conversation,
    DeliveryStatus,
    Lead,
    Message,
    Priority,
    PublicMessage,
    Role,
    Sender,
    SenderType,
    Source,
    Status,
    Visitor,
)
from messaging_server.realtime import Realtime
from messaging_server.realtime.protocol import Close, Frame
from messaging_server.realtime.sockets import Socket
from messaging_server.realtime.visitors import VisitorSocket
from messaging_server.users.service import Authenticated
from tests.conftest import make_config

AT = "2026-01-31T12:00:00.000Z"
INBOX = UUID("01900000-0000-7000-8000-0000000000f0")
AGENT = Caller(
    id=UUID("01900000-0000-7000-8000-00000000000a"),
    email="beatrice@secret.example",
    name=None,
    role=Role.ADMIN,
)
COLLEAGUE = Caller(
    id=UUID("01900000-0000-7000-8000-00000000000b"),
    email="carl@secret.example",
    name="Carl",
    role=Role.ADMIN,
)


def visitor(number: int) -> Visitor:
    return Visitor(UUID(int=0x1000 + number), INBOX, f"Visitor {number}", verified=False)


class Stored(Struct):
    """A message with its public number, None when it is private."""

    message: Message
    public_seq: int | None
    agent_name: str | None


class World:
    """Postgres and its facts; `mood` makes reads slow and, at `failures`, fail."""

    def __init__(self, chance: random.Random, *, failures: float = 0.0) -> None:
        self.chance = chance
        self.failures = failures
        self.logs: dict[UUID, list[Stored]] = {}
        self.leads: dict[UUID, UUID] = {}  # by conversation
        self.newest: dict[UUID, UUID] = {}  # conversation by lead
        self.marks: list[tuple[str, UUID | None, int]] = []

    async def pause(self) -> None:
        for _ in range(self.chance.randrange(3)):
            await asyncio.sleep(0)

    async def mood(self) -> None:
        await self.pause()
        if self.chance.random() < self.failures:
            raise Unavailable("away")

    # Writing

    def start(self, lead_id: UUID) -> tuple[UUID, ConversationCreated]:
        conversation_id = uuid7()
        self.logs[conversation_id] = []
        self.leads[conversation_id] = lead_id
        self.newest[lead_id] = conversation_id
        fact = ConversationCreated(
            conversation_id=conversation_id, lead_id=lead_id, assigned_agent_id=None
        )
        return conversation_id, fact

    def append(
        self, conversation_id: UUID, text: str, *, author: Caller | None, private: bool = False
    ) -> MessageCreated:
        log = self.logs[conversation_id]
        public_seq = None if private else self.public_head(conversation_id) + 1
        local_part = author.email.partition("@")[0] if author else ""
        sender = (
            Sender(id=author.id, name=author.name or local_part)
            if author
            else Sender(id=self.leads[conversation_id], name="Luis")
        )
        message = Message(
            id=uuid7(),
            conversation_id=conversation_id,
            seq=len(log) + 1,
            sender_type=SenderType.AGENT if author else SenderType.LEAD,
            sender=sender,
            content_type=ContentType.TEXT,
            content_text=text,
            media_url=None,
            attachments=(),
            private=private,
            status=DeliveryStatus.SENT if author and not private else None,
            client_message_id="the-agents-own" if author else "the-visitors-own",
            created_at=AT,
        )
        stored = Stored(message, public_seq, author.name if author else None)
        log.append(stored)
        return MessageCreated(
            message=message,
            public_seq=public_seq,
            agent_name=stored.agent_name,
            version=len(log),
            assigned_agent_id=None,
        )

    # Reading

    def public_head(self, conversation_id: UUID) -> int:
        return sum(1 for stored in self.logs[conversation_id] if stored.public_seq is not None)

    def public(self, conversation_id: UUID, after: int, through: int) -> list[PublicMessage]:
        return [
            to_public(stored.message, stored.public_seq, agent_name=stored.agent_name)
            for stored in self.logs.get(conversation_id, ())
            if stored.public_seq is not None and after < stored.public_seq <= through
        ]

    def conversation(self, conversation_id: UUID) -> Conversation:
        """As agents see it: full of what a visitor must not hear of."""
        lead = Lead(
            id=self.leads[conversation_id],
            name="Luis",
            email="luis@lead.example",
            phone="555",
            attributes={"vip": "SECRET attribute"},
            created_at=AT,
            updated_at=AT,
        )
        agent = AssignedAgent(id=AGENT.id, email=AGENT.email, name=AGENT.name)
        return Conversation(
            id=conversation_id,
            inbox_id=INBOX,
            lead=lead,
            assigned_agent=agent,
            status=Status.OPEN,
            priority=Priority.HIGH,
            priority_source=Source.AI,
            tags=("SECRET tag",),
            tags_source=Source.AI,
            summary="SECRET summary",
            ai=AiView(
                summary="SECRET summary",
                priority=Priority.HIGH,
                tags=("SECRET tag",),
                updated_at=AT,
                analyzed_through_seq=1,
                provider="local",
            ),
            last_message=None,
            last_seq=len(self.logs[conversation_id]),
            unread_count=0,
            waiting_since=None,
            urgency=None,
            snoozed_until=None,
            created_at=AT,
            updated_at=AT,
            version=len(self.logs[conversation_id]),
        )


class AgentDomain:
    """What agents' sockets ask; the token is the number of a caller."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def authenticate(self, token: str) -> Authenticated:
        caller = {"agent": AGENT, "colleague": COLLEAGUE}[token]
        return Authenticated(caller, datetime.now(UTC) + timedelta(hours=1))

    async def open_conversation(self, _caller: Caller, conversation_id: UUID, **_: Any) -> Opened:
        return Opened(self._world.conversation(conversation_id), (), reset=False)

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[Message]:
        log = self._world.logs[conversation_id]
        return [stored.message for stored in log[after_seq:through_seq]]

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        logs = self._world.logs
        return {key: len(logs[key]) for key in conversation_ids if key in logs}

    async def fetch_views(
        self, conversation_ids: Sequence[UUID], callers: Sequence[Caller]
    ) -> list[tuple[UUID, Conversation]]:
        return [
            (caller.id, self._world.conversation(key))
            for key in conversation_ids
            if key in self._world.logs
            for caller in callers
        ]


class VisitorSession(Struct):
    visitor: Visitor
    expires_at: datetime


class VisitorDomain:
    """What visitors' sockets ask; the token is the visitor's number."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def authenticate_visitor(self, token: str, _headers: Headers) -> VisitorSession:
        await self._world.pause()
        if not token.isdigit():
            raise Unauthenticated("The token is not valid")
        return VisitorSession(visitor(int(token)), datetime.now(UTC) + timedelta(hours=1))

    def count_command(self, _who: Visitor | None, _network: str) -> None: ...

    async def open_visitor_conversation(
        self, who: Visitor, *, after_seq: int | None, limit: int
    ) -> VisitorOpened:
        await self._world.mood()
        conversation_id = self._world.newest.get(who.lead_id)
        if conversation_id is None:
            return VisitorOpened(None, 0, (), reset=False)
        head = self._world.public_head(conversation_id)
        after = head if after_seq is None else after_seq
        found = self._world.public(conversation_id, after, head)
        await self._world.mood()
        if len(found) > limit:
            return VisitorOpened(conversation_id, head, (), reset=True)
        return VisitorOpened(conversation_id, head, found, reset=False)

    async def fetch_visitor_conversations(self, visitors: Sequence[Visitor]) -> list[UUID | None]:
        await self._world.mood()
        return [self._world.newest.get(who.lead_id) for who in visitors]

    async def fetch_messages(
        self, conversation_id: UUID, *, after_seq: int, through_seq: int
    ) -> Sequence[PublicMessage]:
        await self._world.mood()
        return self._world.public(conversation_id, after_seq, through_seq)

    async def fetch_heads(self, conversation_ids: Sequence[UUID]) -> dict[UUID, int]:
        await self._world.mood()
        return {
            key: self._world.public_head(key) for key in conversation_ids if key in self._world.logs
        }

    async def mark_delivered(
        self, _who: Visitor, seq: int, *, conversation_id: UUID | None
    ) -> None:
        self._world.marks.append(("delivered", conversation_id, seq))

    async def mark_read(self, _who: Visitor, seq: int, *, conversation_id: UUID | None) -> None:
        self._world.marks.append(("read", conversation_id, seq))


class Tape:
    """A wire that notes what is sent."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.code: int | None = None
        self.full = False

    def send(self, frame: Frame) -> None:
        self.frames.append(json.loads(frame.text))

    def send_best_effort(self, frame: Frame) -> None:
        self.send(frame)

    def close(self, code: int, _reason: str) -> None:
        self.code = Close(code)

    async def serve(self, _listener: Any) -> None: ...


class Client:
    """A socket of either kind with its tape."""

    def __init__(self, socket: Socket | VisitorSocket, tape: Tape, token: str) -> None:
        self.socket = socket
        self.tape = tape
        self._id = 0
        self.say("auth", {"token": token})

    def say(self, event: str, data: Any = None) -> int:
        """Send a command; the id of its reply."""
        self._id += 1
        frame = {"id": self._id, "event": event}
        self.socket.receive_text(json.dumps(frame if data is None else {**frame, "data": data}))
        return self._id

    def reply(self, command_id: int) -> dict[str, Any] | None:
        return next((each for each in self.tape.frames if each.get("id") == command_id), None)

    def events(self, event: str) -> list[dict[str, Any]]:
        return [frame for frame in self.tape.frames if frame.get("event") == event]


class Stage:
    """Realtime on top of a world."""

    def __init__(self, world: World, **realtime: Any) -> None:
        settings = {
            "commands_per_second": 1_000_000,
            "command_burst": 1_000_000,
            "sockets_per_visitor": 100,
            **realtime,
        }
        config = make_config("postgresql://nowhere/nothing", realtime=settings)
        self.world = world
        self.bus = Bus()
        self.realtime = Realtime(
            config,
            self.bus,
            AgentDomain(world),  # type: ignore[arg-type]  # played
            VisitorDomain(world),  # type: ignore[arg-type]  # played
        )
        self.realtime.public_rooms._hole_seconds = 0.001

    def agent(self, who: str = "agent") -> Client:
        tape = Tape()
        return Client(self.realtime.sockets.open(tape), tape, who)

    def visitor(self, number: int, address: str = "127.0.0.1") -> Client:
        tape = Tape()
        socket = self.realtime.visitors.open(tape, address=address, headers=[])
        return Client(socket, tape, str(number))

    async def stop(self) -> None:
        await self.realtime.stop()


async def settle(rounds: int = 40) -> None:
    """Let everything that is under way come to rest."""
    for _ in range(rounds):
        await asyncio.sleep(0)
