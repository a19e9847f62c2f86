"""A bounded pool of asyncio tasks.

It owns its tasks from start to end; what they do and what must be undone when one is cut off is
its owner's business.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from loguru import logger

T = TypeVar("T")

CANCEL_SECONDS = 2.0


class Pool(Generic[T]):
    """Runs `work(item)` for at most `size` items at once; `on_free` is called after each."""

    def __init__(
        self,
        *,
        size: int,
        work: Callable[[T], Coroutine[Any, Any, None]],
        on_free: Callable[[], None],
    ) -> None:
        self._size = size
        self._work = work
        self._on_free = on_free
        self._running: dict[asyncio.Task[None], T] = {}

    @property
    def free(self) -> int:
        return self._size - len(self._running)

    def submit(self, item: T) -> None:
        """Start at once; the caller has looked at `free`."""
        task = asyncio.create_task(self._work(item))
        self._running[task] = item
        task.add_done_callback(self._ended)

    async def drain(self, *, timeout_seconds: float) -> list[T]:
        """Let the running tasks finish, cancel those that don't; the items of the cancelled."""
        if not self._running:
            return []
        _, late = await asyncio.wait(self._running, timeout=timeout_seconds)
        unfinished = [self._running[task] for task in late]
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=CANCEL_SECONDS)
        return unfinished

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()):
            logger.opt(exception=error).error("A task of the pool failed")
        self._on_free()
