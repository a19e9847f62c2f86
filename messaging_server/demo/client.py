"""A user of the public API, as the demo needs one: calls over HTTP, rooms over a socket.

Knows the server only by its contract. The socket checks the contract while it listens: in a
joined room every sequence number comes, once, in order.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import httpx
import msgspec
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from messaging_server.models import AiView, DeliveryStatus, Message, PublicMessage

T = TypeVar("T")
M = TypeVar("M", bound=Message | PublicMessage)

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
    """The REST API below `prefix` with one token or API key, which may be empty."""

    def __init__(self, url: str, token: str = "", *, prefix: str = "/api/v1") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(
            base_url=f"{url}{prefix}", headers=headers, timeout=30, trust_env=False
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

    async def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        return await self._call("PATCH", path, body)

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


# --- Frames -----------------------------------------------------------------------------------


class Push(Struct, frozen=True, rename="camel"):
    """A frame from the server: a reply has an `id`, everything else an `event`."""

    id: int | None = None
    ok: bool = False
    event: str = ""
    conversation_id: str = ""
    seq: int = 0
    data: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class Joined(Struct, frozen=True):
    messages: tuple[msgspec.Raw, ...]


class NewMessage(Struct, frozen=True):
    message: msgspec.Raw


class StatusUpdate(Struct, frozen=True):
    seq: int
    status: DeliveryStatus


class Typist(Struct, frozen=True):
    name: str


class AiUpdate(Struct, frozen=True, rename="camel"):
    ai_data: AiData


# --- Rooms ------------------------------------------------------------------------------------


class Room(Generic[M]):
    """What one socket heard in one conversation; `on_message` is told of each message."""

    def __init__(
        self, name: str, message_type: type[M], *, on_message: Callable[[M], None]
    ) -> None:
        self.name = name
        self.messages: list[M] = []
        self.ai: AiData | None = None
        self.typing: set[str] = set()
        self.statuses: dict[int, DeliveryStatus] = {}
        self._message_type = message_type
        self._joined = False
        self._on_message = on_message
        self._changed = asyncio.Event()

    @property
    def last_seq(self) -> int:
        return self.messages[-1].seq if self.messages else 0

    def receive_reply(self, data: msgspec.Raw) -> None:
        """To the join: from now on pushes may come."""
        self._joined = True
        for message in msgspec.json.decode(data, type=Joined).messages:
            self._receive_message(message)

    def receive(self, push: Push) -> None:
        """Raises `OutOfOrder` for a message that is not the very next one."""
        if push.event == "message:new":
            if not self._joined or push.seq != self.last_seq + 1:
                raise self._out_of_order(push.seq)
            self._receive_message(msgspec.json.decode(push.data, type=NewMessage).message)
        elif push.event == "message:status":
            update = msgspec.json.decode(push.data, type=StatusUpdate)
            self.statuses[update.seq] = update.status
        elif push.event == "typing:start":
            self.typing.add(msgspec.json.decode(push.data, type=Typist).name)
        elif push.event == "typing:stop":
            self.typing.discard(msgspec.json.decode(push.data, type=Typist).name)
        elif push.event == "conversation:ai:update":
            self.ai = msgspec.json.decode(push.data, type=AiUpdate).ai_data
        self._changed.set()

    def _receive_message(self, data: msgspec.Raw) -> None:
        message = msgspec.json.decode(data, type=self._message_type)
        if message.seq != self.last_seq + 1:
            raise self._out_of_order(message.seq)
        self.messages.append(message)
        self._on_message(message)

    def _out_of_order(self, seq: int) -> OutOfOrder:
        after = f"after {self.last_seq}" if self._joined else "before the reply to the join"
        return OutOfOrder(f"conversation {self.name}: message {seq} came {after}")

    async def wait_for(self, seq: int, *, timeout_seconds: float) -> None:
        """Until message `seq` has come."""
        await self.wait_until(
            lambda: self.last_seq >= seq, f"message {seq}", timeout_seconds=timeout_seconds
        )

    async def wait_for_analysis(self, view: AiView, *, timeout_seconds: float) -> None:
        """Until the push of `view`, or of a later analysis, has come."""
        await self.wait_until(
            lambda: self.ai is not None and self.ai.updated_at >= view.updated_at,
            f"the analysis of {view.updated_at}",
            timeout_seconds=timeout_seconds,
        )

    async def wait_for_change(self, *, timeout_seconds: float) -> None:
        """Until something comes, or the time is up."""
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_seconds)
        except TimeoutError:
            return

    async def wait_until(
        self, done: Callable[[], bool], what: str, *, timeout_seconds: float
    ) -> None:
        """Raises `PromiseBroken`, which names `what`, when it has not come in time."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not done():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise PromiseBroken(
                f"conversation {self.name}: {what} did not come over a socket within "
                f"{timeout_seconds:g} s"
            ) from None


