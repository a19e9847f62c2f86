"""Forms that are none: refused in the contract's shape, and nothing is left of them."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests.api.test_contract import assert_failure
from tests.attachments import files
from tests.attachments.files import BOUNDARY, FORM_TYPE, form, part
from tests.client import Api, LiveServer, wait_until

GOOD = form(part(b"hello"))
HUGE_HEADER = f"--{BOUNDARY}\r\nX-A: {'a' * 50_000}\r\n\r\n".encode()
MANY_HEADERS = f"--{BOUNDARY}\r\n".encode() + b"X-A: a\r\n" * 5_000 + b"\r\n"
CASES: dict[str, tuple[bytes, str, str]] = {
    "no boundary": (GOOD, "multipart/form-data", "body"),
    "empty boundary": (GOOD, 'multipart/form-data; boundary=""', "body"),
    "long boundary": (GOOD, f"multipart/form-data; boundary={'x' * 300}", "body"),
    "another boundary": (GOOD, "multipart/form-data; boundary=other", "body"),
    "no parts": (form(), FORM_TYPE, "file"),
    "empty body": (b"", FORM_TYPE, "body"),
    "no file part": (form(part(b"x", name="picture")), FORM_TYPE, "picture"),
    "field beside the file": (form(part(b"x"), part(b"y", name="colour")), FORM_TYPE, "colour"),
    "field before the file": (form(part(b"y", name="colour"), part(b"x")), FORM_TYPE, "colour"),
    "two files": (form(part(b"x"), part(b"y")), FORM_TYPE, "file"),
    "no file": (form(part(b"x", file_name=None)), FORM_TYPE, "file"),
    "empty file name": (form(part(b"x", file_name="")), FORM_TYPE, "file"),
    "empty file": (form(part(b"")), FORM_TYPE, "file"),
    "10,000 parts": (form(*[part(b"x", name="n")] * 10_000), FORM_TYPE, "n"),
    "10,000 files": (form(*[part(b"x")] * 10_000), FORM_TYPE, "file"),
    "no disposition": (f"--{BOUNDARY}\r\n\r\nx\r\n--{BOUNDARY}--".encode(), FORM_TYPE, "body"),
    "huge header": (HUGE_HEADER + GOOD, FORM_TYPE, "body"),
    "many headers": (MANY_HEADERS + GOOD, FORM_TYPE, "body"),
    "header without end": (f"--{BOUNDARY}\r\nX-A: ".encode() + b"a" * 90_000, FORM_TYPE, "body"),
    "header with NUL": (GOOD.replace(b"form-data", b"form\0data"), FORM_TYPE, "body"),
    "header of bytes": (GOOD.replace(b"a.txt", b"a\xff.txt"), FORM_TYPE, "body"),
    "cut off": (GOOD[:-10], FORM_TYPE, "body"),
    "cut off in the header": (GOOD[:30], FORM_TYPE, "body"),
    "line feeds only": (GOOD.replace(b"\r\n", b"\n"), FORM_TYPE, "body"),
    "preamble without end": (b"x" * 60_000, FORM_TYPE, "body"),
    "bytes": (bytes(range(256)) * 100, FORM_TYPE, "body"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_forms(api: Api, data_dir: Path, name: str) -> None:
    content, content_type, field = CASES[name]
    response = api.http.post(
        "/attachments", content=content, headers={"Content-Type": content_type}
    )
    error = assert_failure(response, 400)
    assert [detail["field"] for detail in error["details"]] == [field], error
    assert "Error" not in error["message"]  # of Python
    assert not list((data_dir / "uploads").glob("*"))


@pytest.mark.parametrize(
    "content_type", ["application/json", "text/plain", "multipart/mixed; boundary=x", "", "x"]
)
def test_other_bodies(api: Api, content_type: str) -> None:
    response = api.http.post("/attachments", content=GOOD, headers={"Content-Type": content_type})
    assert_failure(response, 415)
    assert_failure(api.http.post("/attachments", json={}), 415)


@pytest.mark.parametrize(
    "content",
    [GOOD, GOOD + b"\r\n" * 100, b"\r\n" + GOOD, GOOD[:-2],
     GOOD.replace(b"; filename", b'; x="y"; filename')],
)  # fmt: skip
def test_unusual_good_forms(api: Api, content: bytes) -> None:
    response = api.http.post("/attachments", content=content, headers={"Content-Type": FORM_TYPE})
    assert api.unwrap(response, 201)["sizeBytes"] == 5


@pytest.mark.parametrize("size_bytes", [1, 7, 64, 1_000])
def test_forms_in_small_pieces(api: Api, size_bytes: int) -> None:
    content = b"\r\n--the-bound\r\n" * 20
    whole = form(part(content))
    pieces = (whole[at : at + size_bytes] for at in range(0, len(whole), size_bytes))
    response = api.http.post("/attachments", content=pieces, headers={"Content-Type": FORM_TYPE})
    attachment = api.unwrap(response, 201)
    assert api.http.get(attachment["url"]).content == content


def head(api: Api, *lines: str) -> bytes:
    fixed = ("POST /api/v1/attachments HTTP/1.1", "Host: x", f"Content-Type: {FORM_TYPE}")
    return "\r\n".join([*fixed, f"Authorization: Bearer {api.token}", *lines, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    """Until the server closes."""
    answer = b""
    while piece := connection.recv(65_536):
        answer += piece
    return answer


def test_a_body_that_stops_is_given_up(server: LiveServer, api: Api) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head(api, "Content-Length: 10000") + GOOD[:60])
        started = time.monotonic()
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"validation_error" in answer
    assert time.monotonic() - started > 10


def test_a_sender_that_goes_away_leaves_nothing(server: LiveServer, api: Api, execute: Any) -> None:
    before = execute("select count(*) from attachments")[0][0]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(api, "Content-Length: 10000") + GOOD[:100])
    wait_until(lambda: open_drafts(server) == 0)
    assert execute("select count(*) from attachments")[0][0] == before
    server.assert_no_defects()


def open_drafts(server: LiveServer) -> int:
    """Files without a name that the server has open."""
    links = []
    for path in Path(f"/proc/{server.pid}/fd").iterdir():
        try:
            links.append(str(path.readlink()))
        except FileNotFoundError:
            continue
    return sum("/uploads/" in link for link in links)


def test_curl_is_told_before_it_sends(server: LiveServer, api: Api) -> None:
    """With `Expect: 100-continue` not a byte of a body that is too large is sent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(api, "Content-Length: 1073741824", "Expect: 100-continue"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 413"), answer
    assert b"connection: close" in answer.lower()


def test_a_sender_in_full_swing_gets_the_answer(server: LiveServer, api: Api) -> None:
    """The connection is not reset while the answer is on its way."""
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(head(api, "Content-Length: 1073741824"))
            connection.sendall(b"x" * 4 * files.MIB)
            answer = connection.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 413"), answer


def send_blocks(connection: socket.socket, count: int) -> None:
    for _ in range(count):
        connection.sendall(b"x" * files.MIB)


def test_a_sender_that_never_ends_is_cut_off(server: LiveServer, api: Api) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head(api, "Content-Length: 1073741824"))
        with pytest.raises(ConnectionError):
            send_blocks(connection, 1_024)


def test_a_preamble_without_end_is_too_large(api: Api) -> None:
    sent: list[int] = []

    def endless() -> Any:
        yield from (block for block in iter(lambda: b"x" * 65_536, b"") if not sent.append(1))

    response = api.http.post("/attachments", content=endless(), headers={"Content-Type": FORM_TYPE})
    assert_failure(response, 413)
    assert len(sent) < 100 * files.MIB // 65_536
