"""How near to the ideal the scheduler keeps GPUs busy that caption pictures: 219 tokens in, 64 out."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from statistics import mean

import pytest

from broker_pipeline.scheduling import lane
from tests.kit.simulated.gpu import GpuRun, SimulatedGpu, num_prompt_tokens


@pytest.mark.parametrize("outside_s", [0.002, 0.006, 0.010])
@pytest.mark.parametrize("num_sessions", [256, 512])
def test_a_gpu_is_kept_as_busy_as_it_can_be(num_sessions: int, outside_s: float) -> None:
    gpu = SimulatedGpu(outside_s=outside_s)
    run = GpuRun(gpu, num_sessions)
    run.run(6.0)
    rate = run.run(10.0)
    assert rate > 0.97 * gpu.ideal_rate(num_sessions, run.num_prompt, run.num_output)


def test_sessions_speak_on_while_a_burst_of_prompts_is_computed() -> None:
    run = GpuRun(SimulatedGpu(), 256)
    full_s = run.gpu.seconds(run.max_batch_tokens) + run.gpu.outside_s
    run.run(6.0)
    assert max(num_prompt_tokens(run.sent)) > 2000, "there was a burst: everybody began at once"
    assert run.longest_pause_s < 2.1 * full_s


def test_prompts_do_not_travel_without_the_sessions_that_are_ready_to_speak() -> None:
    run = GpuRun(SimulatedGpu(), 256)
    run.run(6.0)
    run.run(6.0)
    alone = [each for each in run.sent if each.segments and all(segment.count > 1 for segment in each.segments)]
    assert len(alone) < 0.03 * len(run.sent)


def test_two_microbatches_hide_the_time_outside_and_keep_their_sizes() -> None:
    run = GpuRun(SimulatedGpu(outside_s=0.010), 256)
    run.run(6.0)
    run.run(6.0)
    sizes = sorted(len(each.segments) for each in run.sent if each.segments)
    assert sizes[len(sizes) // 20] > 100
    assert sizes[-1] < 160


def test_prompts_get_their_half_where_steps_alone_would_fill_the_microbatch() -> None:
    run = GpuRun(SimulatedGpu(), 64, max_batch_tokens=32)
    run.run(12.0)
    assert run.num_ended > 0
    assert max(num_prompt_tokens(run.sent)) >= 16
    mixed = [each for each in run.sent if 0 < num_prompt_tokens([each])[0] < each.num_tokens]
    assert mixed
    assert all(each.num_tokens <= 32 for each in run.sent)


# --- several stages, far from each other ----------------------------------------------------------------------------

FOUR_STAGES = SimulatedGpu(step_s=0.006, token_s=0.02e-3, outside_s=0.040, num_stages=4)


@cache
def four_stages(num_sessions: int) -> tuple[float, GpuRun]:
    """Return the rate, and the run, of four equal stages with 40 ms of every way around between them."""
    run = GpuRun(FOUR_STAGES, num_sessions)
    run.run(12.0)
    return run.run(12.0), run


@pytest.mark.parametrize(("num_sessions", "least_busy"), [(512, 0.91), (1024, 0.92), (2048, 0.92)])
def test_stages_are_kept_busy_though_they_are_far_from_each_other(num_sessions: int, least_busy: float) -> None:
    rate, run = four_stages(num_sessions)
    assert run.busy_s / 12.0 > least_busy
    assert rate > 0.93 * FOUR_STAGES.ideal_rate(num_sessions, run.num_prompt, run.num_output), "not by smaller steps"


def test_more_sessions_never_give_fewer_captions() -> None:
    rates = [four_stages(num_sessions)[0] for num_sessions in (64, 256, 512, 1024, 2048)]
    assert all(more > 0.99 * fewer for fewer, more in pairwise(rates))


def test_sessions_are_split_evenly_over_microbatches() -> None:
    _, run = four_stages(512)
    sizes = sorted(sum(segment.count == 1 for segment in each.segments) for each in run.sent if each.segments)
    assert sizes[len(sizes) // 20] > 0.8 * mean(sizes)
    assert sizes[-len(sizes) // 20] < 1.2 * mean(sizes)


def test_prompts_come_at_the_pace_of_those_that_end_rather_than_in_waves() -> None:
    _, run = four_stages(512)
    most = max(num_prompt_tokens(run.sent))
    assert most < 0.15 * run.max_batch_tokens
    assert run.longest_pause_s < 0.16, "twice a way around"


# --- ways of unequal length -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "num_sessions"),
    [
        (SimulatedGpu(step_s=0.003, token_s=0.022e-3, outside_s=0.045, num_stages=2, spread=0.5), 880),
        (SimulatedGpu(step_s=0.0018, token_s=0.0115e-3, outside_s=0.033, num_stages=4, spread=0.5), 1024),
    ],
)
def test_no_other_number_of_microbatches_does_much_better_where_ways_differ(
    gpu: SimulatedGpu, num_sessions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As measured on four H200: stages wait for each other, and more microbatches would only be smaller ones."""

    def rate() -> float:
        run = GpuRun(gpu, num_sessions)
        run.run(6.0)
        return run.run(6.0)

    chosen, fixed = rate(), {}
    for count in (4, 6, 8, 10, 12, 16):
        monkeypatch.setattr(lane, "choose_num_microbatches", lambda *_, count=count, **__: count)
        fixed[count] = rate()
    assert chosen > 0.95 * max(fixed.values()), fixed
    assert chosen < 0.9 * gpu.ideal_rate(num_sessions, 219, 64), "that is for ways of equal length"
