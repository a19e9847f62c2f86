"""The frames of the socket: commands, replies, pushes, close codes and limits.

A frame of a client is decoded strictly into a `Command`; whatever can go wrong with it becomes
`NotOurProtocol`, which ends the socket, or `BadCommand`, which is answered. What the server
sends is encoded once into a `Frame`, whose bytes are the same for every socket.
"""

import json
import struct
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from messaging_server import models
from messaging_server.errors import DomainError, ValidationFailed
from messaging_server.malformed import unreadable, validation_failed
from messaging_server.models import (
    Conversation,
    DeliveryStatus,
    Message,
    Priority,
    Timestamp,
    UserIdentity,
)

MAX_FRAME_BYTES = 65_536
MAX_FRAME_BYTES_BEFORE_AUTH = 4_096
MAX_RESUMED_MESSAGES = 300
MAX_REPLY_BYTES = 1_000_000  # many WebSocket libraries refuse frames over 1 MiB
MAX_PRESENT_USERS = 100
MAX_ERROR_CHARACTERS = 300


class Close(IntEnum):
    """Why the server closes a socket; 4xxx are ours, the others RFC 6455's."""

    BAD_FRAME = 1002
    NOT_UTF8 = 1007
    TOO_BIG = 1009
    DEFECT = 1011
    RESTART = 1012
    UNAVAILABLE = 4001
    TOKEN_EXPIRED = 4005
    TOO_SLOW = 4008
    NO_PONG = 4012
    TOO_MANY_FRAMES = 4029
    NOT_OUR_PROTOCOL = 4400
    BAD_TOKEN = 4401
    ORIGIN_REFUSED = 4403
    TOO_MANY_SOCKETS = 4409


class NotOurProtocol(Exception):
    """The frame is no JSON object: whoever sent it speaks something else."""


