"""Where the bytes are: a folder, or a bucket of anything that speaks S3, through `obstore`.

Objects are written once under keys that are made here, and never changed. Files are read and
written in parts, so that none is in memory as a whole.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import obstore
from loguru import logger
from msgspec import Struct
from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from messaging_server.config import StorageConfig
from messaging_server.errors import InsufficientStorage, NotFound, StartupError, Unavailable

READ_BYTES = 262_144
FOLDER_PART_BYTES = 1_048_576
BUCKET_PART_BYTES = 5_242_880
"""The least that S3 takes."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
SAYS_FULL = (*(f"(os error {number})" for number in FULL), "StorageFull", "507 Insufficient")
NO_ROOM = "There is no room left for this file"
RETRY_AFTER_SECONDS = 5
TIMEOUTS = {"connect_timeout": "5 seconds", "timeout": "60 seconds"}
RETRIES: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class Stored(Struct, frozen=True):
    """An object as it is read; `size_bytes` is that of all of it."""

    size_bytes: int
    parts: AsyncIterator[bytes]


class Storage:
    """The store that `[storage]` names; `folder` is used where it names none.

    A folder is only made with the first upload: who needs none should not have to allow it.
    Raises `StartupError` for a bucket whose configuration makes no sense.
    """

    def __init__(self, config: StorageConfig, folder: Path) -> None:
        parts = urlsplit(config.url)
        self._reserve_bytes = config.reserve_bytes
        self._folder: Path | None = None
        self._opened: LocalStore | S3Store | None = None
        if parts.scheme == "s3":
            self._opened = _open_bucket(config)
        else:
            self._folder = Path(unquote(parts.path)) if config.url else folder

    async def put(self, key: str, content: BinaryIO | bytes) -> None:
        """Store it, whole and for good, or raise `InsufficientStorage` or `Unavailable`."""
        if isinstance(content, bytes):
            size_bytes = len(content)
            part_bytes = max(1, size_bytes)
        else:
            part_bytes = BUCKET_PART_BYTES if self._folder is None else FOLDER_PART_BYTES
            size_bytes = content.seek(0, os.SEEK_END)
            content.seek(0)
        with storage_errors():
            store = self._store()
            if self._folder is not None:
                require_room(self._folder, size_bytes, reserve_bytes=self._reserve_bytes)
            await obstore.put_async(store, key, content, chunk_size=part_bytes, max_concurrency=1)
            if self._folder is not None:
                await asyncio.to_thread(_sync, self._folder / key)

    async def read(self, key: str, span: tuple[int, int] | None) -> Stored:
        """All of it, or the bytes from the first number to before the second.

        Raises `NotFound` at once; a store that fails later ends the parts too early.
        """
        with storage_errors():
            try:
                found = await obstore.get_async(
                    self._store(), key, options={"range": span} if span else None
                )
            except FileNotFoundError:
                raise NotFound("This file is gone") from None
            return Stored(found.meta["size"], _bytes_of(found.stream(min_chunk_size=READ_BYTES)))

    async def delete(self, keys: Sequence[str]) -> None:
        """What is not there is deleted, too."""
        with storage_errors():
            store = self._store()
            for key in keys:
                with contextlib.suppress(FileNotFoundError):
                    await obstore.delete_async(store, key)

    def _store(self) -> LocalStore | S3Store:
        if self._opened is None:
            assert self._folder is not None
            make_private_folder(self._folder)
            self._opened = LocalStore(self._folder)
        return self._opened


def _open_bucket(config: StorageConfig) -> S3Store:
    """Keys that are not configured come from where obstore looks: AWS_… and the machine."""
    names = ("endpoint", "region", "access_key_id", "secret_access_key")
    given: Any = {name: value for name in names if (value := getattr(config, name))}
    options: Any = {**TIMEOUTS, "allow_http": config.endpoint.startswith("http://")}
    try:
        return S3Store.from_url(
            config.url, config=given, client_options=options, retry_config=RETRIES
        )
    except (BaseError, ValueError) as error:
        raise StartupError(f"storage: {_first_line(error)}") from None


async def _bytes_of(stream: Any) -> AsyncIterator[bytes]:
    async for part in stream:
        yield bytes(part)


def make_private_folder(folder: Path) -> None:
    """Its owner's only, whoever may enter the folders above it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def require_room(folder: Path, size_bytes: int, *, reserve_bytes: int) -> None:
    """Raise `InsufficientStorage` where this much more would leave the disk less than that."""
    if shutil.disk_usage(folder).free < size_bytes + reserve_bytes:
        logger.warning("Uploads are refused: {} has little free space left", folder)
        raise InsufficientStorage(NO_ROOM)


def _sync(path: Path) -> None:
    """Onto the disk: the file, and its name in its folder; Windows has no such call."""
    for target in (path, path.parent) if os.name == "posix" else ():
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """What disks and stores raise, as the domain says it; the reason is for the log only."""
    try:
        yield
    except (BaseError, OSError) as error:
        text = _first_line(error)
        if getattr(error, "errno", None) in FULL or any(sign in str(error) for sign in SAYS_FULL):
            logger.warning("The storage of attachments is full: {}", text)
            raise InsufficientStorage(NO_ROOM) from None
        logger.warning("The storage of attachments is unavailable: {}", text)
        raise Unavailable(
            "Attachments can't be stored or read now", retry_after_seconds=RETRY_AFTER_SECONDS
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
