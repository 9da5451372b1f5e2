from collections.abc import Callable

import pytest

from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.step_cost import SharedDevice, StepCost, choose_num_microbatches, shared_devices


def measured(cost: Callable[[int], float], sizes: tuple[int, ...] = (1, 4, 16, 64, 256)) -> StepCost:
    stage = StepCost()
    for _ in range(20):
        for size in sizes:
            stage.observe(size, cost(size))
    return stage


def flat(_: int) -> float:
    return 0.008


def linear(num_tokens: int) -> float:
    return 0.001 * num_tokens


def test_nothing_seen_nothing_known() -> None:
    assert not StepCost().is_known
    assert StepCost().estimate(10) == 0.0


@pytest.mark.parametrize("size", [1, 3, 16, 40, 256, 1000])
def test_estimates_follow_a_linear_cost(size: int) -> None:
    assert measured(linear).estimate(size) == pytest.approx(linear(size), rel=0.01)


@pytest.mark.parametrize("size", [1, 3, 16, 40, 256])
def test_estimates_follow_a_flat_cost(size: int) -> None:
    assert measured(flat).estimate(size) == pytest.approx(0.008)


def test_a_slow_first_step_is_forgotten_when_larger_ones_are_faster() -> None:
    stage = StepCost()
    stage.observe(1, 30.0)
    stage.observe(64, 0.01)
    assert stage.estimate(1) == pytest.approx(0.01)


def test_a_hiccup_moves_the_estimate_little_and_an_improvement_much() -> None:
    stage = measured(flat)
    stage.observe(16, 0.108)
    assert stage.estimate(16) < 0.02
    stage = measured(flat)
    for _ in range(5):
        stage.observe(16, 0.004)
    assert stage.estimate(16) == pytest.approx(0.004, rel=0.05)


def test_larger_steps_seen_long_ago_follow_smaller_ones_that_are_as_dear_each_time() -> None:
    stage = StepCost()
    stage.observe(16, 0.004)
    for _ in range(20):
        stage.observe(4, 0.2)
    assert stage.estimate(4) > 0.1, "16 tokens in 4 ms were before it became slow"


def test_one_microbatch_when_half_of_it_costs_the_same() -> None:
    stages = [measured(flat)] * 3
    assert choose_num_microbatches(64, 64, stages, outside_s=0.0005) == 1


def test_as_many_as_stages_when_cost_grows_with_tokens() -> None:
    stages = [measured(linear)] * 3
    assert choose_num_microbatches(64, 64, stages, outside_s=0.0) == 3


def test_one_more_when_there_is_time_outside_of_stages_to_hide() -> None:
    stages = [measured(linear)] * 3
    assert choose_num_microbatches(64, 64, stages, outside_s=0.015) == 4


def test_as_many_more_as_it_takes_to_hide_a_long_way() -> None:
    stages = [measured(flat)] * 4
    assert choose_num_microbatches(256, 256, stages, outside_s=0.04) == 1, "each would cost as much as all together"
    fixed_and_growing = [measured(lambda n: 0.002 + 0.0002 * n)] * 4
    # 256 tokens: nine microbatches compute for 9 * (2 + 5.7) = 69 ms; each is on its way for 4 * 7.7 + 40 = 71 ms.
    assert choose_num_microbatches(256, 256, fixed_and_growing, outside_s=0.04) in {8, 9}


def test_prefill_splits_where_decode_does_not() -> None:
    def gpu(num_tokens: int) -> float:
        return max(0.008, 0.00005 * num_tokens)

    stages = [measured(gpu, (1, 16, 64, 256, 1024, 4096, 16384))] * 2
    assert choose_num_microbatches(64, 64, stages, outside_s=0.0) == 1
    assert choose_num_microbatches(64, 16384, stages, outside_s=0.0) == 2


@pytest.mark.parametrize(("num_sessions", "most"), [(0, 1), (1, 1), (2, 2), (3, 3), (100, 4)])
def test_never_more_than_sessions_nor_than_stages_and_one(num_sessions: int, most: int) -> None:
    assert choose_num_microbatches(num_sessions, num_sessions, [StepCost()] * 3, 0.0) == most


def test_the_slowest_stage_decides() -> None:
    stages = [measured(flat), measured(linear), measured(flat)]
    # 64 tokens: one microbatch takes 64 + 16 ms; two take max(2 * 32, 32 + 16); three no less than that.
    assert choose_num_microbatches(64, 64, stages, outside_s=0.0) == 2


def affine(num_tokens: int) -> float:
    return 0.002 + 0.0001 * num_tokens


@pytest.mark.parametrize(
    ("shared", "best"), [((), 3), ((SharedDevice((0, 1, 2), 2),), 2), ((SharedDevice((0, 1, 2), 1),), 1)]
)
def test_stages_that_share_a_device_cannot_all_compute_at_a_time(shared: tuple[SharedDevice, ...], best: int) -> None:
    stages = [measured(affine)] * 3
    assert choose_num_microbatches(32, 32, stages, 0.0, shared) == best


