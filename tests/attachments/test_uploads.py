"""Files come in as they are, get a type by their content, and go out by signed addresses."""

import time
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from messaging_server.security import Links
from tests.api import shapes
from tests.api.shapes import check
from tests.api.test_contract import assert_failure
from tests.attachments import files
from tests.attachments.files import image
from tests.client import Api, LiveServer
from tests.conftest import SECRET

HTML = b"<!DOCTYPE html><script>alert(1)</script>"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
TYPES: dict[str, tuple[str, bytes, str]] = {
    "PNG": ("a.png", image("PNG"), "image/png"),
    "JPEG": ("a.jpg", image("JPEG"), "image/jpeg"),
    "GIF": ("a.gif", image("GIF"), "image/gif"),
    "WebP": ("a.webp", image("WEBP"), "image/webp"),
    "AVIF": ("a.avif", image("AVIF"), "image/avif"),
    "BMP": ("a.bmp", image("BMP"), "image/bmp"),
    "TIFF": ("a.tiff", image("TIFF"), "image/tiff"),
    "PDF": ("a.pdf", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "application/pdf"),
    "zip": ("a.zip", files.zipped(a="hello"), "application/zip"),
    "docx": (
        "a.docx",
        files.office("word"),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ),
    "xlsx": (
        "a.xlsx",
        files.office("xl"),
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ),
    "odt": ("a.odt", files.open_document(), "application/vnd.oasis.opendocument.text"),
    "doc": ("a.doc", files.OLE, "application/x-ole-storage"),
    "gzip": ("a.gz", files.GZIP, "application/gzip"),
    "MP4": ("a.mp4", files.iso_media(b"isom"), "video/mp4"),
    "QuickTime": ("a.mov", files.iso_media(b"qt  "), "video/quicktime"),
    "M4A": ("a.m4a", files.iso_media(b"M4A "), "audio/mp4"),
    "HEIC": ("a.heic", files.iso_media(b"heic"), "image/heic"),
    "WebM": ("a.webm", files.matroska(b"webm"), "video/webm"),
    "Matroska": ("a.mkv", files.matroska(b"matroska"), "video/x-matroska"),
    "MP3": ("a.mp3", files.MP3_FRAME * 2, "audio/mpeg"),
    "MP3 with tags": ("a.mp3", b"ID3\x03\0\0\0\0\0\x0a" + b"\0" * 40, "audio/mpeg"),
    "Ogg": ("a.ogg", b"OggS\0\2" + b"\0" * 22 + b"\x01vorbis", "audio/ogg"),
    "WAV": ("a.wav", files.wav(), "audio/wav"),
    "program": ("a.exe", b"MZ\x90\0\3\0\0\0" + b"\0" * 200, "application/octet-stream"),
    "bytes": ("a.bin", bytes(range(256)), "application/octet-stream"),
    "text": ("a.txt", "mañana\r\n".encode(), "text/plain"),
    "old text": ("a.txt", "mañana".encode("latin-1"), "text/plain"),
    "wide text": ("a.txt", "mañana".encode("utf-16"), "text/plain"),
    "CSV": ("a.csv", b"a,b\n1,2\n", "text/plain"),
    "text like a signature": ("a.txt", b"BM is no bitmap, MZ no program", "text/plain"),
    "HTML named as an image": ("a.png", HTML, "text/html"),
    "HTML behind a comment": ("a.txt", b"\xef\xbb\xbf \n<!-- x --><BODY onload=x>", "text/html"),
    "HTML behind XML": ("a.xml", b'<?xml version="1.0"?><html/>', "text/html"),
    "SVG": ("a.svg", SVG, "image/svg+xml"),
    "SVG behind XML": ("a.png", b'<?xml version="1.0"?>\n<!-- x -->' + SVG, "image/svg+xml"),
    "SVG with a doctype": ("a.svg", b"<!DOCTYPE svg PUBLIC 'x'>" + SVG, "image/svg+xml"),
    "XML": ("a.xml", b'<?xml version="1.0"?><order/>', "application/xml"),
    "image with a script": ("a.gif", b"GIF89a/*" + b"\0" * 9 + b"*/=1;alert(1)", "image/gif"),
    "image with HTML in it": ("a.html", image("JPEG") + HTML, "image/jpeg"),
}
INLINE = {"PNG", "JPEG", "GIF", "WebP", "AVIF", "MP4", "M4A", "WebM", "MP3", "MP3 with tags"}
INLINE |= {"Ogg", "WAV", "image with a script", "image with HTML in it"}


