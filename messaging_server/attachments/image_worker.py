"""Width, height and a thumbnail of the image on standard input: a program of its own.

It writes a line of JSON, `[width, height]`, and then the thumbnail. Nothing at all for what is no
image, is broken, has too many pixels, or needs more memory or time than the process may have.
What hostile files do to decoders they do here, and not to the server.
"""

import contextlib
import io
import json
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 50_000_000
MAX_DECODED_PIXELS = 25_000_000
MAX_MEMORY_BYTES = 536_870_912
MAX_CPU_SECONDS = 10
NICENESS = 10
THUMBNAIL_PIXELS = 480
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF")
ORIENTATION = 0x0112
QUARTER_TURNS = frozenset({5, 6, 7, 8})


def main() -> int:
    limit_itself()
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # Pillow would only warn; `describe` refuses before it decodes
    try:
        with Image.open(sys.stdin.buffer, formats=FORMATS) as image:
            answer = describe(image)
    except Exception:  # noqa: BLE001  # decoders raise anything for hostile content
        return 1
    sys.stdout.buffer.write(answer)
    return 0


def limit_itself() -> None:
    """Where the system has such limits; the server ends what goes on for too long anyway."""
    if sys.platform == "win32":
        return
    import resource

    limits = {
        resource.RLIMIT_AS: MAX_MEMORY_BYTES,
        resource.RLIMIT_CPU: MAX_CPU_SECONDS,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (value, value))
    os.nice(NICENESS)


def describe(image: "Image.Image") -> bytes:
    """The answer, empty for too many pixels; JPEGs are decoded at a fraction of their size."""
    from PIL import Image, ImageOps

    width, height = image.size
    if width * height > MAX_PIXELS:
        return b""
    image.draft("RGB", (2 * THUMBNAIL_PIXELS, 2 * THUMBNAIL_PIXELS))
    if image.width * image.height > MAX_DECODED_PIXELS:
        return b""
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
    return json.dumps([width, height]).encode() + b"\n" + output.getvalue()


if __name__ == "__main__":
    sys.exit(main())
