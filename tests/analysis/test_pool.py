"""The pool, without anything around it."""

import asyncio

import pytest

from messaging_server.analysis.pool import Pool

pytestmark = pytest.mark.anyio


async def test_counts_places_and_says_when_one_frees() -> None:
    freed: list[int] = []
    gate = asyncio.Event()

    async def work(_item: str) -> None:
        await gate.wait()

    pool = Pool(size=3, work=work, on_free=lambda: freed.append(pool.free))
    pool.submit("a")
    pool.submit("b")
    assert pool.free == 1
    gate.set()
    assert await pool.drain(timeout_seconds=1) == []
    assert (pool.free, freed) == (3, [2, 3])


async def test_drain_cancels_what_takes_too_long() -> None:
    ended: list[str] = []

    async def work(item: str) -> None:
        try:
            await asyncio.sleep(0 if item == "quick" else 3600)
        finally:
            ended.append(item)

    pool = Pool(size=2, work=work, on_free=lambda: None)
    pool.submit("quick")
    pool.submit("slow")
    assert await pool.drain(timeout_seconds=0.1) == ["slow"]
    assert ended == ["quick", "slow"]


async def test_a_failing_task_harms_nothing() -> None:
    async def work(item: str) -> None:
        raise ValueError(item)

    pool = Pool(size=1, work=work, on_free=lambda: None)
    pool.submit("a")
    assert await pool.drain(timeout_seconds=1) == []
    assert pool.free == 1
