"""Attachments: files that are uploaded first, sent with a message later, and read by address.

An upload goes into a file without a name, then to the store, then into the database, so that
whatever fails in between leaves nothing behind that somebody could see.
"""

import asyncio
import contextlib
import functools
import io
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import UUID

import asyncpg
from msgspec import Struct
from uuid_utils.compat import uuid7

from messaging_server.attachments import queries
from messaging_server.attachments.content_types import HEAD_BYTES, IMAGES, find_content_type
from messaging_server.attachments.form import receive_file
from messaging_server.attachments.images import (
    MAX_IMAGE_BYTES,
    THUMBNAIL_TYPE,
    ImageFacts,
    Images,
)
from messaging_server.attachments.queries import NewAttachment, Uploader
from messaging_server.attachments.storage import (
    Storage,
    make_private_folder,
    require_room,
    storage_errors,
)
from messaging_server.config import StorageConfig
from messaging_server.database import Database
from messaging_server.errors import (
    BodyRefused,
    NotFound,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from messaging_server.models import Attachment, Caller

P = ParamSpec("P")
R = TypeVar("R")

UPLOAD_SECONDS = 900
WAITING_SECONDS = 60
SLOW_SECONDS = 10
LEAST_BYTES_PER_SECOND = 16_384
UPLOADS_AT_ONCE = 32
UPLOADS_AT_ONCE_PER_NETWORK = 8
STORED_AT_ONCE = 4
RETRY_AFTER_SECONDS = 10
TOO_MANY = "Too many uploads at once"
UNUSED = timedelta(days=1)
REMOVED_AT_ONCE = 100
NO_SUCH_ATTACHMENT = "No such attachment"


class Download(Struct, frozen=True):
    """A file to be read from the store, or its thumbnail, whose size only the store knows."""

    file_name: str
    content_type: str
    size_bytes: int | None
    storage_key: str


class Uploads:
    """What uploading needs: the store, a folder for what is on its way, threads and turns."""

    def __init__(self, config: StorageConfig, database: Database, *, data_dir: Path) -> None:
        self.max_bytes = config.max_bytes
        self._database = database
        self._reserve_bytes = config.reserve_bytes
        self._drafts = data_dir / "uploads"
        self.storage = Storage(config, data_dir / "attachments")
        self._images_of_users = Images()
        self._images_of_leads = Images()
        self._executor = ThreadPoolExecutor(2, thread_name_prefix="uploads")
        self._by_users = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._by_leads = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._by_network: Counter[str] = Counter()
        self._storing = asyncio.Semaphore(STORED_AT_ONCE)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def receive(
        self, uploader: Uploader, body: AsyncIterator[bytes], *, boundary: str, network: str
    ) -> Attachment:
        """The one file of a multipart form, stored; it waits for a message for a day.

        `network` is where the uploader calls from.
        """
        async with self._turn(uploader, network):
            with self._draft() as file:
                name = await self._fill(file, body, boundary)
                return await self._keep(file, name, uploader)

    @contextlib.asynccontextmanager
    async def _turn(self, uploader: Uploader, network: str) -> AsyncIterator[None]:
        """Visitors never take the users' places, and one network not those of all visitors."""
        if uploader.lead_id is None:
            async with _place(self._by_users):
                yield
            return
        if self._by_network[network] >= UPLOADS_AT_ONCE_PER_NETWORK:
            raise RateLimited(TOO_MANY, retry_after_seconds=RETRY_AFTER_SECONDS)
        self._by_network[network] += 1
        try:
            async with _place(self._by_leads):
                yield
        finally:
            self._by_network[network] -= 1
            self._by_network += Counter()  # forgets who has none

    @contextlib.contextmanager
    def _draft(self) -> Iterator[io.FileIO]:
        """Without a name, so that not even a kill leaves it; unbuffered, so that it can close
        on a full disk."""
        with storage_errors():
            make_private_folder(self._drafts)
            draft = tempfile.TemporaryFile(dir=self._drafts, buffering=0)  # noqa: SIM115  # closed below
        with draft:
            yield draft

    async def _fill(self, file: io.FileIO, body: AsyncIterator[bytes], boundary: str) -> str:
        async def write(part: bytes) -> None:
            with storage_errors():
                await self._in_thread(self._write, file, part)

        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                return await receive_file(
                    _fast_enough(body), boundary=boundary, max_bytes=self.max_bytes, write=write
                )
        except TimeoutError:
            raise BodyRefused("The body did not arrive in time") from None

    def _write(self, file: io.FileIO, part: bytes) -> None:
        require_room(self._drafts, len(part), reserve_bytes=self._reserve_bytes)
        rest = memoryview(part)
        while rest:
            rest = rest[file.write(rest) :]

    async def _in_thread(self, work: Callable[P, R], *args: P.args, **options: P.kwargs) -> R:
        """What `work` gives; who is cancelled waits for the thread too, which uses the file."""
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, functools.partial(work, *args, **options))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait({running})
            raise

    async def _keep(self, file: io.FileIO, name: str, uploader: Uploader) -> Attachment:
        size_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        content_type = find_content_type(file.read(HEAD_BYTES))
        image = None
        if content_type in IMAGES and size_bytes <= MAX_IMAGE_BYTES:
            by_user = uploader.lead_id is None
            images = self._images_of_users if by_user else self._images_of_leads
            image = await images.look_at(file)
        attachment_id = uuid7()
        key = f"{attachment_id.hex[-2:]}/{attachment_id}"
        attachment = NewAttachment(
            id=attachment_id,
            file_name=name,
            content_type=content_type,
            size_bytes=size_bytes,
            width=image.width if image else None,
            height=image.height if image else None,
            storage_key=key,
            thumbnail_key=f"{key}.thumbnail" if image else None,
        )
        async with self._storing:
            await self._store(attachment, file, image)
        try:
            return await queries.insert_attachment(self._database, uploader, attachment)
        except asyncpg.ForeignKeyViolationError:
            raise Unauthenticated("The sender was deleted at the same moment") from None

    async def _store(
        self, attachment: NewAttachment, file: io.FileIO, image: ImageFacts | None
    ) -> None:
        """The keys are due for removal before there is an object, until there is a row."""
        keys = [key for key in (attachment.storage_key, attachment.thumbnail_key) if key]
        await queries.insert_removals(self._database, keys, after=UNUSED)
        if image is not None and attachment.thumbnail_key is not None:
            await self.storage.put(attachment.thumbnail_key, image.thumbnail)
        await self.storage.put(attachment.storage_key, file)

    async def remove_unused(self) -> None:
        """Uploads that nobody sent, then the objects of all that is gone from the database."""
        await queries.delete_unused(self._database, older_than=UNUSED, limit=REMOVED_AT_ONCE)
        while keys := await queries.fetch_removals(self._database, limit=REMOVED_AT_ONCE):
            await self.storage.delete(keys)
            await queries.delete_removals(self._database, keys)