def test_time_outside_of_stages_is_hidden_on_a_shared_gpu_as_well() -> None:
    stages = [measured(linear)] * 2
    assert choose_num_microbatches(64, 64, stages, 0.0, [SharedDevice((0, 1), 1)]) == 1
    assert choose_num_microbatches(64, 64, stages, 0.05, [SharedDevice((0, 1), 1)]) == 2


@pytest.mark.parametrize("size", [150, 200, 260, 700, 1400, 2600])
def test_sizes_between_powers_of_two_are_not_taken_for_these(size: int) -> None:
    def gpu(num_tokens: int) -> float:
        return 0.007 + 0.027e-3 * num_tokens

    stage = measured(gpu, (150, 260, 700, 1400, 2600))
    assert stage.estimate(size) == pytest.approx(gpu(size), rel=0.02)


def test_a_number_stays_while_no_other_gains_enough() -> None:
    def gpu(num_tokens: int) -> float:
        return 0.007 + 0.027e-3 * num_tokens

    stage = [measured(gpu, (128, 256, 512, 1024, 2048))]
    assert choose_num_microbatches(256, 1128, stage, outside_s=0.006) == 1
    assert choose_num_microbatches(256, 1128, stage, outside_s=0.006, current=2) == 2
    assert choose_num_microbatches(256, 256, stage, outside_s=0.003, current=2) == 1


def test_a_size_that_was_dear_long_ago_is_tried_again_and_kept_where_it_is_better() -> None:
    """8B with its tower on one GPU: 512 sessions, 2,620 tokens a round; larger steps were seen at its beginning."""

    def gpu(num_tokens: int) -> float:
        return 0.008 + 0.0265e-3 * num_tokens

    stage, count, tried = measured(lambda n: 1.6 * gpu(n), (1310, 2620)), 3, []
    for _ in range(400):
        stage.observe(2620 // count, gpu(2620 // count))
        count = choose_num_microbatches(512, 2620, [stage], outside_s=0.011, current=count)
        tried.append(count)
    assert tried[0] == 3
    assert tried[-1] == 2


def test_a_size_that_is_still_dear_costs_few_steps() -> None:
    def launched_one_by_one(num_tokens: int) -> float:
        return 0.008 + 0.0265e-3 * num_tokens * (2 if num_tokens > 1024 else 1)

    stage, count, tried = measured(launched_one_by_one, (873, 1310, 2620)), 3, []
    for _ in range(2000):
        stage.observe(2620 // count, launched_one_by_one(2620 // count))
        count = choose_num_microbatches(512, 2620, [stage], outside_s=0.011, current=count)
        tried.append(count)
    assert 2 <= tried.count(2) + tried.count(1) <= 40
    assert tried[-1] == 3


def test_of_more_than_one_microbatch_takes_the_next_one_hides_the_time_outside() -> None:
    def gpu(num_tokens: int) -> float:
        return 0.007 + 0.027e-3 * num_tokens

    stage = [measured(gpu, (256, 1024, 4096))]
    assert choose_num_microbatches(256, 56_000, stage, outside_s=0.010) == 1
    assert choose_num_microbatches(256, 56_000, stage, outside_s=0.010, max_tokens=4096) == 2


def test_a_fast_stage_far_away_is_not_sent_ever_smaller_microbatches() -> None:
    def fast(num_tokens: int) -> float:
        return 0.08e-3 * num_tokens

    stage = [measured(fast, (1, 4, 16, 64))]
    assert choose_num_microbatches(43, 43, stage, outside_s=0.007) <= 4, "15 are 7 % faster, and hold 3 tokens each"
    assert choose_num_microbatches(512, 512, stage, outside_s=0.007) == 2


def worker(name: str, device_id: str, device_slots: int = 1) -> StageInfo:
    return StageInfo(name, name, f"s.{name}", BlockRange(start=0, stop=1), 64, 64, device_id, device_slots)


def test_only_devices_with_more_stages_than_they_have_room_for_are_shared() -> None:
    route = Route((worker("a", "gpu-1"), worker("b", "gpu-2"), worker("c", "gpu-1"), worker("d", "gpu-3")))
    assert shared_devices(route) == (SharedDevice((0, 2), 1),)
    on_cpu = Route(tuple(worker(name, "cpu-x", 2) for name in "abc"))
    assert shared_devices(on_cpu) == (SharedDevice((0, 1, 2), 2, is_processor=True),)
    assert shared_devices(Route(on_cpu.workers[:2])) == ()
    assert shared_devices(Route((worker("a", ""), worker("b", "")))) == ()


def test_a_processor_that_is_shared_with_the_broker_cannot_hide_the_time_outside() -> None:
    stages, outside_s = [measured(affine)] * 3, 0.01
    gpu, processor = (SharedDevice((0, 1, 2), 2, is_processor=is_processor) for is_processor in (False, True))
    assert choose_num_microbatches(32, 32, stages, outside_s, [gpu]) == 4
    assert choose_num_microbatches(32, 32, stages, outside_s, [processor]) == 2


def test_a_processor_with_cores_for_all_stages_is_not_shared() -> None:
    assert not shared_devices(Route((worker("a", "cpu-x", 8), worker("b", "cpu-x", 8))))
