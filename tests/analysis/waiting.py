"""Waiting for conditions."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.01


async def until(condition: Callable[[], object]) -> Any:
    """The first true value of `condition`, which may be async; fails after 30 seconds."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            value = condition()
            if isinstance(value, Awaitable):
                value = await value
            if value:
                return value
            await asyncio.sleep(POLL_SECONDS)
