"""Whatever is sent: 400, 404, 413 or 415 in the contract's shape, never a 500 nor a traceback.

Each body is a good one with one thing wrong, so that the answer can only be about that.
"""

import copy
import errno
import json
import re
import socket
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from messaging_server.models import VISIBLE
from tests.api.calls import CALLS, Call, Sender, named
from tests.api.test_contract import assert_failure
from tests.client import Api, LiveServer

STRING, NUMBER, BOOLEAN = "string", "number", "boolean"
OBJECT, LIST, NULL = "object", "list", "null"

WRONG: dict[str, list[Any]] = {
    STRING: ["x" * 20_000],
    NUMBER: [0, 1.5, -1, 2**31, 2**63, 2**64, 10**30, 1e308],
    BOOLEAN: [True, False],
    OBJECT: [{}, {"a": 1}],
    LIST: [[], ["x"]],
    NULL: [None],
}
"""Values that no field of another kind accepts; the long string is too long for every field."""

RAW: dict[str, bytes] = {
    "NUL escaped": b'"a\\u0000b"',
    "NUL raw": b'"a\x00b"',
    "control character": b'"a\x01b"',
    "lone high surrogate": b'"a\\ud800b"',
    "lone low surrogate": b'"a\\udc00b"',
    "swapped surrogates": b'"\\udc00\\ud800"',
    "invalid UTF-8": b'"a\xffb"',
    "overlong UTF-8": b'"\xc0\x80"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "beyond Unicode": b'"\xf5\x80\x80\x80"',
    "cut UTF-8": b'"\xe2\x82"',
    "deep list": b"[" * 10_000 + b"]" * 10_000,
    "deep object": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "huge float": b"1e999",
    "huge integer": b"9" * 5_000,
    "single quotes": b"'x'",
    "nothing": b"",
    "bare word": b"undefined",
}
"""What stands for a value, as bytes."""


