from __future__ import annotations

import asyncio

import pytest

from stages.vision.single_flight import SingleFlight


async def test_callers_at_the_same_time_share_one_run() -> None:
    single: SingleFlight[int] = SingleFlight()
    runs = []

    async def work() -> int:
        runs.append(1)
        await asyncio.sleep(0.01)
        return 7

    assert await asyncio.gather(*(single.run("k", work) for _ in range(5))) == [7] * 5
    assert len(runs) == 1
    await single.run("k", work)
    assert len(runs) == 2, "nothing is kept: that is the cache's part"


async def test_an_error_reaches_all_who_wait() -> None:
    single: SingleFlight[int] = SingleFlight()

    async def work() -> int:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    outcomes = await asyncio.gather(*(single.run("k", work) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ValueError] * 3


async def test_when_the_first_is_cancelled_another_takes_over() -> None:
    single: SingleFlight[int] = SingleFlight()
    runs = []

    async def work() -> int:
        runs.append(1)
        await asyncio.sleep(0.02)
        return len(runs)

    first = asyncio.create_task(single.run("k", work))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(single.run("k", work))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == 2
    with pytest.raises(asyncio.CancelledError):
        await first