# --- The socket -------------------------------------------------------------------------------


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


class Connection:
    """One socket: commands and their replies; pushes go to `on_push` as they come.

    `listen` must run as a task; it ends with the socket.
    """

    def __init__(self, socket: ClientConnection, *, on_push: Callable[[Push], None]) -> None:
        self._socket = socket
        self._on_push = on_push
        self._pace = Pace(COMMANDS_PER_SECOND, COMMAND_BURST)
        self._replies: dict[int, asyncio.Future[Push]] = {}
        self._on_reply: dict[int, Callable[[msgspec.Raw], None]] = {}
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
        await self.command("auth", {"token": token})

    async def command(
        self,
        event: str,
        data: Mapping[str, Any],
        *,
        on_reply: Callable[[msgspec.Raw], None] | None = None,
    ) -> None:
        """`on_reply` gets the reply's data before anything that came after it is looked at."""
        await self._pace.wait()
        command_id = self._last_id = self._last_id + 1
        reply = self._replies[command_id] = asyncio.get_running_loop().create_future()
        if on_reply is not None:
            self._on_reply[command_id] = on_reply
        await self._send({"id": command_id, "event": event, "data": data})
        try:
            answer = await asyncio.wait_for(reply, REPLY_TIMEOUT_SECONDS)
        except TimeoutError:
            raise PromiseBroken(f"{event}: no reply within {REPLY_TIMEOUT_SECONDS:g} s") from None
        if not answer.ok:
            raise PromiseBroken(f"{event} was refused: {bytes(answer.error).decode()}")

    async def close(self) -> None:
        await self._socket.close()

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
        else:
            self._on_push(push)

    def _receive_reply(self, command_id: int, push: Push) -> None:
        on_reply = self._on_reply.pop(command_id, None)
        if on_reply is not None and push.ok:
            on_reply(push.data)
        reply = self._replies.pop(command_id, None)
        if reply is not None and not reply.done():
            reply.set_result(push)


class Listener:
    """One user's socket, in many rooms."""

    def __init__(
        self,
        socket: ClientConnection,
        *,
        on_message: Callable[[Message], None],
        on_analysis: Callable[[str, AiData], None],
    ) -> None:
        self.connection = Connection(socket, on_push=self._receive)
        self._on_message = on_message
        self._on_analysis = on_analysis
        self._rooms: dict[str, Room[Message]] = {}

    async def join(self, conversation_id: str) -> Room[Message]:
        room = Room(conversation_id, Message, on_message=self._on_message)
        self._rooms[conversation_id] = room
        await self.connection.command(
            "conversation:join",
            {"conversationId": conversation_id, "afterSeq": 0},
            on_reply=room.receive_reply,
        )
        return room

    async def type_in(self, room: Room[Message], *, start: bool) -> None:
        event = "typing:start" if start else "typing:stop"
        await self.connection.command(event, {"conversationId": room.name})

    async def leave(self, room: Room[Message]) -> None:
        await self.connection.command("conversation:leave", {"conversationId": room.name})
        del self._rooms[room.name]

    def _receive(self, push: Push) -> None:
        room = self._rooms.get(push.conversation_id)
        if room is None:
            return
        room.receive(push)
        if push.event == "conversation:ai:update" and room.ai is not None:
            self._on_analysis(room.name, room.ai)


async def open_socket(url: str, path: str = "/ws") -> ClientConnection:
    """`url` is the server's, with http."""
    return await connect(url.replace("http", "ws", 1) + path, proxy=None, compression=None)
