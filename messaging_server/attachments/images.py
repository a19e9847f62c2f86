"""Width, height and a thumbnail of an image, within limits of pixels and time.

Pillow runs in one thread of its own, so at most one image is in memory at a time. What it can't
read, or what would need too much memory, is a file like any other.
"""

import asyncio
import io
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

from loguru import logger
from msgspec import Struct
from PIL import Image, ImageOps

MAX_IMAGE_BYTES = 33_554_432
MAX_PIXELS = 50_000_000
MAX_DECODED_PIXELS = 25_000_000
THUMBNAIL_PIXELS = 480
THUMBNAIL_TYPE = "image/webp"
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF")
SECONDS = 10.0
ORIENTATION = 0x0112
QUARTER_TURNS = frozenset({5, 6, 7, 8})

Image.MAX_IMAGE_PIXELS = None  # Pillow would only warn; `_facts` refuses before it decodes


class ImageFacts(Struct, frozen=True):
    """An image as it is shown, turned upright; the thumbnail is WebP without metadata."""

    width: int
    height: int
    thumbnail: bytes


class Images:
    """The thread that reads images."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._turn = asyncio.Lock()

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def look_at(self, content: Callable[[], Awaitable[bytes]]) -> ImageFacts | None:
        """None for what is no image, is broken, has too many pixels, or takes too long.

        `content` is asked for when it is this image's turn.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            reading = loop.run_in_executor(self._executor, _read, await content())
            try:
                return await asyncio.wait_for(reading, SECONDS)
            except TimeoutError:
                logger.warning("An image took longer than {} s to read", SECONDS)
                return None


def _read(content: bytes) -> ImageFacts | None:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _facts(image)
    except Exception as error:  # noqa: BLE001  # decoders raise anything for hostile content
        logger.debug("An image can't be read: {}", repr(error))
        return None


def _facts(image: Image.Image) -> ImageFacts | None:
    """JPEGs are decoded at a fraction of their size, all others as a whole."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        return None
    image.draft("RGB", (2 * THUMBNAIL_PIXELS, 2 * THUMBNAIL_PIXELS))
    if image.width * image.height > MAX_DECODED_PIXELS:
        return None
    image.load()
    orientation = image.getexif().get(ORIENTATION)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    small = image if image.mode == mode else image.convert(mode)
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    upright = ImageOps.exif_transpose(small)
    bare = Image.new(mode, upright.size)
    bare.paste(upright)
    output = io.BytesIO()
    bare.save(output, "WEBP", quality=80)
    if orientation in QUARTER_TURNS:
        width, height = height, width
    return ImageFacts(width, height, output.getvalue())
