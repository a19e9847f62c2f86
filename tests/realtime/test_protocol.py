"""Frames: whatever a client sends is a command, a described error, or not our protocol."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode

from messaging_server.realtime import protocol
from messaging_server.realtime.asyncapi import asyncapi_document
from messaging_server.realtime.protocol import (
    COMMANDS,
    PUSHES,
    BadCommand,
    Command,
    Frame,
    Join,
    NotOurProtocol,
    decode_command,
)
from messaging_server.realtime.public_protocol import (
    PUBLIC_COMMANDS,
    PUBLIC_PUSHES,
    PublicJoin,
    decode_public_command,
)

CONVERSATION = "01900000-0000-7000-8000-000000000001"
DEEP = "[" * 10_000 + "]" * 10_000

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
events = (
    st.sampled_from([str(kind.__struct_config__.tag) for kind in (*COMMANDS, *PUBLIC_COMMANDS)])
    | json_values
)
ids = st.none() | st.integers() | st.text() | json_values
references = st.fixed_dictionaries(
    {},
    optional={
        "conversationId": st.just(CONVERSATION) | json_values,
        "afterSeq": json_values,
        "seq": json_values,
    },
)
almost_commands = st.fixed_dictionaries(
    {},
    optional={
        "id": ids,
        "event": events,
        "data": st.just(CONVERSATION) | references | json_values,
        "more": json_values,
    },
)


Decode = Callable[[str], Command]
both_sockets = pytest.mark.parametrize("decode", [decode_command, decode_public_command])


def outcome(text: str, decode: Decode = decode_command) -> Command | BadCommand | NotOurProtocol:
    try:
        return decode(text)
    except (BadCommand, NotOurProtocol) as error:
        return error


@both_sockets
@given(text=st.text())
def test_any_text_is_decoded_or_refused(decode: Decode, text: str) -> None:
    outcome(text, decode)


@both_sockets
@given(frame=almost_commands)
def test_any_object_is_a_command_or_a_described_error(
    decode: Decode, frame: dict[str, Any]
) -> None:
    result = outcome(json.dumps(frame), decode)
    assert not isinstance(result, NotOurProtocol)
    if isinstance(result, BadCommand):
        assert result.error.message
        assert result.answerable == (frame.get("id") is not None)
        assert result.command_id in (frame.get("id"), None)
        protocol.error_frame(result.command_id, result.error)


@given(st.text(alphabet='{}[]":,\\ud8001eidvntaos', max_size=60))
def test_almost_json_is_decoded_or_refused(text: str) -> None:
    outcome(text)
    outcome(text, decode_public_command)


@pytest.mark.parametrize("text", ["", "hello", "[]", "1", "null", '"x"', '{"event":', "40", "\0"])
def test_not_our_protocol(text: str) -> None:
    assert isinstance(outcome(text), NotOurProtocol)


@pytest.mark.parametrize(
    ("frame", "field"),
    [
        ({"id": 7}, "event"),
        ({"id": 7, "event": "shout"}, "event"),
        ({"id": 7, "event": 5}, "event"),
        ({"id": 7, "event": "pong", "extra": 1}, "extra"),
        ({"id": 7, "event": "conversation:join"}, "data"),
        ({"id": 7, "event": "conversation:join", "data": 5}, "data"),
        ({"id": 7, "event": "conversation:join", "data": "x"}, "data"),
        ({"id": 7, "event": "conversation:join", "data": {}}, "data.conversationId"),
        (
            {
                "id": 7,
                "event": "conversation:join",
                "data": {"conversationId": CONVERSATION, "afterSeq": -1},
            },
            "data.afterSeq",
        ),
        (
            {
                "id": 7,
                "event": "conversation:leave",
                "data": {"conversationId": CONVERSATION, "why": 1},
            },
            "data.why",
        ),
        ({"id": 7, "event": "auth", "data": {}}, "data.token"),
        ({"id": 7, "event": "auth", "data": {"token": 5}}, "data.token"),
    ],
)
def test_error_names_the_field(frame: dict[str, Any], field: str) -> None:
    result = outcome(json.dumps(frame))
    assert isinstance(result, BadCommand)
    assert result.command_id == 7
    assert result.error.details[0].field == field


@pytest.mark.parametrize(
    ("text", "command_id"),
    [
        ('{"id":7,"event":"conversation:join","data":"\\ud800"}', 7),
        ('{"id":7,"event":"conversation:join","data":NaN}', 7),
        (f'{{"id":7,"event":"pong","data":{DEEP}}}', None),
        (f'{{"event":"pong","id":{"9" * 5_000}}}', None),
        (f'{{"event":"pong","id":{2**60}}}', None),
        ('{"event":"pong","id":{"a":1}}', None),
        ('{"event":"pong","id":true}', None),
        (f'{{"event":"pong","id":"{"x" * 65}"}}', None),
        ('{"event":"shout","id":"\\ud800"}', None),
        ('{"event":"shout","id":"a-7"}', "a-7"),
    ],
)
def test_what_is_json_is_answered(text: str, command_id: str | int | None) -> None:
    """An `id` that can't be read is answered as null."""
    result = outcome(text)
    assert isinstance(result, BadCommand)
    assert result.answerable
    assert result.command_id == command_id


def test_half_a_surrogate_pair_is_named() -> None:
    with pytest.raises(BadCommand, match="surrogate pair"):
        decode_command(r'{"id":1,"event":"auth","data":{"token":"\ud800"}}')


def test_bare_conversation_id() -> None:
    """As the old clients sent it."""
    command = decode_command(json.dumps({"event": "conversation:join", "data": CONVERSATION}))
    assert isinstance(command, Join)
    assert command.conversation_id == UUID(CONVERSATION)
    assert command.after_seq is None
    assert command.id is None


def test_visitors_conversation_need_not_be_named() -> None:
    for data in ({}, {"data": None}, {"data": {}}, {"data": {"conversationId": None}}):
        command = decode_public_command(json.dumps({"event": "conversation:join", **data}))
        assert isinstance(command, PublicJoin)
        assert command.conversation_id is None
        assert command.after_seq is None


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_frame_is_what_websockets_would_write(size: int) -> None:
    payload = b"x" * size
    frame = Frame("test", payload)
    assert frame.data == WebSocketFrame(Opcode.TEXT, payload).serialize(mask=False)
    assert frame.text.encode() == payload


def references_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references_of(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(references_of(item) for item in value))
    return set()


def test_asyncapi_document_is_whole() -> None:
    """Every reference leads somewhere; every command and push is there under its own name."""
    document = asyncapi_document(version="1.2.3")
    assert document == json.loads(msgspec.json.encode(document))
    for reference in references_of(document):
        found: Any = document
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]
    names = {message["name"] for message in document["components"]["messages"].values()}
    kinds = (*COMMANDS, *PUSHES, *PUBLIC_COMMANDS, *PUBLIC_PUSHES)
    assert {str(kind.__struct_config__.tag) for kind in kinds} <= names
    assert {channel["address"] for channel in document["channels"].values()} == {
        "/ws",
        "/ws/public",
    }
    assert len(document["operations"]) == len(kinds)
