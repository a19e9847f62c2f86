"""Rate limits in fixed windows of a minute or an hour, by the `limits` library.

Its own in-memory storage starts a thread every few hits to forget old windows (35 µs a hit when
the server is idle in between); `WindowStorage` forgets them in passing.
"""

import time

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter

from messaging_server.errors import RateLimited

SWEEP_AT = 10_000


class WindowStorage(Storage):
    """Counters of one event loop: no locks, no threads."""

    STORAGE_SCHEME = ["loop"]  # noqa: RUF012  # as its base declares it

    def __init__(self) -> None:
        super().__init__("loop://")
        self._windows: dict[str, tuple[int, float]] = {}

    @property
    def base_exceptions(self) -> type[Exception]:
        return ValueError

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        now = time.time()
        count, ends_at = self._windows.get(key, (0, 0.0))
        if ends_at <= now:
            if len(self._windows) >= SWEEP_AT:
                self._sweep(now)
            count, ends_at = 0, now + expiry
        self._windows[key] = (count + amount, ends_at)
        return count + amount

    def get(self, key: str) -> int:
        count, ends_at = self._windows.get(key, (0, 0.0))
        return count if ends_at > time.time() else 0

    def get_expiry(self, key: str) -> float:
        return self._windows.get(key, (0, time.time()))[1]

    def check(self) -> bool:
        return True

    def reset(self) -> int | None:
        count = len(self._windows)
        self._windows.clear()
        return count

    def clear(self, key: str) -> None:
        self._windows.pop(key, None)

    def _sweep(self, now: float) -> None:
        self._windows = {key: window for key, window in self._windows.items() if window[1] > now}


class Limiter:
    """Counts what is keyed alike; raises `RateLimited` with the time to wait."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._strategy = FixedWindowRateLimiter(WindowStorage())
        self._items: dict[int, RateLimitItemPerMinute] = {}

    def check(self, per_minute: int, *key: str) -> None:
        if not self._enabled:
            return
        item = self._items.get(per_minute)
        if item is None:
            item = self._items[per_minute] = RateLimitItemPerMinute(per_minute)
        self._count(item, key, 1, "Too many requests")

    def check_bytes(self, per_hour: int, size_bytes: int, *key: str) -> None:
        """Counts bytes as they come."""
        if self._enabled:
            self._count(RateLimitItemPerHour(per_hour), key, size_bytes, "Too much in this hour")

    def _count(self, item: RateLimitItem, key: tuple[str, ...], amount: int, refusal: str) -> None:
        if not self._strategy.hit(item, *key, cost=amount):
            reset_at = self._strategy.get_window_stats(item, *key).reset_time
            raise RateLimited(refusal, retry_after_seconds=max(1.0, reset_at - time.time()))
