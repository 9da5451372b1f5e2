"""Which vision worker is asked next, on a clock of the test's own."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.conductor.workers.vision_pool import VisionPool
from broker_pipeline.errors import ComputeError
from tests.kit.acting.stage_side import record
from tests.kit.fake_clock import FakeClock


async def never() -> None:
    raise AssertionError("somebody is free")


class Pool:
    """Workers that compute for one request at a time, each for its own number of seconds."""

    def __init__(self, **seconds: float) -> None:
        self.clock = FakeClock()
        self.pool = VisionPool(BroadcastEvent(), self.clock)
        self.seconds = seconds
        self.free_at = dict.fromkeys(seconds, 0.0)
        self.num_asked = dict.fromkeys(seconds, 0)
        self._in_hand: list[tuple[float, AsyncExitStack]] = []
        for name in seconds:
            self.pool.update(record(name, role="vision"))

    async def ask(self) -> str:
        stack = AsyncExitStack()
        worker = await stack.enter_async_context(self.pool.borrow(never))
        name = worker.record.worker
        self.num_asked[name] += 1
        self.free_at[name] = max(self.clock.now, self.free_at[name]) + self.seconds[name]
        self._in_hand.append((self.free_at[name], stack))
        return name

    async def answer(self) -> None:
        """Let time pass until the next request is done."""
        self._in_hand.sort(key=lambda each: each[0])
        self.clock.now, stack = self._in_hand.pop(0)
        await stack.aclose()

    async def keep_asking(self, num_in_hand: int, num_requests: int) -> None:
        for _ in range(num_in_hand):
            await self.ask()
        for _ in range(num_requests):
            await self.answer()
            await self.ask()


async def test_equal_workers_get_equally_much() -> None:
    pool = Pool(one=0.01, two=0.01, three=0.01)
    await pool.keep_asking(12, 300)
    assert max(pool.num_asked.values()) - min(pool.num_asked.values()) <= 12


async def test_a_worker_whose_device_is_busy_with_other_things_gets_as_much_less_as_it_is_slower() -> None:
    pool = Pool(busy=0.06, free=0.01, spare=0.02)
    await pool.keep_asking(24, 2000)
    rates = {name: num / sum(pool.num_asked.values()) for name, num in pool.num_asked.items()}
    assert rates == pytest.approx({"busy": 0.1, "free": 0.6, "spare": 0.3}, abs=0.05)


async def test_a_worker_that_has_become_faster_is_found_out() -> None:
    pool = Pool(one=0.01, two=0.5)
    await pool.keep_asking(16, 1000)
    pool.seconds["two"], before = 0.01, dict(pool.num_asked)
    await pool.keep_asking(0, 4000)
    assert pool.num_asked["two"] - before["two"] > 1000


async def test_requests_that_fail_at_once_make_nobody_faster() -> None:
    pool = Pool(broken=0.01, whole=0.01)
    await pool.keep_asking(8, 100)
    infos = {worker.record.worker: worker for worker in pool.pool.workers}
    before = infos["broken"].request_s, infos["whole"].request_s
    for _ in range(10):
        with pytest.raises(ComputeError):
            async with pool.pool.borrow(never):
                raise ComputeError("tower out of memory")
    assert (infos["broken"].request_s, infos["whole"].request_s) == before
