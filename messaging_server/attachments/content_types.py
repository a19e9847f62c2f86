"""What kind of file it is, by its first bytes: never by its name or by what the sender says.

The kinds that browsers may show are recognised here by exact signatures, and so are the usual
documents; text that browsers could run (HTML, SVG, XML) is told from plain text as in the MIME
Sniffing Standard (https://mimesniff.spec.whatwg.org).
"""

import re

HEAD_BYTES = 4_096
BINARY = "application/octet-stream"
TEXT = "text/plain"
ZIP = "application/zip"

IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp", "image/avif"})
INLINE = IMAGES | {
    "audio/flac",
    "audio/mp4",
    "audio/mpeg",
    "audio/ogg",
    "audio/wav",
    "video/mp4",
    "video/ogg",
    "video/webm",
}
"""What a browser may show beside a page; everything else is for downloading only."""

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
    (0, b"\0\0\x01\0", "image/x-icon"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"PK\x05\x06", ZIP),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "application/x-ole-storage"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"#!AMR", "audio/amr"),
)
_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"qt  ": "video/quicktime",
    b"3gp4": "video/3gpp",
    b"3gp5": "video/3gpp",
    b"3gp6": "video/3gpp",
}
_OFFICE = "application/vnd.openxmlformats-officedocument"
_PACKAGED = (
    (b"word/", f"{_OFFICE}.wordprocessingml.document"),
    (b"xl/", f"{_OFFICE}.spreadsheetml.sheet"),
    (b"ppt/", f"{_OFFICE}.presentationml.presentation"),
)
_OPEN_DOCUMENT = re.compile(rb"mimetype(application/vnd\.oasis\.opendocument\.[a-z-]{1,40})")
_BINARY_BYTE = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
_LEADING = re.compile(rb"(?:\s|\xef\xbb\xbf|<!--.*?-->|<\?.*?\?>)*", re.DOTALL)
_MARKUP = re.compile(rb"<(?:!doctype\s+)?(?:[\w-]+:)?([a-z][\w-]*)", re.IGNORECASE)
_HTML = frozenset(
    b"html head body script iframe h1 div font table a style title b br p img form link meta "
    b"object embed video audio svg".split()
)


def find_content_type(head: bytes) -> str:
    """`head` is the file's first `HEAD_BYTES`."""
    if head.startswith((b"\xfe\xff", b"\xff\xfe")) and not head.startswith(b"\xff\xfe\0\0"):
        return TEXT
    found = _by_signature(head)
    if found is not None:
        return found
    return BINARY if _BINARY_BYTE.search(head) or not head else _kind_of_text(head)


def _by_signature(head: bytes) -> str | None:
    for offset, signature, content_type in _SIGNATURES:
        if head.startswith(signature, offset):
            return content_type
    if head.startswith(b"RIFF"):
        return _RIFF.get(head[8:12])
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video/mp4")
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(head)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "video/webm" if b"webm" in head[:64] else "video/x-matroska"
    if head.startswith(b"OggS"):
        return "video/ogg" if b"theora" in head[:64] else "audio/ogg"
    if head.startswith(b"BM") and _BINARY_BYTE.search(head):
        return "image/bmp"
    return "audio/mpeg" if _is_mp3(head) else None


def _kind_of_zip(head: bytes) -> str:
    if document := _OPEN_DOCUMENT.search(head, 0, 200):
        return document[1].decode()
    if b"[Content_Types].xml" in head:
        for folder, content_type in _PACKAGED:
            if folder in head:
                return content_type
    return ZIP


def _is_mp3(head: bytes) -> bool:
    """A frame of MPEG audio, layer III, with a bit rate and a sampling rate that exist."""
    return (
        len(head) > 4
        and head[0] == 0xFF
        and head[1] in (0xFB, 0xFA, 0xF3, 0xF2)
        and head[2] >> 4 not in (0x0, 0xF)
        and (head[2] >> 2) & 3 != 3
    )


def _kind_of_text(head: bytes) -> str:
    """HTML wherever a browser might take it for that."""
    leading = _LEADING.match(head)
    assert leading is not None
    tag = _MARKUP.match(head, leading.end())
    name = tag[1].lower() if tag else b""
    if name == b"svg":
        return "image/svg+xml"
    if name in _HTML:
        return "text/html"
    if b"<?xml" in leading[0] or leading[0].strip(b"\xef\xbb\xbf \t\r\n\f").startswith(b"<?"):
        return "application/xml"
    return "text/html" if b"<!--" in leading[0] else TEXT