def with_value(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(body)
    *parents, name = field.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    place[name] = value
    return changed


def without(body: dict[str, Any], field: str) -> dict[str, Any]:
    changed = with_value(body, field, None)
    *parents, name = field.split(".")
    place = changed
    for parent in parents:
        place = place[parent]
    del place[name]
    return changed


def wrong_values(kinds: set[str]) -> Iterator[Any]:
    for kind, values in WRONG.items():
        if kind not in kinds:
            yield from values
    if STRING in kinds:
        yield from WRONG[STRING]
    if NUMBER in kinds:
        yield from (1.5, -1, 2**31, 2**63, 2**64, 10**30)


calls = pytest.mark.parametrize("name", CALLS)


@calls
def test_the_good_body_is_good(sender: Sender, name: str) -> None:
    call = CALLS[name]
    response = sender.send(call, json.dumps(sender.good_body(call)).encode())
    if name == "login":
        assert response.status_code == 401
    elif name == "password":
        assert "currentPassword" in response.text
    else:
        assert response.is_success, response.text


@calls
def test_wrong_types_and_lengths(sender: Sender, name: str) -> None:
    call = CALLS[name]
    for field, kinds in call.fields.items():
        for value in wrong_values(kinds):
            body = with_value(sender.good_body(call), field, value)
            error = assert_failure(sender.send(call, json.dumps(body).encode()), 400)
            assert named(error, field), f"{field}={value!r:.50}: {error}"


@calls
def test_missing_and_unknown_fields(sender: Sender, name: str) -> None:
    call = CALLS[name]
    for field in call.required:
        body = without(sender.good_body(call), field)
        error = assert_failure(sender.send(call, json.dumps(body).encode()), 400)
        assert named(error, field), f"{field}: {error}"
    parents = {field.rpartition(".")[0] for field in call.fields}
    for parent in parents:
        field = f"{parent}.colour".removeprefix(".")
        body = with_value(sender.good_body(call), field, "red")
        error = assert_failure(sender.send(call, json.dumps(body).encode()), 400)
        assert named(error, field), f"{field}: {error}"
    body = sender.good_body(call)
    for name in body:
        body_in_capitals = {**without(body, name), name.upper(): body[name]}
        assert_failure(sender.send(call, json.dumps(body_in_capitals).encode()), 400)


@calls
@pytest.mark.parametrize("raw", RAW)
def test_unreadable_values(sender: Sender, name: str, raw: str) -> None:
    call = CALLS[name]
    for field in call.fields:
        body = with_value(sender.good_body(call), field, "@value@")
        content = json.dumps(body).encode().replace(b'"@value@"', RAW[raw])
        assert_failure(sender.send(call, content), 400)


@calls
def test_unreadable_bodies(sender: Sender, name: str) -> None:
    call = CALLS[name]
    good = json.dumps(sender.good_body(call)).encode()
    for content in [
        *RAW.values(), b" ", b"[]", b"null", b"0", b'"x"', b"[" + good + b"]", good[:-1],
        good + b"x",
        good + good, good + b"\0", b"\xef\xbb\xbf" + good, good.decode().encode("utf-16"),
        b"--x\r\n\r\n", b"a=b&c=d", b"{" + b'"a":1,' * 10_000 + b"}",
    ]:  # fmt: skip
        assert_failure(sender.send(call, content), 400)
    assert_failure(sender.send(call, b'{"a":"' + b"x" * 1_048_576 + b'"}'), 413)
    assert_failure(sender.send(call, good, **{"Content-Type": "text/json"}), 415)


@pytest.mark.parametrize("path", ["/leads", "/leads/{lead}"])
def test_attributes_are_any_json_that_can_be_stored(sender: Sender, path: str) -> None:
    method = "POST" if path == "/leads" else "PATCH"
    call = Call(method, path, {}, {})

    def send(attributes: bytes) -> httpx.Response:
        return sender.send(call, b'{"name":"Ana","attributes":' + attributes + b"}")

    for good in [
        {"a": [{"b": [None, True, 1, -1.5, "x"]}]},
        {"n": 10**40, "f": 1e-300, "g": 0.1},
        {"ключ 😀": "значение"},
        {"a": "\\u0000 as text", "b": "\x7f\u2028"},
    ]:
        response = send(json.dumps(good).encode())
        assert response.is_success, response.text
        assert response.json()["data"]["attributes"] == good
    for raw in set(RAW) - {"nothing", "huge integer"}:
        for bad in (b'{"a":' + RAW[raw] + b"}", b'{"a":[1,{"b":' + RAW[raw] + b"}]}"):
            assert_failure(send(bad), 400)
    for bad in (
        b'{"a\\u0000":1}',
        b'{"":1}',
        b'{"' + b"k" * 101 + b'":1}',
        b'{"a":"%s"}' % (b"x" * 20_000),
        b'{"a":[%s]}' % b",".join([b"1e307"] * 100),
        b'{"a":[%s]}' % b",".join([b"1e-300"] * 100),
    ):
        failure = assert_failure(send(bad), 400)
        assert [detail["field"] for detail in failure["details"]] == ["attributes"]
    assert send(b'{"a":' + b"9" * 4_000 + b"}").status_code in (200, 201, 400)
    for depth in (31, 32, 200, 900, 1_500):
        nested = b"[" * depth + b"]" * depth
        response = send(b'{"a":' + nested + b"}")  # the object itself is a level too
        if depth < 32:
            assert response.is_success, response.text
        else:
            assert_failure(response, 400)
    assert sender.api.get("/leads", limit=100)["items"]


@pytest.mark.parametrize(
    "until",
    ["", "2999", "2999-01-01", "2999-01-01 00:00", "2999-01-01T00:00:00",
     "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:59",
     "2999-13-01T00:00:00Z", "2999-02-30T00:00:00Z", "10000-01-01T00:00:00Z",
     "0001-01-01T00:00:00+23:59",
     "2999-01-01T25:00:00Z", "2999-01-01T00:00:00+99:00", "-1", "32503680000", "infinity", "now"],
)  # fmt: skip
def test_no_times(sender: Sender, until: str) -> None:
    call = CALLS["snooze"]
    error = assert_failure(sender.send(call, json.dumps({"snoozedUntil": until}).encode()), 400)
    assert error["message"]


BLANK = [
    " ",
    "\t\n\u00a0",
    "\u200b",
    "\ufeff",
    "\u2060",
    "\u00ad",
    "\u3164",
    " \u200d\ufe0f\u2800 ",
]
SEEN = ["x", "\u200bx", "\U0001f468\u200d\U0001f469", "\u06f1", "\u0915\u094d", "\u65e5"]
NAMES = {
    "register": "name", "user": "name", "new lead": "name", "lead": "name", "API key": "name",
    "new conversation": "lead.name", "inbound": "lead.name", "session": "name",
    "new inbox": "name", "inbox": "name",
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_must_be_seen(sender: Sender, name: str) -> None:
    call, field = CALLS[name], NAMES[name]
    for texts, status in ((BLANK, 400), (SEEN, None)):
        for text in texts:
            body = with_value(sender.good_body(call), field, text)
            response = sender.send(call, json.dumps(body).encode())
            if status is None:
                assert response.is_success, response.text
            else:
                error = assert_failure(response, status)
                assert error["details"] == [{"field": field, "message": "must not be blank"}]


@pytest.mark.parametrize("text", BLANK)
def test_a_message_and_a_tag_must_be_seen(sender: Sender, text: str) -> None:
    for name in ("message", "inbound", "visitor's message"):
        call = CALLS[name]
        message = {"contentText": text}
        body = {**sender.good_body(call), "message": message} if name == "inbound" else message
        error = assert_failure(sender.send(call, json.dumps(body).encode()), 400)
        assert error["details"][0]["field"].endswith("contentText")
    tags = json.dumps({"tags": ["a", text]}).encode()
    assert named(assert_failure(sender.send(CALLS["conversation"], tags), 400), "tags")


@pytest.mark.parametrize("text", SEEN)
def test_whatever_is_seen_is_a_message_and_a_tag(sender: Sender, text: str) -> None:
    sent = sender.api.send(sender.ids["{conversation}"], text)
    assert sent["contentText"] == text
    tags = json.dumps({"tags": [text]}).encode()
    assert sender.send(CALLS["conversation"], tags).json()["data"]["tags"] == [text]


def test_what_is_seen_follows_from_unicodes_categories() -> None:
    """Space, controls and formats are not; but signs that only Arabic and the like draw are."""
    visible = re.compile(VISIBLE)
    drawn = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
    drawn |= set(range(0x13430, 0x13460))
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category in ("Cc", "Cf", "Zs", "Zl", "Zp") and code not in drawn:
            assert not visible.search(chr(code)), hex(code)
        elif category[0] in "LNPS" and not visible.search(chr(code)):
            assert unicodedata.name(chr(code)).endswith(("FILLER", "BLANK")), hex(code)


def test_no_tags(sender: Sender) -> None:
    call = CALLS["conversation"]
    for tags in (["x" * 51], [""], [1], [None], [["a"]], ["a"] * 21, [{"a": 1}]):
        error = assert_failure(sender.send(call, json.dumps({"tags": tags}).encode()), 400)
        assert named(error, "tags")


# --- Below HTTP -------------------------------------------------------------------------------

HEAD = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GARBAGE: dict[str, bytes] = {
    "chunk size": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "chunk without end": CHUNKED + b"2\r\n{}xx0\r\n\r\n",
    "negative chunk": CHUNKED + b"-1\r\n{}\r\n0\r\n\r\n",
    "huge chunk size": CHUNKED + b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no number": HEAD + b"Content-Length: x\r\n\r\n{}",
    "bytes in the path": b"GET /api/v1/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    "bytes in the query": b"GET /api/v1/leads?\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in a header": b"GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\x00b\r\n\r\n",
    "no method": b"\x00\x01\x02\x03\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 64 + b"\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "long header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 200_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage(server: LiveServer, api: Api, name: str) -> None:
    """Refused or cut off; the server goes on."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        try:
            connection.sendall(GARBAGE[name])
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(65_536)
        except OSError as error:
            # Cut off: a reset is a ConnectionError, a shutdown after it ENOTCONN.
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                raise
            answer = b""
    if answer:
        assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    api.get("/auth/me", expect=200)


def test_a_body_that_never_comes(server: LiveServer, api: Api) -> None:
    """The client goes away in the middle: nothing happens, and nothing is logged as a defect."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b'Content-Length: 100\r\n\r\n{"email":')
    api.get("/auth/me", expect=200)
    server.assert_no_defects()


def test_no_body_at_all(api: Api) -> None:
    for path in ("/auth/login", "/leads", "/conversations", "/webhooks"):
        failure = assert_failure(api.http.post(path), 400)
        assert failure["details"] == [{"field": "body", "message": "is required"}]
