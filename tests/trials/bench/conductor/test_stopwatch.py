"""What is watched does what it would do unwatched."""

import asyncio
from contextlib import suppress

import pytest

from trials.bench.conductor.stopwatch import Stopwatch


async def _lasting(timeout_s: float, *waits: float) -> str:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await asyncio.Event().wait()
    for wait_s in waits:
        await asyncio.sleep(wait_s)
    return "done"


@pytest.mark.parametrize("waits", [(), (0.0,), (0.001, 0.001)])
async def test_work_may_end_or_go_on_after_what_was_thrown_into_it(waits: tuple[float, ...]) -> None:
    watch = Stopwatch()
    assert await watch.steps("part", _lasting(0.001, *waits)) == "done"
    assert watch.seconds["part"] > 0


async def test_work_that_is_cancelled_ends_with_that() -> None:
    task = asyncio.create_task(Stopwatch().steps("part", _lasting(60.0)))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
