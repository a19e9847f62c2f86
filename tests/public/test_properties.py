"""Whatever comes as an identity token is refused or read; whatever is said stays discreet."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging_server.conversations.visitors import to_public
from messaging_server.errors import Unauthenticated, ValidationFailed
from messaging_server.inboxes.identity import Identity, read_identity
from messaging_server.models import (
    ContentType,
    DeliveryStatus,
    Message,
    Sender,
    SenderType,
)

SECRET = "is_" + "s" * 43
PREVIOUS = "is_" + "p" * 43

WITHOUT_NUL = st.characters(exclude_categories=["Cs"], exclude_characters="\0")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
claims = st.fixed_dictionaries(
    {},
    optional={
        "sub": st.text(max_size=220) | json_values,
        "exp": st.integers(int(time.time()) - 90_000, int(time.time()) + 190_000) | json_values,
        "iat": st.integers(0, int(time.time()) + 1_000) | json_values,
        "name": st.text(max_size=220) | json_values,
        "email": st.just("ana@example.com") | json_values,
        "phone": json_values,
        "other": json_values,
    },
)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def sign(header: Any, payload: bytes, secret: str) -> str:
    content = f"{encode(json.dumps(header).encode())}.{encode(payload)}"
    mac = hmac.new(secret.encode(), content.encode(), hashlib.sha256).digest()
    return f"{content}.{encode(mac)}"


def read(token: str) -> Identity | None:
    try:
        return read_identity(token, (SECRET, PREVIOUS))
    except (Unauthenticated, ValidationFailed):
        return None


@given(st.text() | st.lists(st.text(), min_size=3, max_size=3).map(".".join))
def test_no_text_is_a_token(text: str) -> None:
    assert read(text) is None


@given(json_values, st.binary())
def test_no_header_makes_a_token_of_something(header: Any, payload: bytes) -> None:
    assert read(sign(header, payload, SECRET)) is None


@settings(max_examples=300)
@given(claims, st.sampled_from([SECRET, PREVIOUS, "is_" + "x" * 43]))
def test_what_is_read_keeps_the_rules(values: dict[str, Any], secret: str) -> None:
    payload = json.dumps(values).encode()
    identity = read(sign({"alg": "HS256"}, payload, secret))
    if identity is None:
        return
    assert secret in (SECRET, PREVIOUS)
    assert identity.sub == values["sub"]
    assert 1 <= len(identity.sub) <= 200
    assert 0 < values["exp"] - time.time() + 1 < 86_400 + 62
    assert identity.name is None or 1 <= len(identity.name) <= 200


@given(st.text(WITHOUT_NUL, min_size=1, max_size=200), st.integers(5, 86_400))
def test_a_good_token_is_read(subject: str, seconds: int) -> None:
    payload = msgspec.json.encode({"sub": subject, "exp": int(time.time()) + seconds})
    identity = read(sign({"alg": "HS256", "typ": "JWT", "kid": "1"}, payload, SECRET))
    assert identity is not None
    assert identity.sub == subject


@given(
    st.sampled_from(SenderType),
    st.none() | st.just("Eva"),
    st.integers(1, 2**31 - 1),
    st.integers(1, 2**31 - 1),
)
def test_a_public_message_tells_only_what_it_may(
    sender_type: SenderType, agent_name: str | None, seq: int, public_seq: int
) -> None:
    sender = Sender(id=UUID(int=0x5EC2E7), name="beatrice-of-the-email")
    from_agent = sender_type is SenderType.AGENT
    message = Message(
        id=UUID(int=1),
        conversation_id=UUID(int=2),
        seq=seq,
        sender_type=sender_type,
        sender=sender,
        content_type=ContentType.TEXT,
        content_text="hello",
        media_url=None,
        attachments=(),
        private=False,
        status=DeliveryStatus.SENT if from_agent else None,
        client_message_id="clients-own",
        created_at="2026-01-31T12:00:00.000Z",
    )
    shown = msgspec.to_builtins(to_public(message, public_seq, agent_name=agent_name))
    text = json.dumps(shown)
    assert shown["seq"] == public_seq
    assert str(sender.id) not in text
    if from_agent:
        assert shown["sender"] == {"name": agent_name or "Agent"}
        assert "beatrice" not in text
    assert (shown["clientMessageId"] is None) == (sender_type is not SenderType.LEAD)
