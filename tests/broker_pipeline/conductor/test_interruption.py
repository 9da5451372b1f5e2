import asyncio

import pytest

from broker_pipeline.conductor.interruption import Interruption
from broker_pipeline.errors import CancelledJobError, WorkerLostError
from broker_pipeline.process.broadcast_event import BroadcastEvent


async def interrupted(interruption: Interruption) -> None:
    with interruption:
        await asyncio.Event().wait()


async def test_the_first_reason_is_raised_inside_and_at_every_later_entry() -> None:
    interruption = Interruption()
    task = asyncio.ensure_future(interrupted(interruption))
    await asyncio.sleep(0)
    interruption.interrupt(WorkerLostError("gone"))
    interruption.interrupt(CancelledJobError("too late"))
    with pytest.raises(WorkerLostError):
        await task
    with pytest.raises(WorkerLostError):
        await interrupted(interruption)


async def test_a_task_that_was_interrupted_goes_on_undisturbed() -> None:
    interruption = Interruption()

    async def work() -> int:
        with pytest.raises(WorkerLostError):
            await interrupted(interruption)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    interruption.interrupt(WorkerLostError("gone"))
    assert await task == 0


async def test_a_cancelled_task_is_cancelled_also_when_it_is_interrupted_at_the_same_moment() -> None:
    interruption = Interruption()
    task = asyncio.ensure_future(interrupted(interruption))
    await asyncio.sleep(0)
    interruption.interrupt(WorkerLostError("gone"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_whoever_listens_to_an_event_hears_it_until_the_context_ends() -> None:
    event, heard = BroadcastEvent(), []
    with event.heard_by(lambda: heard.append(1)):
        event.fire()
        event.fire()
    event.fire()
    assert heard == [1, 1]
