"""What a step costs must not grow with what takes no part in it; counted in function calls, not in time."""

import sys
from collections.abc import Callable
from types import FrameType

from tests.kit.simulated.gpu import GpuRun, SimulatedGpu

NUM_IN_FLIGHT = 4
"""By how many calls the microbatches that happen to be under way may differ."""


def num_calls(work: Callable[[], object]) -> int:
    """Calls of Python and C functions that `work` makes."""
    calls = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def calls_of_a_plan(num_sessions: int, num_waiting: int) -> int:
    """Return the calls of a plan with nothing to send: all sessions are on their way, others wait for a place."""
    run = GpuRun(SimulatedGpu(), num_sessions, num_ahead=num_waiting)
    run.run(2.0)
    run.scheduler.plan(run.now)
    return num_calls(lambda: run.scheduler.plan(run.now))


def test_a_plan_without_anything_to_send_looks_at_no_session() -> None:
    few = calls_of_a_plan(64, 8)
    for num_sessions, num_waiting in ((1024, 8), (64, 256)):
        assert calls_of_a_plan(num_sessions, num_waiting) <= few + NUM_IN_FLIGHT
