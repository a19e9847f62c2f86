"""The AsyncAPI 3.0 document of the sockets, made of the same structs that they speak with."""

import inspect
from typing import Any

import msgspec
from msgspec import Struct

from messaging_server.realtime import protocol, public_protocol
from messaging_server.realtime.protocol import COMMANDS, PUSHES, REPLIES, Close
from messaging_server.realtime.public_protocol import (
    PUBLIC_COMMANDS,
    PUBLIC_PUSHES,
    PUBLIC_REPLIES,
)

DESCRIPTION = (
    "What happens in the inbox, as it happens. Messages are sent over REST; in a joined "
    "conversation each arrives here once, in the order of its `seq`, without holes."
)
REPLY_OF: dict[type[Struct], type[Struct]] = {
    protocol.Auth: protocol.AuthReply,
    protocol.Join: protocol.JoinReply,
    protocol.Leave: protocol.DoneReply,
    protocol.StartTyping: protocol.DoneReply,
    protocol.StopTyping: protocol.DoneReply,
}
PUBLIC_REPLY_OF: dict[type[Struct], type[Struct]] = {
    protocol.Auth: public_protocol.PublicAuthReply,
    public_protocol.PublicJoin: public_protocol.PublicJoinReply,
    public_protocol.PublicLeave: protocol.DoneReply,
    public_protocol.PublicStartTyping: protocol.DoneReply,
    public_protocol.PublicStopTyping: protocol.DoneReply,
    public_protocol.Delivered: protocol.DoneReply,
    public_protocol.Seen: protocol.DoneReply,
}

Kinds = tuple[type[Struct], ...]


class Channel(Struct, frozen=True, kw_only=True):
    """One address, and what is said there; `prefix` tells its operations from others'."""

    name: str
    address: str
    prefix: str
    audience: str
    commands: Kinds
    replies: Kinds
    pushes: Kinds
    reply_of: dict[type[Struct], type[Struct]]

    @property
    def messages(self) -> Kinds:
        return (*self.commands, *self.replies, *self.pushes)


CHANNELS = (
    Channel(
        name="socket",
        address="/ws",
        prefix="",
        audience="For users",
        commands=COMMANDS,
        replies=REPLIES,
        pushes=PUSHES,
        reply_of=REPLY_OF,
    ),
    Channel(
        name="publicSocket",
        address="/ws/public",
        prefix="Visitor",
        audience="For visitors of a website, with a session's token, about their conversation",
        commands=PUBLIC_COMMANDS,
        replies=PUBLIC_REPLIES,
        pushes=PUBLIC_PUSHES,
        reply_of=PUBLIC_REPLY_OF,
    ),
)


def asyncapi_document(*, version: str) -> dict[str, Any]:
    """`version` is the server's."""
    messages = tuple(dict.fromkeys(kind for channel in CHANNELS for kind in channel.messages))
    references, schemas = msgspec.json.schema_components(
        messages, ref_template="#/components/schemas/{name}"
    )
    payloads = dict(zip(messages, references, strict=True))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "messaging_server socket",
            "version": version,
            "description": f"{DESCRIPTION} Close codes: {_close_codes()}.",
        },
        "defaultContentType": "application/json",
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {
            f"{channel.prefix}{kind.__name__.removeprefix('Public')}": operation
            for channel in CHANNELS
            for kind, operation in _operations(channel)
        },
        "components": {
            "messages": {kind.__name__: _message(kind, payloads[kind]) for kind in messages},
            "schemas": schemas,
        },
    }


def _channel(channel: Channel) -> dict[str, Any]:
    return {
        "address": channel.address,
        "description": (
            f"{channel.audience}. One JSON object per text frame. The first command is `auth`."
        ),
        "messages": {kind.__name__: _ref("components/messages", kind) for kind in channel.messages},
        "bindings": {"ws": {"method": "GET"}},
    }


def _operations(channel: Channel) -> list[tuple[type[Struct], dict[str, Any]]]:
    commands = [(kind, _command(channel, kind)) for kind in channel.commands]
    return commands + [(kind, _operation(channel, "send", kind)) for kind in channel.pushes]


def _command(channel: Channel, kind: type[Struct]) -> dict[str, Any]:
    operation = _operation(channel, "receive", kind)
    if kind in channel.reply_of:
        replies = (channel.reply_of[kind], protocol.ErrorReply)
        operation["reply"] = {
            "channel": {"$ref": f"#/channels/{channel.name}"},
            "messages": [_ref(f"channels/{channel.name}/messages", reply) for reply in replies],
        }
    return operation


def _operation(channel: Channel, action: str, kind: type[Struct]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": inspect.getdoc(kind),
        "messages": [_ref(f"channels/{channel.name}/messages", kind)],
    }


def _message(kind: type[Struct], payload: dict[str, Any]) -> dict[str, Any]:
    event = kind.__struct_config__.tag
    return {"name": str(event or kind.__name__), "title": kind.__name__, "payload": payload}


def _ref(where: str, kind: type[Struct]) -> dict[str, str]:
    return {"$ref": f"#/{where}/{kind.__name__}"}


def _close_codes() -> str:
    return ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in Close)
