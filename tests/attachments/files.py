"""Files as people and attackers make them, and forms around them."""

import gzip
import io
import struct
import wave
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

BOUNDARY = "the-boundary"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
MIB = 1_048_576


def image(kind: str, size: tuple[int, int] = (64, 48), *, orientation: int = 1) -> bytes:
    output = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "a secret in the metadata"
    picture = Image.new("RGB", size, (200, 30, 30))
    picture.paste((30, 30, 200), (0, 0, size[0] // 2, size[1] // 2))
    picture.save(output, kind, exif=exif) if kind in ("JPEG", "PNG", "WEBP") else picture.save(
        output, kind
    )
    return output.getvalue()


def zipped(**files: str) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/"), text)
    return output.getvalue()


def office(folder: str) -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(f"{folder}/document.xml", "<document/>")
    return output.getvalue()


def open_document() -> bytes:
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.text")
    return output.getvalue()


def wav() -> bytes:
    output = io.BytesIO()
    with wave.open(output, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8_000)
        sound.writeframes(b"\0\1" * 100)
    return output.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A small PNG whose header, and whose compressed zeros, ask for `width` times `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    squeezed = zlib.compressobj(9)
    rows = squeezed.compress(bytes(min((1 + 3 * width) * height, 64 * MIB))) + squeezed.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG of 49 megapixels whose many scans are empty: small, and slow to read."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    quantization = segment(0xDB, b"\0" + b"\1" * 64)
    frame = segment(0xC2, struct.pack(">BHHB", 8, 7_000, 7_000, 1) + b"\1\x11\0")
    dc_codes = segment(0xC4, b"\0" + bytes([1, *[0] * 15]) + b"\0")
    ac_codes = segment(0xC4, b"\x10" + bytes([1, 1, *[0] * 14]) + b"\xe0\0")
    dc_scan = segment(0xDA, b"\1\1\0\0\0\0") + b"\0"
    runs = -(-875 * 875 // 32_767)
    bits = "011111111111111" * runs
    bits += "1" * (-len(bits) % 8)
    skipped = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    ac_scan = segment(0xDA, b"\1\1\0\1\x3f\0") + skipped
    head = b"\xff\xd8" + quantization + frame + dc_codes + ac_codes + dc_scan
    return head + ac_scan * scans + b"\xff\xd9"


def chunk_bomb(chunks: int) -> bytes:
    """A PNG of many private chunks without content, of which a reader keeps a note each."""
    png = image("PNG")
    kind = b"prVt"
    empty = struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))
    return png[:33] + empty * chunks + png[33:]


def iso_media(brand: bytes) -> bytes:
    return b"\0\0\0\x20ftyp" + brand + b"\0\0\2\0isomiso2avc1mp41" + b"\0" * 100


def matroska(kind: bytes) -> bytes:
    head = b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08"
    return head + b"\x42\x82" + bytes([0x80 + len(kind)]) + kind + b"\0" * 50


MP3_FRAME = b"\xff\xfb\x90\x64" + b"\0" * 413
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600
GZIP = gzip.compress(b"hello" * 10)


def part(content: bytes, *, name: str = "file", file_name: str | None = "a.txt") -> bytes:
    disposition = f'form-data; name="{name}"'
    if file_name is not None:
        disposition += f'; filename="{file_name}"'
    head = f"--{BOUNDARY}\r\nContent-Disposition: {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def endless_form(size_bytes: int, sent: list[int]) -> Iterator[bytes]:
    """A form with a file of this size, in parts; `sent` gets how much of it was taken."""
    yield part(b"")[:-2]
    block = b"x" * 65_536
    sent.append(0)
    while sent[0] < size_bytes:
        yield block
        sent[0] += len(block)
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def resident_bytes(pid: int) -> int:
    """What the process has in memory now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * 4_096


def peak_bytes(pid: int) -> int:
    """The most that the process ever had in memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError("no VmHWM")


def forget_peak(pid: int) -> None:
    """`peak_bytes` counts from now on (Linux)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