@pytest.mark.parametrize("kind", TYPES)
def test_the_type_comes_from_the_content(api: Api, kind: str) -> None:
    name, content, content_type = TYPES[kind]
    uploaded = api.http.post("/attachments", files={"file": (name, content, "text/x-lie")})
    attachment = api.unwrap(uploaded, 201)
    check(attachment, shapes.ATTACHMENT)
    assert attachment["contentType"] == content_type
    assert (attachment["fileName"], attachment["sizeBytes"]) == (name, len(content))

    answer = httpx.get(attachment["url"])
    assert answer.content == content
    assert answer.headers["content-type"].partition(";")[0] == content_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    assert answer.headers["cache-control"].startswith("private")
    disposition = answer.headers["content-disposition"].partition(";")[0]
    assert disposition == ("inline" if kind in INLINE else "attachment")


NAMES = {
    "../../etc/passwd": "passwd",
    "..\\..\\windows\\system.ini": "system.ini",
    "C:\\fakepath\\a.txt": "a.txt",
    "/": "file",
    "..": "file",
    ".htaccess": "htaccess",
    "a\tb\x7f.txt": "ab.txt",
    "cod\u202efdp.exe": "codfdp.exe",
    "\u2066a\u2069\u200f.txt": "a.txt",
    "  a b.txt ": "a b.txt",
    "mañana 日本 👩‍💻.txt": "mañana 日本 👩‍💻.txt",
    "e\u0301.txt": "\u00e9.txt",
    "a;b'c,d=e.txt": "a;b'c,d=e.txt",
    "<b>%0D%0AX: y.txt": "<b>X: y.txt",
    "x" * 400 + ".pdf": "x" * 251 + ".pdf",
    "x" * 400: "x" * 255,
}


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_names_are_cleaned_and_never_used_for_storing(api: Api, data_dir: Path, name: str) -> None:
    content = uuid4().bytes.hex().encode()
    response = api.http.post(
        "/attachments",
        content=files.form(files.part(content, file_name=name)),
        headers={"Content-Type": files.FORM_TYPE},
    )
    attachment = api.unwrap(response, 201)
    assert attachment["fileName"] == NAMES[name]
    answer = httpx.get(attachment["url"])
    assert answer.content == content
    disposition = answer.headers["content-disposition"]
    assert disposition.isascii()
    quoted = httpx.QueryParams({"n": NAMES[name]})["n"]
    assert httpx.URL(f"http://x/?n={disposition.partition(chr(39) * 2)[2]}").params["n"] == quoted
    stored = [path.name for path in (data_dir / "attachments").rglob(f"{attachment['id']}*")]
    assert stored == [attachment["id"]]


def test_a_name_with_nul(api: Api) -> None:
    body = files.form(files.part(b"x", file_name="a\0b.txt"))
    response = api.http.post(
        "/attachments", content=body, headers={"Content-Type": files.FORM_TYPE}
    )
    assert api.unwrap(response, 201)["fileName"] == "ab.txt"


def test_only_the_owner_may_enter_the_folders(api: Api, data_dir: Path) -> None:
    api.upload()
    for folder in ("attachments", "uploads"):
        assert (data_dir / folder).stat().st_mode & 0o777 == 0o700
    assert not list((data_dir / "uploads").iterdir())


# --- Signed addresses -------------------------------------------------------------------------


def test_an_address_is_absolute_and_needs_no_token(server: LiveServer, api: Api) -> None:
    attachment = api.upload()
    assert attachment["url"].startswith(f"{server.url}/api/v1/attachments/{attachment['id']}/")
    assert httpx.get(attachment["url"]).content == b"hello"
    expires = int(httpx.URL(attachment["url"]).params["expires"])
    assert 3_600 <= expires - time.time() <= 5_400
    assert api.get(f"/attachments/{attachment['id']}")["url"] == attachment["url"]


def changed(url: str, **params: str | None) -> httpx.URL:
    address = httpx.URL(url)
    kept = {key: value for key, value in address.params.items() if key not in params}
    return address.copy_with(params=kept | {k: v for k, v in params.items() if v is not None})


def test_no_other_address_opens_anything(api: Api) -> None:
    picture = api.upload(image("PNG"), "a.png")
    other = api.upload(image("PNG"), "b.png")
    url, thumbnail_url = picture["url"], picture["thumbnailUrl"]
    signature = httpx.URL(url).params["signature"]
    forged = [
        changed(url, expires="99999999999"),
        changed(url, expires=str(int(time.time()) - 1)),
        changed(url, signature=httpx.URL(other["url"]).params["signature"]),
        changed(url, signature=httpx.URL(thumbnail_url).params["signature"]),
        changed(url, signature=signature[:-1]),
        changed(url, signature=signature.swapcase()),
        changed(url, signature="ñ"),
        changed(url, thumbnail="true"),
        changed(thumbnail_url, thumbnail=None),
        changed(thumbnail_url, thumbnail="false"),
        url.replace(picture["id"], other["id"]),
        url.replace(picture["id"], str(uuid4())),
    ]
    messages = {assert_failure(httpx.get(address), 403)["message"] for address in forged}
    assert len(messages) == 1
    assert httpx.get(changed(url, thumbnail="false")).status_code == 200


