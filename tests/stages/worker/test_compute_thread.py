from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading

import pytest
import torch

from stages.worker.compute_thread import ComputeThread
from tests.kit.waiting import eventually


async def test_calls_run_in_order_on_one_thread_without_autograd() -> None:
    thread, seen = ComputeThread(), []

    def note(number: int) -> tuple[int, bool]:
        seen.append(number)
        return threading.get_ident(), torch.is_inference_mode_enabled()

    answers = await asyncio.gather(*(thread.submit(note, number) for number in range(5)))
    assert seen == [0, 1, 2, 3, 4]
    assert set(answers) == {(answers[0][0], True)}
    assert answers[0][0] != threading.get_ident()
    assert thread.close()


async def test_calls_see_the_callers_context() -> None:
    thread, variable = ComputeThread(), contextvars.ContextVar("variable", default="nobody")
    variable.set("caller")
    assert await thread.run(variable.get) == "caller"
    thread.close()


async def test_errors_are_raised_where_the_call_is_awaited_and_the_thread_lives_on() -> None:
    thread = ComputeThread()
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    assert await thread.run(lambda: 7) == 7
    thread.close()


async def test_a_cancelled_call_that_has_not_begun_never_runs() -> None:
    thread, began = ComputeThread(), []
    gate = threading.Event()
    first = thread.submit(gate.wait)
    second = thread.submit(began.append, "second")
    second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await first
    await thread.run(lambda: None)
    assert began == []
    thread.close()


async def test_the_loop_stays_free_and_sees_how_long_a_call_runs() -> None:
    thread, may_end = ComputeThread(), threading.Event()
    call = thread.submit(may_end.wait)
    await eventually(lambda: thread.running_for_s > 0.01)
    may_end.set()
    assert await call
    await eventually(lambda: thread.running_for_s == 0)
    thread.close()


def test_a_hung_computation_does_not_keep_the_process_alive() -> None:
    program = (
        "import asyncio, time\n"
        "from stages.worker.compute_thread import ComputeThread\n"
        "async def main():\n"
        "    thread = ComputeThread()\n"
        "    thread.submit(time.sleep, 1000)\n"
        "    await asyncio.sleep(0.1)\n"
        "    assert not thread.close(timeout_s=0.1)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 0
