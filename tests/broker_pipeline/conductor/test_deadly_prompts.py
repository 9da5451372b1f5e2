"""A prompt that kills whoever prepares it ends its own job, after a bounded number of deaths, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.kit.acting.conductor_bench import Bench
from tests.kit.acting.workers import ActingVision

DEADLY = "divide by zero"
MAX_ATTEMPTS = 5


@asynccontextmanager
async def supervised_vision(bench: Bench, *, prepare_s: float) -> AsyncIterator[list[ActingVision]]:
    """Vision workers one after the other: when one has died there is another."""
    workers: list[ActingVision] = []

    async def supervise() -> None:
        while True:
            worker = await bench.vision(f"vision-{len(workers)}")
            worker.prepare_s, worker.deadly = prepare_s, DEADLY
            workers.append(worker)
            await worker.has_died.wait()

    task = asyncio.create_task(supervise())
    yield workers
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("num_deadly", [1, 3])
async def test_a_deadly_prompt_costs_its_own_job_only(bench: Bench, num_deadly: int) -> None:
    stage = await bench.stage("all", 0, 6)
    async with supervised_vision(bench, prepare_s=0.1) as workers:
        bench.conductor(max_attempts=MAX_ATTEMPTS)
        deadly = [await bench.submit(f"Please {DEADLY}. {number}") for number in range(num_deadly)]
        good = [await bench.submit(f"What is in picture {number}?") for number in range(8)]
        records = await bench.wait([*deadly, *good], timeout_s=60)
        assert sum(worker.has_died.is_set() for worker in workers) <= num_deadly * MAX_ATTEMPTS
        for record in records[:num_deadly]:
            assert record.error is not None, record
            assert (record.status, record.error.code, record.attempt) == ("failed", "retries_exhausted", MAX_ATTEMPTS)
            assert "worker_lost" in record.error.message
        assert all(record.attempt <= 3 for record in records[num_deadly:]), "twice in company, then on its own"
        await bench.check_right(good)
        await bench.check_empty(stage)
