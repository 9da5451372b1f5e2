"""What a step costs must not grow with what takes no part in it; counted in function calls, not in time."""

import sys
from collections.abc import Callable
from types import FrameType

import pytest

from broker_pipeline.scheduling import lane
from broker_pipeline.scheduling.step_cost import choose_num_microbatches
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


def test_how_many_fly_is_chosen_once_a_round_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []

    def choose(*args: object, **more: object) -> int:
        chosen.append(choose_num_microbatches(*args, **more))  # type: ignore[arg-type]
        return chosen[-1]

    monkeypatch.setattr(lane, "choose_num_microbatches", choose)
    run = GpuRun(SimulatedGpu(step_s=0.006, token_s=0.02e-3, outside_s=0.040, num_stages=4), 512)
    run.run(12.0)
    chosen.clear()
    run.run(4.0)
    assert min(chosen) > 4
    assert len(chosen) <= 1.5 * len(run.sent) / min(chosen)
