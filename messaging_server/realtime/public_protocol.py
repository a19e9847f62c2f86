"""The frames of visitors' sockets: the protocol of agents, about the visitor's own conversation.

What is not here can't be said to a visitor: no frame has a place for a private note, an e-mail,
a user's id, what the AI thinks, or the state of a conversation.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta, Struct

from messaging_server import models
from messaging_server.models import PublicMessage
from messaging_server.realtime.protocol import (
    Auth,
    Command,
    DoneReply,
    ErrorReply,
    Frame,
    Ping,
    Pong,
    Push,
    Reply,
    decode_with,
    push_frame,
)

Seq = Annotated[int, Meta(ge=0, le=2_147_483_647)]

# --- What visitors' clients send --------------------------------------------------------------


class OwnConversation(
    Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """Without `conversationId` it is the visitor's conversation, whichever that is."""

    conversation_id: UUID | None = None


class PublicJoinRequest(OwnConversation, frozen=True, kw_only=True, rename="camel"):
    """`afterSeq`: the last message that the client has; without it none are sent."""

    after_seq: Seq | None = None


class PublicJoin(Command, tag="conversation:join", frozen=True):
    """Hear of the visitor's conversation from now on, even if it does not exist yet."""

    data: UUID | PublicJoinRequest | None = None

    @property
    def conversation_id(self) -> UUID | None:
        data = self.data
        return data.conversation_id if isinstance(data, PublicJoinRequest) else data

    @property
    def after_seq(self) -> int | None:
        return self.data.after_seq if isinstance(self.data, PublicJoinRequest) else None


class InOwnConversation(Command, frozen=True):
    """A command about the visitor's conversation. `data` may be its bare id, or left out."""

    data: UUID | OwnConversation | None = None

    @property
    def conversation_id(self) -> UUID | None:
        data = self.data
        return data.conversation_id if isinstance(data, OwnConversation) else data


class PublicLeave(InOwnConversation, tag="conversation:leave", frozen=True):
    """Hear no more of the conversation."""


class PublicStartTyping(InOwnConversation, tag="typing:start", frozen=True):
    """The visitor is typing in the joined conversation; ends by itself after some seconds."""


class PublicStopTyping(InOwnConversation, tag="typing:stop", frozen=True):
    """The visitor has stopped typing."""


class Position(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    seq: Seq


class Delivered(Command, tag="message:delivered", frozen=True):
    """The client has all messages through `seq`: agents see theirs as delivered."""

    data: Position


class Seen(Command, tag="message:seen", frozen=True):
    """The visitor has seen all messages through `seq`: agents see theirs as read."""

    data: Position


PUBLIC_COMMANDS = (
    Auth,
    PublicJoin,
    PublicLeave,
    PublicStartTyping,
    PublicStopTyping,
    Delivered,
    Seen,
    Pong,
)

_decoder = msgspec.json.Decoder(
    Auth | PublicJoin | PublicLeave | PublicStartTyping | PublicStopTyping | Delivered | Seen | Pong
)


def decode_public_command(text: str) -> Command:
    """Raises `NotOurProtocol` or `BadCommand`, and nothing else, whatever `text` is."""
    return decode_with(_decoder, text)


# --- What the server sends to visitors --------------------------------------------------------


class LeadIdentity(models.Model, frozen=True):
    id: UUID
    name: str
    verified: bool


class PublicAuthResult(models.Model, frozen=True):
    """`conversationId` is null before the first message; `expiresIn` is in seconds."""

    lead: LeadIdentity
    conversation_id: UUID | None
    expires_in: int


class PublicJoinResult(models.Model, frozen=True):
    """`messages` are all after `afterSeq`, oldest first; `reset`: too many, reload over REST."""

    conversation_id: UUID | None
    last_seq: int
    messages: Sequence[PublicMessage]
    reset: bool


class PublicAuthReply(Reply, frozen=True, kw_only=True):
    ok: Literal[True] = True
    data: PublicAuthResult


class PublicJoinReply(Reply, frozen=True, kw_only=True):
    ok: Literal[True] = True
    data: PublicJoinResult


class PublicMessageData(models.Model, frozen=True):
    message: PublicMessage


class PublicMessageNew(Push, tag="message:new", frozen=True):
    """In the joined conversation: every `seq` after the join, in order, once."""

    conversation_id: UUID
    seq: int
    data: PublicMessageData


class PublicRemovalReason(StrEnum):
    REPLACED = "replaced"
    DELETED = "deleted"


class PublicRemovalData(models.Model, frozen=True):
    reason: PublicRemovalReason


class PublicConversationLost(Push, tag="conversation:removed", frozen=True):
    """The conversation is deleted, or another one is the visitor's now, which then follows."""

    conversation_id: UUID
    data: PublicRemovalData


class TypistName(models.Model, frozen=True):
    name: str


class PublicTypingStarted(Push, tag="typing:start", frozen=True):
    """An agent is typing in the joined conversation. Best effort."""

    conversation_id: UUID
    data: TypistName


class PublicTypingStopped(Push, tag="typing:stop", frozen=True):
    """The agent has stopped typing. Best effort."""

    conversation_id: UUID
    data: TypistName


PUBLIC_PUSHES = (
    PublicMessageNew,
    PublicConversationLost,
    PublicTypingStarted,
    PublicTypingStopped,
    Ping,
)
PUBLIC_REPLIES = (PublicAuthReply, PublicJoinReply, DoneReply, ErrorReply)


def public_message_frame(message: PublicMessage) -> Frame:
    return push_frame(
        PublicMessageNew(
            conversation_id=message.conversation_id,
            seq=message.seq,
            data=PublicMessageData(message=message),
        )
    )
