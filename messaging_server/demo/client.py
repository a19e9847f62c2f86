"""A user of the public API, as the demo needs one: calls over HTTP, rooms over a socket.

Knows the server only by its contract. The socket checks the contract while it listens: in a
joined room every sequence number comes, once, in order.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from uuid import UUID

import httpx
import msgspec
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from messaging_server.models import AiView, Message

T = TypeVar("T")

ATTEMPTS = 6
COMMANDS_PER_SECOND = 18.0
COMMAND_BURST = 30
REPLY_TIMEOUT_SECONDS = 30.0


class PromiseBroken(Exception):
    """The server did not do what its contract says; the message is for a person."""


class OutOfOrder(PromiseBroken):
    """A message came twice, too early, or after a hole."""


class AiData(Struct, frozen=True, rename="camel"):
    summary: str
    priority: str
    tags: tuple[str, ...]
    updated_at: str


# --- Calls ------------------------------------------------------------------------------------


class Api:
    """The REST API with one token or API key, which may be empty."""

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=f"{url}/api/v1", headers=headers, timeout=30, trust_env=False
        )

    async def get(self, path: str, kind: type[T]) -> T:
        data = await self._call("GET", path)
        try:
            return msgspec.convert(data, kind)
        except msgspec.ValidationError as error:
            raise PromiseBroken(f"GET {path} answered something else: {error}") from None

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Every body of the demo may be repeated: it has an id, or changes nothing twice."""
        return await self._call("POST", path, body)

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The `data` of the answer; asked to wait (429, 503), it waits and repeats."""
        for attempt in range(ATTEMPTS):
            try:
                response = await self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                raise PromiseBroken(f"{method} {path} had no answer: {error!r}") from None
            if response.is_success:
                return response.json()["data"]
            if response.status_code not in (429, 503) or attempt == ATTEMPTS - 1:
                break
            await asyncio.sleep(float(response.headers.get("Retry-After", 1)))
        raise PromiseBroken(
            f"{method} {path} answered {response.status_code}: {response.text[:300]}"
        )


# --- Rooms ------------------------------------------------------------------------------------


class Room:
    """What one socket heard in one conversation."""

    def __init__(self, conversation_id: str) -> None:
        self.conversation_id = conversation_id
        self.joined = False
        self.messages: list[Message] = []
        self.ai: AiData | None = None
        self._changed = asyncio.Event()

    @property
    def last_seq(self) -> int:
        return self.messages[-1].seq if self.messages else 0

    def receive(self, message: Message) -> None:
        """Raises `OutOfOrder` unless `message` is the very next one."""
        if message.seq != self.last_seq + 1:
            raise OutOfOrder(
                f"conversation {self.conversation_id}: message {message.seq} came after "
                f"{self.last_seq}"
            )
        self.messages.append(message)
        self._changed.set()

    def receive_ai(self, ai: AiData) -> None:
        self.ai = ai
        self._changed.set()

    async def wait_for(self, seq: int, *, timeout_seconds: float) -> None:
        """Until message `seq` has come."""
        await self._wait(lambda: self.last_seq >= seq, f"message {seq}", timeout_seconds)

    async def wait_for_analysis(self, view: AiView, *, timeout_seconds: float) -> None:
        """Until the push of `view`, or of a later analysis, has come."""
        await self._wait(
            lambda: self.ai is not None and self.ai.updated_at >= view.updated_at,
            f"the analysis of {view.updated_at}",
            timeout_seconds,
        )

    async def wait_for_change(self, *, timeout_seconds: float) -> None:
        """Until something comes, or the time is up."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_seconds)
        except TimeoutError:
            return

    async def _wait(self, done: Callable[[], bool], what: str, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                while not done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise PromiseBroken(
                f"conversation {self.conversation_id}: {what} did not come over a socket within "
                f"{timeout_seconds:g} s"
            ) from None


# --- The socket -------------------------------------------------------------------------------


class Push(Struct, frozen=True, rename="camel"):
    """A frame from the server: a reply has an `id`, everything else an `event`."""

    id: int | None = None
    ok: bool = False
    event: str = ""
    conversation_id: str = ""
    seq: int = 0
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class NewMessage(Struct, frozen=True):
    message: Message


class AiUpdate(Struct, frozen=True, rename="camel"):
    ai_data: AiData


class Joined(Struct, frozen=True):
    messages: tuple[Message, ...]


class Pace:
    """Lets so many through at once, and so many a second after that."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval_seconds = 1 / per_second
        self._slack_seconds = (burst - 1) / per_second
        self._next_at = 0.0

    async def wait(self) -> None:
        now = asyncio.get_running_loop().time()
        at = self._next_at = max(self._next_at + self._interval_seconds, now - self._slack_seconds)
        if at > now:
            await asyncio.sleep(at - now)


class Listener:
    """One user's socket. `listen` must run as a task; it ends with the socket."""

    def __init__(
        self,
        socket: ClientConnection,
        *,
        on_message: Callable[[Message], None],
        on_analysis: Callable[[str, AiData], None],
    ) -> None:
        self._socket = socket
        self._on_message = on_message
        self._on_analysis = on_analysis
        self._pace = Pace(COMMANDS_PER_SECOND, COMMAND_BURST)
        self._rooms: dict[str, Room] = {}
        self._replies: dict[int, asyncio.Future[Push]] = {}
        self._joins: dict[int, Room] = {}
        self._last_id = 0

    async def listen(self) -> None:
        """Raises `PromiseBroken` at the first frame out of order, or when the server hangs up."""
        try:
            async for frame in self._socket:
                await self._receive(msgspec.json.decode(frame, type=Push))
        except ConnectionClosed:
            raise self._hung_up() from None
        except msgspec.MsgspecError as error:
            raise PromiseBroken(f"a frame was not like the contract's: {error}") from None
        raise self._hung_up()

    async def authenticate(self, token: str) -> None:
        await self._command("auth", {"token": token})

    async def join(self, conversation_id: UUID | str) -> Room:
        room = Room(str(conversation_id))
        self._rooms[room.conversation_id] = room
        await self._command(
            "conversation:join", {"conversationId": room.conversation_id, "afterSeq": 0}, room=room
        )
        return room

    async def leave(self, room: Room) -> None:
        await self._command("conversation:leave", {"conversationId": room.conversation_id})
        del self._rooms[room.conversation_id]

    async def close(self) -> None:
        await self._socket.close()

    async def _command(
        self, event: str, data: Mapping[str, Any], *, room: Room | None = None
    ) -> None:
        await self._pace.wait()
        command_id = self._last_id = self._last_id + 1
        reply = self._replies[command_id] = asyncio.get_running_loop().create_future()
        if room is not None:
            self._joins[command_id] = room
        await self._send({"id": command_id, "event": event, "data": data})
        try:
            answer = await asyncio.wait_for(reply, REPLY_TIMEOUT_SECONDS)
        except TimeoutError:
            raise PromiseBroken(f"{event}: no reply within {REPLY_TIMEOUT_SECONDS:g} s") from None
        if not answer.ok:
            raise PromiseBroken(f"{event} was refused: {bytes(answer.error).decode()}")

    async def _send(self, frame: Mapping[str, Any]) -> None:
        try:
            await self._socket.send(msgspec.json.encode(frame).decode())
        except ConnectionClosed:
            raise self._hung_up() from None

    def _hung_up(self) -> PromiseBroken:
        code, reason = self._socket.close_code, self._socket.close_reason
        return PromiseBroken(f"the server closed a socket: {code} {reason or ''}")

    async def _receive(self, push: Push) -> None:
        if push.id is not None:
            self._receive_reply(push.id, push)
        elif push.event == "ping":
            await self._send({"event": "pong"})
        elif room := self._rooms.get(push.conversation_id):
            self._receive_in_room(room, push)

    def _receive_reply(self, command_id: int, push: Push) -> None:
        """What a join brings along belongs before the first push, so it is taken in here."""
        room = self._joins.pop(command_id, None)
        if room is not None and push.ok:
            room.joined = True
            for message in msgspec.json.decode(push.data, type=Joined).messages:
                self._take(room, message)
        reply = self._replies.pop(command_id, None)
        if reply is not None and not reply.done():
            reply.set_result(push)

    def _receive_in_room(self, room: Room, push: Push) -> None:
        if push.event == "message:new":
            message = msgspec.json.decode(push.data, type=NewMessage).message
            if not room.joined or push.seq != message.seq:
                raise OutOfOrder(
                    f"conversation {room.conversation_id}: message {message.seq} came before the "
                    f"reply to the join, or in a frame numbered {push.seq}"
                )
            self._take(room, message)
        elif push.event == "conversation:ai:update":
            ai = msgspec.json.decode(push.data, type=AiUpdate).ai_data
            room.receive_ai(ai)
            self._on_analysis(room.conversation_id, ai)

    def _take(self, room: Room, message: Message) -> None:
        room.receive(message)
        self._on_message(message)


async def open_socket(url: str) -> ClientConnection:
    """`url` is the server's, with http."""
    return await connect(url.replace("http", "ws", 1) + "/ws", proxy=None, compression=None)
