"""What was read lately and is believed for some seconds: tokens, keys, a slow figure."""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most `size` values, each for `seconds`; nothing read before `forget` is kept after it."""

    def __init__(self, *, seconds: float, size: int = 10_000) -> None:
        self._seconds = seconds
        self._size = size
        self._values: dict[K, tuple[V, float]] = {}
        self._changes = 0

    async def find(self, key: K, read: Callable[[K], Awaitable[V]]) -> V:
        """The value, read when it is not known or too old; what `read` raises is not kept."""
        known = self._values.get(key)
        if known is not None and known[1] > time.monotonic():
            return known[0]
        changes = self._changes
        value = await read(key)
        if changes == self._changes:  # else it may be older than the change
            if len(self._values) >= self._size:
                self._values.clear()
            self._values[key] = (value, time.monotonic() + self._seconds)
        return value

    def forget(self, chosen: Callable[[V], bool] = lambda _: True) -> None:
        """After a change: the values that it may concern."""
        self._changes += 1
        self._values = {key: known for key, known in self._values.items() if not chosen(known[0])}
