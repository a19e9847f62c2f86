"""Width, height and a thumbnail of an image, by a process that a hostile file may break.

`image_worker` is that process. What it can't read in time and in its memory is a file like any
other.
"""

import asyncio
import contextlib
import io
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from typing import Annotated

import msgspec
from loguru import logger
from msgspec import Meta, Struct

from messaging_server.attachments import image_worker

MAX_IMAGE_BYTES = 33_554_432
MAX_ANSWER_BYTES = 1_048_576
THUMBNAIL_TYPE = "image/webp"
SECONDS = 10.0
WAITING_SECONDS = 10.0
COMMAND = (sys.executable, "-P", "-m", image_worker.__name__)
INHERITED = ("SYSTEMROOT", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

Pixels = Annotated[int, Meta(ge=1, le=image_worker.MAX_PIXELS)]


class ImageFacts(Struct, frozen=True):
    """An image as it is shown, turned upright; the thumbnail is WebP without metadata."""

    width: int
    height: int
    thumbnail: bytes


class Images:
    """Reads one image at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    async def look_at(self, file: io.FileIO) -> ImageFacts | None:
        """None for what is no image, is broken, has too many pixels, or takes too long.

        So it is for one that would have to wait too long for its turn.
        """
        try:
            async with asyncio.timeout(WAITING_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            logger.warning("An image has no thumbnail: others took too long before it")
            return None
        try:
            return _facts(await _ask(file))
        finally:
            self._turn.release()


async def _ask(file: io.FileIO) -> bytes:
    """The worker's answer; it does not outlive this call, however that ends."""
    file.seek(0)
    try:
        worker = await asyncio.create_subprocess_exec(
            *COMMAND, stdin=file, stdout=PIPE, stderr=DEVNULL, env=_environment()
        )
    except OSError as error:
        logger.warning("Images can't be read: {}", error)
        return b""
    try:
        async with asyncio.timeout(SECONDS):
            return await _read_answer(worker)
    except TimeoutError:
        logger.warning("An image took longer than {} s to read", SECONDS)
        return b""
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        await worker.wait()


def _environment() -> dict[str, str]:
    """The modules of this process, and none of its secrets."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    path = os.pathsep.join(filter(None, sys.path))
    return {**inherited, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}


async def _read_answer(worker: Process) -> bytes:
    assert worker.stdout is not None
    try:
        await worker.stdout.readexactly(MAX_ANSWER_BYTES)
    except asyncio.IncompleteReadError as ended:
        return ended.partial
    return b""


def _facts(answer: bytes) -> ImageFacts | None:
    size, _, thumbnail = answer.partition(b"\n")
    try:
        width, height = msgspec.json.decode(size, type=tuple[Pixels, Pixels])
    except msgspec.MsgspecError:
        return None
    return ImageFacts(width, height, thumbnail) if thumbnail else None