class BadCommand(Exception):
    """The frame is a JSON object but no command.

    `answerable` is False when it has no `id`, which means that no reply is wanted; an `id` that
    can't be read is answered as null.
    """

    def __init__(
        self, error: ValidationFailed, *, command_id: "CommandId", answerable: bool
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.command_id = command_id
        self.answerable = answerable


# --- What clients send ------------------------------------------------------------------------

MAX_ID = 2**53
MAX_ID_CHARACTERS = 64

CommandId = (
    Annotated[int, Meta(ge=-MAX_ID, le=MAX_ID)]
    | Annotated[str, Meta(max_length=MAX_ID_CHARACTERS)]
    | None
)


class Command(
    Struct, frozen=True, kw_only=True, rename="camel", tag_field="event", forbid_unknown_fields=True
):
    """A client's frame; without an `id` there is no reply."""

    id: CommandId = None


class Credentials(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    token: Annotated[str, Meta(min_length=1, max_length=MAX_FRAME_BYTES_BEFORE_AUTH)]


class ConversationRef(
    Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    conversation_id: UUID


class JoinRequest(ConversationRef, frozen=True, kw_only=True, rename="camel"):
    """`afterSeq`: the last message that the client has; without it none are sent."""

    after_seq: Annotated[int, Meta(ge=0, le=2_147_483_647)] | None = None


class Auth(Command, tag="auth", frozen=True):
    """Say who is calling: the first frame, and again with a fresh token of the same user."""

    data: Credentials


class Join(Command, tag="conversation:join", frozen=True):
    """Hear of a conversation from now on. `data` may be the bare conversation id."""

    data: UUID | JoinRequest

    @property
    def conversation_id(self) -> UUID:
        return self.data if isinstance(self.data, UUID) else self.data.conversation_id

    @property
    def after_seq(self) -> int | None:
        return None if isinstance(self.data, UUID) else self.data.after_seq


class InConversation(Command, frozen=True):
    """A command about one conversation. `data` may be the bare conversation id."""

    data: UUID | ConversationRef

    @property
    def conversation_id(self) -> UUID:
        return self.data if isinstance(self.data, UUID) else self.data.conversation_id


class Leave(InConversation, tag="conversation:leave", frozen=True):
    """Hear no more of a conversation."""


class StartTyping(InConversation, tag="typing:start", frozen=True):
    """The user is typing in a joined conversation; ends by itself after some seconds."""


class StopTyping(InConversation, tag="typing:stop", frozen=True):
    """The user has stopped typing."""


class Pong(Command, tag="pong", frozen=True):
    """The answer to `ping`; never replied to."""

    data: Any = None


COMMANDS = (Auth, Join, Leave, StartTyping, StopTyping, Pong)

_decoder = msgspec.json.Decoder(Auth | Join | Leave | StartTyping | StopTyping | Pong)


def decode_command(text: str) -> Command:
    """Raises `NotOurProtocol` or `BadCommand`, and nothing else, whatever `text` is."""
    return decode_with(_decoder, text)


def decode_with(decoder: msgspec.json.Decoder[Any], text: str) -> Command:
    """As `decode_command`, of the commands that `decoder` knows."""
    try:
        command: Command = decoder.decode(text)
        return command
    except msgspec.ValidationError as error:
        problem = validation_failed(error)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        problem = unreadable("frame", error)
    raise _bad_command(text, problem)


def _bad_command(text: str, problem: ValidationFailed) -> BadCommand:
    """Find the `id` to answer, with a parser that forgives more."""
    try:
        frame = json.loads(text)
    except json.JSONDecodeError:
        raise NotOurProtocol("not JSON") from None
    except (RecursionError, ValueError):
        return BadCommand(problem, command_id=None, answerable=True)
    if not isinstance(frame, dict):
        raise NotOurProtocol("not a JSON object")
    given = frame.get("id")
    return BadCommand(
        problem, command_id=given if _is_id(given) else None, answerable=given is not None
    )


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_ID_CHARACTERS and value.isprintable()
    return type(value) is int and abs(value) <= MAX_ID


# --- What the server sends --------------------------------------------------------------------


class Frame:
    """An encoded text frame: `data` as it goes over the wire, unmasked and unfragmented."""

    __slots__ = ("_header_bytes", "data", "event")

    def __init__(self, event: str, payload: bytes) -> None:
        header = _header(len(payload))
        self.event = event
        self.data = header + payload
        self._header_bytes = len(header)

    @property
    def text(self) -> str:
        return self.data[self._header_bytes :].decode()


def _header(payload_bytes: int) -> bytes:
    """FIN, opcode text, length (RFC 6455, 5.2)."""
    if payload_bytes < 126:
        return struct.pack("!BB", 0x81, payload_bytes)
    if payload_bytes < 65_536:
        return struct.pack("!BBH", 0x81, 126, payload_bytes)
    return struct.pack("!BBQ", 0x81, 127, payload_bytes)


class ErrorCode(StrEnum):
    """What `error.code` of a reply may be; the same words as over REST."""

    VALIDATION_ERROR = "validation_error"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    INTERNAL_ERROR = "internal_error"


class ReplyError(Struct, frozen=True, kw_only=True):
    code: ErrorCode
    message: str
    retryable: bool


class Nothing(Struct, frozen=True):
    """An empty object."""


class AuthResult(models.Model, frozen=True):
    """`expiresIn` is in seconds."""

    user: UserIdentity
    expires_in: int


class JoinResult(models.Model, frozen=True):
    """`messages` are all after `afterSeq`, oldest first; `reset`: too many, reload over REST."""

    conversation: Conversation
    last_seq: int
    messages: Sequence[Message]
    reset: bool


class Reply(Struct, frozen=True, kw_only=True):
    """The answer to a command; its `id` is the command's."""

    id: CommandId


class ErrorReply(Reply, frozen=True, kw_only=True):
    ok: Literal[False] = False
    error: ReplyError


class AuthReply(Reply, frozen=True, kw_only=True):
    ok: Literal[True] = True
    data: AuthResult


class JoinReply(Reply, frozen=True, kw_only=True):
    ok: Literal[True] = True
    data: JoinResult


class DoneReply(Reply, frozen=True, kw_only=True):
    ok: Literal[True] = True
    data: Nothing = Nothing()


class Push(Struct, frozen=True, kw_only=True, rename="camel", tag_field="event"):
    """What the server says unasked."""


class MessageData(models.Model, frozen=True):
    message: Message


class MessageNew(Push, tag="message:new", frozen=True):
    """In a joined conversation: every `seq` after the join, in order, once."""

    conversation_id: UUID
    seq: int
    data: MessageData


class StatusData(models.Model, frozen=True):
    """`seq` is the message's number for agents; `error` says why a message failed."""

    message_id: UUID
    seq: int
    status: DeliveryStatus
    error: str | None


class MessageStatus(Push, tag="message:status", frozen=True):
    """In a joined conversation: an agent's message got further on its way to the lead."""

    conversation_id: UUID
    data: StatusData


class AiData(models.Model, frozen=True):
    summary: str
    priority: Priority
    tags: Sequence[str]
    updated_at: Timestamp


class AiUpdateData(models.Model, frozen=True):
    ai_data: AiData


class AiUpdate(Push, tag="conversation:ai:update", frozen=True):
    """In a joined conversation: an analysis is done; this is what the analyser thinks."""

    conversation_id: UUID
    version: int
    data: AiUpdateData


class ConversationData(models.Model, frozen=True):
    conversation: Conversation


class ConversationUpdate(Push, tag="conversation:updated", frozen=True):
    """To everyone who may see the conversation, joined or not; the highest `version` wins."""

    conversation_id: UUID
    version: int
    data: ConversationData


class ConversationGained(Push, tag="conversation:assigned", frozen=True):
    """The conversation has been assigned to this user, who may see it from now on."""

    conversation_id: UUID
    version: int
    data: ConversationData


class RemovalReason(StrEnum):
    REASSIGNED = "reassigned"
    DELETED = "deleted"


class RemovalData(models.Model, frozen=True):
    reason: RemovalReason


class ConversationLost(Push, tag="conversation:removed", frozen=True):
    """This user does not see the conversation any more; its room has been left."""

    conversation_id: UUID
    data: RemovalData


class Person(models.Model, frozen=True):
    user_id: UUID
    email: str
    name: str | None


class Typist(models.Model, frozen=True):
    """A user; or the lead as a visitor, whose `userId` is the lead's id and who has no e-mail."""

    user_id: UUID
    email: str | None
    name: str | None


class TypingStarted(Push, tag="typing:start", frozen=True):
    """Somebody else is typing in a joined conversation. Best effort."""

    conversation_id: UUID
    data: Typist


class TypingStopped(Push, tag="typing:stop", frozen=True):
    """Somebody else has stopped typing. Best effort."""

    conversation_id: UUID
    data: Typist


class OnlineData(models.Model, frozen=True):
    online: Sequence[Person]
    online_count: int


class OnlineUpdate(Push, tag="presence:update", frozen=True):
    """Without `conversationId`: who is online, at most 100 of them, and how many. Best effort."""

    data: OnlineData


class ViewingData(models.Model, frozen=True):
    viewing: Sequence[Person]
    viewing_count: int


class ViewingUpdate(Push, tag="presence:update", frozen=True):
    """With `conversationId`: who has joined this conversation. Best effort."""

    conversation_id: UUID
    data: ViewingData


class Ping(Push, tag="ping", frozen=True):
    """Answer with `pong`."""

    data: Nothing = Nothing()


PUSHES = (
    MessageNew,
    MessageStatus,
    AiUpdate,
    ConversationUpdate,
    ConversationGained,
    ConversationLost,
    TypingStarted,
    TypingStopped,
    OnlineUpdate,
    ViewingUpdate,
    Ping,
)
REPLIES = (AuthReply, JoinReply, DoneReply, ErrorReply)

_encoder = msgspec.json.Encoder()


def push_frame(push: Push) -> Frame:
    return Frame(str(push.__struct_config__.tag), _encoder.encode(push))


def message_frame(message: Message) -> Frame:
    return push_frame(
        MessageNew(
            conversation_id=message.conversation_id,
            seq=message.seq,
            data=MessageData(message=message),
        )
    )


def reply_frame(reply: Reply) -> Frame:
    return Frame("reply", _encoder.encode(reply))


def error_frame(command_id: CommandId, error: DomainError) -> Frame:
    reply = ReplyError(
        code=ErrorCode(error.code),
        message=error.message[:MAX_ERROR_CHARACTERS],
        retryable=error.retryable,
    )
    return reply_frame(ErrorReply(id=command_id, error=reply))


PING = push_frame(Ping())
