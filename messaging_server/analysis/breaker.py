"""The circuit breaker of a provider: after failures in a row it isn't asked for a while.

It lives in one process and knows nothing of what is called; it only counts and looks at a clock.
"""

import time
from collections.abc import Callable

FAILURES = 5
OPEN_SECONDS = 15.0
OPEN_MAX_SECONDS = 300.0


class Breaker:
    """Closed at first; open after `FAILURES` in a row; then one call at a time may try.

    Each trial that fails doubles how long it stays open, up to five minutes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._open_seconds = OPEN_SECONDS
        self._open_until = 0.0
        self._on_trial = False

    @property
    def is_open(self) -> bool:
        return self._failures >= FAILURES

    def admit(self) -> float:
        """0 when a call may go, else the seconds to wait; a trial that never ends is forgotten."""
        if not self.is_open:
            return 0.0
        wait_seconds = self._open_until - self._clock()
        if wait_seconds > 0:
            return wait_seconds
        self._on_trial = True
        self._open_until = self._clock() + self._open_seconds
        return 0.0

    def succeeded(self) -> None:
        self._failures = 0
        self._open_seconds = OPEN_SECONDS
        self._on_trial = False

    def failed(self, *, retry_after_seconds: float | None = None) -> None:
        """`retry_after_seconds`, what the provider asked for, is kept up to five minutes."""
        self._failures += 1
        if self._on_trial:
            self._open_seconds = min(2 * self._open_seconds, OPEN_MAX_SECONDS)
            self._on_trial = False
        asked_seconds = min(retry_after_seconds or 0.0, OPEN_MAX_SECONDS)
        self._open_until = self._clock() + max(self._open_seconds, asked_seconds)
