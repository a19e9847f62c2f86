"""The AsyncAPI 3.0 document of the socket, made of the same structs that it speaks with."""

import inspect
from typing import Any

import msgspec
from msgspec import Struct

from messaging_server.realtime import protocol
from messaging_server.realtime.protocol import COMMANDS, PUSHES, REPLIES, Close

CHANNEL = "#/channels/socket"
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


def asyncapi_document(*, version: str) -> dict[str, Any]:
    """`version` is the server's."""
    messages = (*COMMANDS, *REPLIES, *PUSHES)
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
        "channels": {
            "socket": {
                "address": "/ws",
                "description": "One JSON object per text frame. The first command is `auth`.",
                "messages": {kind.__name__: _ref("components/messages", kind) for kind in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {
            **{kind.__name__: _command(kind) for kind in COMMANDS},
            **{kind.__name__: _operation("send", kind) for kind in PUSHES},
        },
        "components": {
            "messages": {kind.__name__: _message(kind, payloads[kind]) for kind in messages},
            "schemas": schemas,
        },
    }


def _command(kind: type[Struct]) -> dict[str, Any]:
    operation = _operation("receive", kind)
    if kind in REPLY_OF:
        replies = (REPLY_OF[kind], protocol.ErrorReply)
        operation["reply"] = {
            "channel": {"$ref": CHANNEL},
            "messages": [_ref("channels/socket/messages", reply) for reply in replies],
        }
    return operation


def _operation(action: str, kind: type[Struct]) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": CHANNEL},
        "summary": inspect.getdoc(kind),
        "messages": [_ref("channels/socket/messages", kind)],
    }


def _message(kind: type[Struct], payload: dict[str, Any]) -> dict[str, Any]:
    event = kind.__struct_config__.tag
    return {"name": str(event or kind.__name__), "title": kind.__name__, "payload": payload}


def _ref(where: str, kind: type[Struct]) -> dict[str, str]:
    return {"$ref": f"#/{where}/{kind.__name__}"}


def _close_codes() -> str:
    return ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in Close)
