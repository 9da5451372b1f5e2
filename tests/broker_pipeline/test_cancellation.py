"""A task that was cancelled ends, whatever the library beneath it makes of that."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from broker_pipeline.cancellation import cancellation_kept
from broker_pipeline.errors import StateError
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner
from broker_pipeline.storage.jetstream import jetstream_errors


async def lose_cancellation(error: Exception | None = None) -> None:
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        if error:
            raise error from None


@pytest.mark.parametrize("errors", [state_errors, jetstream_errors])
@pytest.mark.parametrize("error", [None, OSError("gone")])
async def test_a_lost_cancellation_is_raised_at_the_end_of_the_block(
    error: Exception | None, errors: Callable[[str], AbstractContextManager[None]]
) -> None:
    async def work() -> None:
        with errors("asking"):
            await lose_cancellation(error)
        pytest.fail("went on")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_lost_timeout_is_a_timeout() -> None:
    async def work() -> None:
        async with asyncio.timeout(0.01):
            with cancellation_kept():
                await lose_cancellation()

    with pytest.raises(TimeoutError):
        await work()


async def test_what_was_asked_for_before_is_left_to_whoever_handles_it() -> None:
    async def work() -> str:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            with cancellation_kept():
                await asyncio.sleep(0)
            return "tidied up"

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == "tidied up"


def test_nothing_happens_without_a_loop() -> None:
    with pytest.raises(StateError), state_errors("asking"):
        raise OSError


async def test_tasks_that_ask_redis_end_whenever_they_are_cancelled(redis: RedisClient, namespace: str) -> None:
    run = ScriptRunner(redis, "lease", [namespace], {"instance": "nobody"})

    async def ask_on_and_on() -> None:
        while True:
            await run("release", {}, "asking")

    chance = random.Random(0)
    for _ in range(100):
        tasks = [asyncio.create_task(ask_on_and_on()) for _ in range(8)]
        await asyncio.sleep(chance.random() * 0.003)
        for task in tasks:
            task.cancel()
        _, left = await asyncio.wait(tasks, timeout=5)
        assert not left, "cancelled, and still asking"