def test_an_expired_address(api: Api) -> None:
    """Signed as the server signs; it was good until a second ago."""
    attachment = api.upload()
    links = Links(SECRET, public_url="x")
    for seconds, status in ((60, 200), (-1, 403)):
        expires = int(time.time()) + seconds
        signature = links._sign(UUID(attachment["id"]), expires, thumbnail=False)
        address = changed(attachment["url"], expires=str(expires), signature=signature)
        assert httpx.get(address).status_code == status


@pytest.mark.parametrize(
    "query",
    ["", "expires=1", "signature=x", "expires=x&signature=x", "expires=-1&signature=x",
     f"expires={'9' * 30}&signature=x", "expires=1&signature=", "expires=1&signature=x&a=1",
     "expires=1&expires=2&signature=x", f"expires=1&signature={'x' * 200}",
     "expires=1&signature=x&thumbnail=maybe"],
)  # fmt: skip
def test_unreadable_addresses(api: Api, query: str) -> None:
    attachment = api.upload()
    assert_failure(httpx.get(f"{attachment['url'].partition('?')[0]}?{query}"), 400)


RANGES: dict[str, tuple[int, bytes | None, str | None]] = {
    "bytes=0-1": (206, b"he", "bytes 0-1/5"),
    "bytes=2-": (206, b"llo", "bytes 2-4/5"),
    "bytes=-2": (206, b"lo", "bytes 3-4/5"),
    "bytes=-99": (206, b"hello", "bytes 0-4/5"),
    "bytes=4-99": (206, b"o", "bytes 4-4/5"),
    "bytes=5-": (416, None, "bytes */5"),
    "bytes=3-2": (200, b"hello", None),
    "bytes=-0": (416, None, "bytes */5"),
    "bytes=9-12": (416, None, "bytes */5"),
    "bytes=-": (200, b"hello", None),
    "bytes=0-1,3-4": (200, b"hello", None),
    "lines=0-1": (200, b"hello", None),
    f"bytes={'9' * 40}-": (200, b"hello", None),
}


@pytest.mark.parametrize("asked", RANGES)
def test_ranges(api: Api, asked: str) -> None:
    status, content, content_range = RANGES[asked]
    answer = httpx.get(api.upload()["url"], headers={"Range": asked})
    assert answer.headers.get("content-range") == content_range
    if content is None:
        assert assert_failure(answer, status)["code"] == "range_not_satisfiable"
        return
    assert (answer.status_code, answer.content) == (status, content)
    assert answer.headers["content-length"] == str(len(content))


def test_an_address_without_its_query(api: Api) -> None:
    address = httpx.URL(api.upload()["url"])
    for name in ("expires", "signature"):
        query = address.params.remove(name)
        error = assert_failure(httpx.get(address.copy_with(query=str(query).encode())), 400)
        assert [detail["field"] for detail in error["details"]] == [name]


@pytest.mark.parametrize("path", ["/api/v1/attachments", "/api/public/v1/attachments"])
def test_the_document_describes_the_form(server: LiveServer, path: str) -> None:
    document = httpx.get(f"{server.url}/docs/openapi.json").json()
    body = document["paths"][path]["post"]["requestBody"]
    assert body["required"] is True
    schema = body["content"]["multipart/form-data"]["schema"]
    assert schema["required"] == ["file"]
    assert schema["properties"] == {"file": {"type": "string", "format": "binary"}}


def test_a_large_file_comes_back_whole(api: Api) -> None:
    content = bytes(range(256)) * 40_000
    assert httpx.get(api.upload(content)["url"]).content == content


# --- Who sees what ----------------------------------------------------------------------------


def test_who_gets_fresh_addresses(api: Api, agent: Api, stranger: Api) -> None:
    attachment = agent.upload()
    path = f"/attachments/{attachment['id']}"
    for user in (agent, api):
        assert user.get(path) == attachment
    foreign = stranger.get(path, expect=404)
    unknown = stranger.get(f"/attachments/{uuid4()}", expect=404)
    assert foreign["message"] == unknown["message"]
    with Api(api.url) as nobody:
        nobody.get(path, expect=401)

    conversation = api.new_conversation(stranger)
    sent = api.upload()
    api.send(conversation["id"], attachmentIds=[sent["id"]])
    assert stranger.get(f"/attachments/{sent['id']}")["id"] == sent["id"]
    agent.get(f"/attachments/{sent['id']}", expect=404)
    api.post(f"/conversations/{conversation['id']}/assign", {"agentId": None})
    stranger.get(f"/attachments/{sent['id']}", expect=404)