@contextlib.asynccontextmanager
async def _place(places: asyncio.Semaphore) -> AsyncIterator[None]:
    try:
        await asyncio.wait_for(places.acquire(), WAITING_SECONDS)
    except TimeoutError:
        raise Unavailable(TOO_MANY, retry_after_seconds=RETRY_AFTER_SECONDS) from None
    try:
        yield
    finally:
        places.release()


async def _fast_enough(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The body; raises `BodyRefused` once its sender, and not this server, is too slow."""
    waited_seconds = 0.0
    received = 0
    while True:
        asked_at = time.monotonic()
        chunk = await anext(body, None)
        if chunk is None:
            return
        waited_seconds += time.monotonic() - asked_at
        received += len(chunk)
        if received < (waited_seconds - SLOW_SECONDS) * LEAST_BYTES_PER_SECOND:
            raise BodyRefused("The body comes too slowly")
        yield chunk


async def fetch_attachment(database: Database, caller: Caller, attachment_id: UUID) -> Attachment:
    """With fresh addresses."""
    attachment = await queries.fetch_attachment(database, caller, attachment_id)
    if attachment is None:
        raise NotFound(NO_SUCH_ATTACHMENT)
    return attachment


async def find_content(
    database: Database, attachment_id: UUID, *, expires: int, signature: str, thumbnail: bool
) -> Download:
    """What a signed address names. Raises `Forbidden` when the address is not good."""
    database.links.check(attachment_id, expires=expires, signature=signature, thumbnail=thumbnail)
    content = await queries.fetch_content(database, attachment_id)
    if content is None or (thumbnail and content.thumbnail_key is None):
        raise NotFound(NO_SUCH_ATTACHMENT)
    if thumbnail and content.thumbnail_key is not None:
        stem = content.file_name.rpartition(".")[0] or content.file_name
        return Download(f"{stem}.webp", THUMBNAIL_TYPE, None, content.thumbnail_key)
    return Download(
        content.file_name, content.content_type, content.size_bytes, content.storage_key
    )
