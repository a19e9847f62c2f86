"""Images get their size and a thumbnail; what is broken or a bomb is a file like any other."""

import contextlib
import io
import struct
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.attachments.files import (
    MIB,
    chunk_bomb,
    forget_peak,
    image,
    peak_bytes,
    png_bomb,
    scan_bomb,
)
from tests.client import Api, LiveServer, wait_until
from tests.conftest import SECRET, live_server
from tests.public.site import Site

BLUE = (30, 30, 200)


def thumbnail_of(attachment: dict[str, Any]) -> Image.Image:
    answer = httpx.get(attachment["thumbnailUrl"])
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["content-disposition"].startswith("inline")
    assert int(answer.headers["content-length"]) == len(answer.content)
    return Image.open(io.BytesIO(answer.content))


def is_like(pixel: Any, color: tuple[int, int, int]) -> bool:
    return all(abs(a - b) < 60 for a, b in zip(pixel[:3], color, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "AVIF"])
@pytest.mark.parametrize("size", [(1_200, 600), (300, 900), (40, 20), (1, 1)])
def test_size_and_thumbnail(api: Api, kind: str, size: tuple[int, int]) -> None:
    attachment = api.upload(image(kind, size), "a.png")
    assert (attachment["width"], attachment["height"]) == size
    thumbnail = thumbnail_of(attachment)
    factor = min(1, 480 / max(size))
    assert thumbnail.size == (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
    if size[0] > 1:
        assert is_like(thumbnail.convert("RGB").getpixel((1, 1)), BLUE)


CORNERS = {
    "top left": (2, 2),
    "top right": (-3, 2),
    "bottom right": (-3, -3),
    "bottom left": (2, -3),
}
BLUE_CORNERS = dict(enumerate([*CORNERS, *CORNERS], start=1))
"""Where a quarter is that was stored as the top left one, by EXIF orientation."""


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_thumbnail_stands_upright(api: Api, kind: str, orientation: int) -> None:
    attachment = api.upload(image(kind, (800, 400), orientation=orientation), "a.jpg")
    size = (400, 800) if orientation >= 5 else (800, 400)
    assert (attachment["width"], attachment["height"]) == size
    thumbnail = thumbnail_of(attachment).convert("RGB")
    assert thumbnail.size == ((240, 480) if orientation >= 5 else (480, 240))
    blue = [
        name
        for name, (x, y) in CORNERS.items()
        if is_like(thumbnail.getpixel((x % thumbnail.width, y % thumbnail.height)), BLUE)
    ]
    assert blue == [BLUE_CORNERS[orientation]]


def test_metadata_is_not_copied(api: Api) -> None:
    content = image("JPEG", (600, 600))
    assert b"a secret" in content
    attachment = api.upload(content, "a.jpg")
    assert b"a secret" in httpx.get(attachment["url"]).content
    assert b"a secret" not in httpx.get(attachment["thumbnailUrl"]).content
    assert not thumbnail_of(attachment).getexif()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK"])
def test_other_modes(api: Api, mode: str) -> None:
    output = io.BytesIO()
    picture = Image.new(mode if mode != "P" else "RGBA", (600, 300))
    if mode == "P":
        picture = picture.quantize(16)
    picture.save(output, "JPEG" if mode == "CMYK" else "PNG")
    attachment = api.upload(output.getvalue(), "a.png")
    assert thumbnail_of(attachment).size == (480, 240)
    is_clear = thumbnail_of(attachment).mode == "RGBA"
    assert is_clear == (mode in ("LA", "P", "RGBA"))


def broken() -> dict[str, bytes]:
    jpeg, png = image("JPEG", (640, 480)), image("PNG", (640, 480))
    return {
        "signature only": png[:8],
        "cut in the header": png[:20],
        "cut in the pixels": png[: len(png) // 2],
        "JPEG cut off": jpeg[: len(jpeg) // 2],
        "wrong checksum": png[:20] + b"\xff" + png[21:],
        "nothing after the start": b"\xff\xd8\xff" + b"\0" * 100,
        "GIF of zeros": b"GIF89a" + b"\0" * 100,
        "WebP of zeros": b"RIFF\x64\0\0\0WEBPVP8 " + b"\0" * 100,
        "AVIF of zeros": b"\0\0\0\x20ftypavif" + b"\0" * 100,
        "no width": png[:16] + struct.pack(">I", 0) + png[20:],
    }


@pytest.mark.parametrize("name", broken())
def test_broken_images_are_files(api: Api, name: str) -> None:
    attachment = api.upload(broken()[name], "a.png")
    assert attachment["contentType"].startswith("image/")
    assert (attachment["width"], attachment["height"], attachment["thumbnailUrl"]) == (None,) * 3
    assert httpx.get(attachment["url"]).content == broken()[name]


@pytest.mark.parametrize(
    "size", [(60_000, 60_000), (2_147_483_647, 1), (10_000, 5_001), (6_000, 6_000)]
)
def test_bombs_are_files(server: LiveServer, api: Api, size: tuple[int, int]) -> None:
    forget_peak(server.pid)
    before = peak_bytes(server.pid)
    attachment = api.upload(png_bomb(*size), "bomb.png")
    assert attachment["thumbnailUrl"] is None
    assert attachment["width"] is None
    assert peak_bytes(server.pid) - before < 32 * MIB


def test_a_photo_of_fifty_megapixels_has_a_thumbnail(api: Api) -> None:
    attachment = api.upload(image("JPEG", (8_000, 6_000)), "a.jpg")
    assert (attachment["width"], attachment["height"]) == (8_000, 6_000)
    assert thumbnail_of(attachment).size == (480, 360)


# --- What takes long --------------------------------------------------------------------------

SLOW = scan_bomb(12_000)
SLOW_FILE = ("a.jpg", SLOW)


def workers(pid: int) -> list[Path]:
    """The processes that read images for this server."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(
                (process / "stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]
            )
            if parent == pid and b"image_worker" in (process / "cmdline").read_bytes():
                found.append(process)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_an_image_that_takes_too_long_is_a_file(server: LiveServer, api: Api) -> None:
    """A visitor's, while users' images are read as always."""
    assert len(SLOW) < MIB
    site = Site(api)
    answers: list[dict[str, Any]] = []

    def upload() -> None:
        answers.append(site.visitor().http.post("/attachments", files={"file": SLOW_FILE}).json())

    sending = threading.Thread(target=upload)
    sending.start()
    worker = wait_until(lambda: workers(server.pid))[0]
    assert SECRET.encode() not in wait_until((worker / "environ").read_bytes)
    assert api.upload(image("PNG"), "a.png")["width"] == 64
    assert workers(server.pid)  # the slow one is still at work
    sending.join(60)
    assert answers[0]["data"]["width"] is None
    assert answers[0]["data"]["contentType"] == "image/jpeg"
    assert workers(server.pid) == []
    site.close()


def test_it_does_not_delay_the_end_of_the_server(dsn: str) -> None:
    with live_server(dsn, MESSAGING_SERVER__SHUTDOWN_SECONDS="1") as server:
        with Api.first_admin(server.url) as admin:
            url, token = f"{server.url}/api/v1/attachments", admin.token
        headers = {"Authorization": f"Bearer {token}"}

        def upload() -> None:
            with contextlib.suppress(httpx.TransportError):
                httpx.post(url, files={"file": SLOW_FILE}, headers=headers, timeout=30)

        sending = threading.Thread(target=upload)
        sending.start()
        worker = wait_until(lambda: workers(server.pid))[0]
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 9  # the image would take longer
        wait_until(lambda: not worker.exists())
        sending.join(30)
        assert not sending.is_alive()


def test_millions_of_chunks_cost_the_server_nothing(server: LiveServer, api: Api) -> None:
    content = chunk_bomb(2_000_000)
    forget_peak(server.pid)
    before = peak_bytes(server.pid)
    attachment = api.upload(content, "a.png")
    assert attachment["sizeBytes"] == len(content)
    assert peak_bytes(server.pid) - before < 32 * MIB
