"""The rules that need no server: names, types, ranges and signed addresses, for any input."""

import re
import time
import unicodedata
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from messaging_server.attachments.content_types import HEAD_BYTES, INLINE, find_content_type
from messaging_server.attachments.form import clean_name
from messaging_server.attachments.routes import content_disposition, find_span
from messaging_server.attachments.service import Download
from messaging_server.errors import Forbidden, RangeNotSatisfiable
from messaging_server.models import VISIBLE
from messaging_server.security import Links
from tests.conftest import SECRET

LINKS = Links(SECRET, public_url="https://inbox.example.com/")


@given(st.text(max_size=400))
@example("\u200b\u2060")
def test_names_are_short_and_visible(name: str) -> None:
    cleaned = clean_name(name)
    assert len(cleaned) <= 255
    assert re.search(VISIBLE, cleaned)
    assert cleaned == cleaned.strip()
    assert not cleaned.startswith(".")
    assert not set(cleaned) & set("/\\\0\r\n\u202e\u2066")
    assert all(unicodedata.category(character) != "Cc" for character in cleaned)
    assert clean_name(cleaned) == cleaned


@given(st.text(min_size=1, max_size=300).map(clean_name))
def test_a_header_holds_any_name(name: str) -> None:
    header = content_disposition(Download(name, "text/html", 1, "key"))
    assert header.startswith("attachment; ")
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2


@given(st.binary(max_size=HEAD_BYTES))
def test_every_content_has_a_type(head: bytes) -> None:
    kind, _, name = find_content_type(head).partition("/")
    assert kind in ("application", "audio", "image", "text", "video")
    assert name


@given(
    st.sampled_from([b"<html>", b"<SCRIPT>", b"<!DOCTYPE html>", b"<svg ", b"<x:svg>", b"<body\n"]),
    st.lists(st.sampled_from([b" ", b"\n", b"\t", b"\xef\xbb\xbf", b"<!-- x -->", b"<?xml ?>"])),
    st.binary(max_size=100).map(lambda rest: bytes(byte for byte in rest if byte >= 32)),
)
def test_markup_is_never_inline(tag: bytes, before: list[bytes], rest: bytes) -> None:
    assert find_content_type(b"".join(before) + tag + rest) in ("text/html", "image/svg+xml")


def test_nothing_that_runs_is_inline() -> None:
    assert not {kind for kind in INLINE if "xml" in kind or "html" in kind or "text" in kind}
    assert {kind.partition("/")[0] for kind in INLINE} == {"audio", "image", "video"}


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d{0,4}-\d{0,4}", fullmatch=True))
def test_a_range_is_inside_or_all_or_behind(asked: str) -> None:
    try:
        span = find_span(asked, 1_000)
    except RangeNotSatisfiable:
        assert asked == "bytes=-" + "0" * len(asked[7:]) or int(asked[6:].split("-")[0]) >= 1_000
    else:
        assert span is None or 0 <= span[0] < span[1] <= 1_000


def opened(url: str, attachment_id: UUID, links: Links = LINKS) -> None:
    params = httpx.URL(url).params
    links.check(
        attachment_id,
        expires=int(params["expires"]),
        signature=params["signature"],
        thumbnail="thumbnail" in params,
    )


@pytest.mark.parametrize("thumbnail", [True, False])
def test_an_address_holds_for_an_hour_and_stays_for_half_of_one(thumbnail: bool) -> None:
    attachment_id, start = uuid4(), time.time() // 1_800 * 1_800
    urls = set()
    for second in (0, 1, 900, 1_799):
        with patch("time.time", return_value=start + second):
            urls.add(LINKS.content(attachment_id, thumbnail=thumbnail))
    (url,) = urls
    prefix = "https://inbox.example.com/api/v1/attachments"
    assert url.startswith(f"{prefix}/{attachment_id}/content?")
    with patch("time.time", return_value=start + 1_799 + 3_600):
        opened(url, attachment_id)
    with patch("time.time", return_value=start + 5_400), pytest.raises(Forbidden):
        opened(url, attachment_id)


def test_another_secret_signs_otherwise() -> None:
    attachment_id = uuid4()
    others = Links(SECRET + "x", public_url="https://inbox.example.com")
    with pytest.raises(Forbidden):
        opened(others.content(attachment_id), attachment_id)
    opened(others.content(attachment_id), attachment_id, others)
    with pytest.raises(Forbidden):
        opened(LINKS.content(attachment_id), uuid4())
