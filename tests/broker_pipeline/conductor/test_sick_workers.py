"""Workers that live and are sick, silent or slow, beside healthy ones: no job pays for it; once well, they are back."""

from __future__ import annotations

import time

import pytest

from broker_pipeline.messages.status import ConductorStatus
from tests.kit.acting.conductor_bench import Bench

LEFT_OUT = ("suspended", "trial")
"""One second after it was suspended, a stage that answers is on trial."""


def states(status: ConductorStatus) -> dict[str, str]:
    return {each.worker: each.state for each in status.stages} | {each.worker: each.state for each in status.vision}


def reason(status: ConductorStatus, name: str) -> str:
    return next(each.reason for each in (*status.stages, *status.vision) if each.worker == name)


async def ask_until_well(bench: Bench, *names: str) -> None:
    """Submit jobs, all of which have to be right, until workers are used like any other."""
    while True:
        job_ids = [await bench.submit() for _ in range(6)]
        await bench.wait(job_ids)
        await bench.check_right(job_ids)
        status = await bench.status(lambda status: bool(status.stages))
        if all(states(status)[name] == "ready" and not reason(status, name) for name in names):
            return


@pytest.mark.parametrize(
    "cut", [[("a0", 0, 6), ("a1", 0, 6)], [("a0", 0, 3), ("a1", 0, 3), ("b0", 3, 6), ("b1", 3, 6)]]
)
async def test_a_sick_stage_fails_nobody_is_suspended_and_comes_back_when_it_is_well(
    bench: Bench, cut: list[tuple[str, int, int]]
) -> None:
    stages = [await bench.stage(*each) for each in cut]
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 2 and bool(status.vision))
    stages[0].is_sick = True
    job_ids = [await bench.submit() for _ in range(80)]
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    status = await bench.status(lambda status: states(status)["a0"] in LEFT_OUT)
    assert "out of memory" in reason(status, "a0")
    stages[0].is_sick = False
    await ask_until_well(bench, "a0")
    await bench.check_empty(*stages)


async def test_the_only_stage_is_never_suspended_for_being_sick_and_attempts_count(bench: Bench) -> None:
    stage = await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    stage.is_sick = True
    await check_that_jobs_end_with_its_reason(bench, "a")
    stage.is_sick = False
    await ask_until_well(bench, "a")


async def test_the_only_vision_worker_is_never_left_out_for_being_sick(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    eyes = await bench.vision("eyes")
    bench.conductor()
    await bench.status(lambda status: bool(status.vision) and len(status.routes) == 1)
    eyes.is_sick = True
    await check_that_jobs_end_with_its_reason(bench, "eyes")
    eyes.is_sick = False
    await ask_until_well(bench, "eyes")


async def check_that_jobs_end_with_its_reason(bench: Bench, name: str) -> None:
    records = await bench.wait([await bench.submit() for _ in range(5)])
    for record in records:
        assert record.error is not None, record
        assert record.error.code == "retries_exhausted"
        assert record.error.message.endswith(f"out of memory (on {name})")
    status = await bench.status(lambda status: name in states(status) and bool(reason(status, name)))
    assert states(status)[name] == "ready"
    assert reason(status, name) == "its computations fail: out of memory"


async def test_poison_alone_blames_not_the_only_stage(bench: Bench) -> None:
    stage = await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    stage.poison.add("poison")
    (record,) = await bench.wait([await bench.submit(job_id="poison")])
    assert record.status == "failed"
    job_ids = [await bench.submit() for _ in range(3)]
    await bench.wait(job_ids)
    assert reason(await bench.status(lambda status: bool(status.stages)), "a") == ""


async def test_poison_beside_two_stages_blames_neither(bench: Bench) -> None:
    stages = [await bench.stage(name, 0, 6) for name in ("a0", "a1")]
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 2 and bool(status.vision))
    poison = [f"poison{number}" for number in range(6)]
    for stage in stages:
        stage.poison.update(poison)
    deadly = [await bench.submit(job_id=name) for name in poison]
    job_ids = [await bench.submit() for _ in range(20)]
    assert {record.status for record in await bench.wait(deadly)} == {"failed"}
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    status = await bench.status(lambda status: len(status.routes) == 2)
    assert {each.reason for each in status.stages} == {""}


async def test_a_sick_vision_worker_fails_nobody_is_left_out_and_comes_back(bench: Bench) -> None:
    stage = await bench.stage("a", 0, 6)
    sick, _ = await bench.vision("sick"), await bench.vision("well")
    bench.conductor()
    await bench.status(lambda status: len(status.vision) == 2 and len(status.routes) == 1)
    sick.is_sick = True
    job_ids = [await bench.submit() for _ in range(40)]
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    status = await bench.status(lambda status: states(status)["sick"] in LEFT_OUT)
    assert reason(status, "sick") == "out of memory"
    num_asked = len(sick.requests)
    sick.is_sick = False
    await ask_until_well(bench, "sick")
    assert len(sick.requests) > num_asked
    await bench.check_empty(stage)


async def test_a_vision_worker_that_never_answers_costs_no_attempt_and_is_left_out_once_it_has_had_its_time(
    bench: Bench,
) -> None:
    await bench.stage("a", 0, 6)
    silent, well = await bench.vision("silent"), await bench.vision("well")
    bench.conductor(prepare_timeout_s=0.5)
    await bench.status(lambda status: len(status.vision) == 2 and len(status.routes) == 1)
    silent.is_hung = True
    job_ids = [await bench.submit() for _ in range(10)]
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert {record.attempt for record in records} == {1}, "others answer in its place"
    assert 0 < len(silent.requests) <= 10
    status = await bench.status(lambda status: states(status)["silent"] in LEFT_OUT)
    assert "has not answered in time what others have" in reason(status, "silent")
    num_asked = len(well.requests)
    job_ids = [await bench.submit() for _ in range(10)]
    await bench.wait(job_ids)
    assert len(well.requests) >= num_asked + 9, "at most one of them was a trial"
    silent.is_hung = False
    await ask_until_well(bench, "silent")


async def test_a_vision_worker_that_is_slow_with_one_picture_is_not_to_blame(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    slow = await bench.vision("slow")
    await bench.vision("well")
    bench.conductor()
    await bench.status(lambda status: len(status.vision) == 2 and len(status.routes) == 1)
    slow.prepare_s = 2.5
    job_ids = [await bench.submit() for _ in range(6)]
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert {record.attempt for record in records} == {1}
    assert slow.requests
    await bench.until(lambda: not slow.num_in_hand)
    status = await bench.status(lambda status: sum(each.num_overtaken for each in status.vision) > 0)
    assert states(status)["slow"] == "ready"
    assert not reason(status, "slow")


async def test_a_slow_stage_keeps_nobody_waiting(bench: Bench) -> None:
    fast = await bench.stage("fast", 0, 6, step_s=0.004)
    slow = await bench.stage("slow", 0, 6, step_s=0.004)
    await bench.vision()
    bench.conductor(heartbeat_timeout_s=3.0)  # slow, not silent
    await bench.status(lambda status: len(status.routes) == 2 and bool(status.vision))
    warm = [await bench.submit(max_tokens=60) for _ in range(12)]
    await bench.wait(warm)
    job_ids = [await bench.submit(max_tokens=400) for _ in range(8)]
    await bench.progress(job_ids, 20)
    assert slow.reserved
    assert fast.reserved
    slow.step_s = 0.2
    await bench.until(lambda: not slow.reserved)
    await bench.wait(job_ids, timeout_s=20)  # 400 steps of 0.2 s are 80 s
    await bench.check_right(job_ids)
    num_steps = slow.num_steps
    more = [await bench.submit() for _ in range(20)]
    await bench.wait(more)
    await bench.check_right(more)
    assert slow.num_steps == num_steps, "it is given nothing for a while"
    await bench.check_empty(fast, slow)


async def test_refused_closes_are_sent_again_with_pauses_and_in_the_end_taken(bench: Bench) -> None:
    stage = await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    stage.refuses_closes = True
    started = time.monotonic()
    job_ids = [await bench.submit() for _ in range(4)]
    await bench.wait(job_ids)
    await bench.until(lambda: stage.num_refused >= 4)
    assert time.monotonic() - started > 0.6, "0.1, 0.2 and 0.4 s between them"
    stage.refuses_closes = False
    await bench.check_empty(stage)


async def test_a_stage_that_never_computes_costs_each_session_one_time_out_and_is_tried_when_it_answers(
    bench: Bench,
) -> None:
    hung, well = await bench.stage("hung", 0, 6), await bench.stage("well", 0, 6)
    await bench.vision()
    bench.conductor(deadline_s=0.5, first_deadline_s=0.5)
    await bench.status(lambda status: len(status.routes) == 2 and bool(status.vision))
    hung.is_hung = True
    job_ids = [await bench.submit() for _ in range(12)]
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert {record.attempt for record in records} == {1, 2}, "one time-out for some"
    more = [await bench.submit() for _ in range(12)]
    assert {record.attempt for record in await bench.wait(more)} == {1}
    status = await bench.status(lambda status: states(status)["hung"] == "suspended")
    assert "was not answered within" in reason(status, "hung")
    hung.is_hung = False
    await ask_until_well(bench, "hung")
    await bench.check_empty(hung, well)


async def test_a_worker_that_answers_no_handshake_is_shown_and_costs_nothing(bench: Bench) -> None:
    silent = await bench.stage("silent", 0, 6)
    await bench.stage("well", 0, 6)
    await bench.vision()
    silent.is_deaf = True
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(6)]
    assert {record.attempt for record in await bench.wait(job_ids)} == {1}
    [refused] = (await bench.status(lambda status: bool(status.refused))).refused
    assert refused.worker == "silent"
    assert refused.reason.startswith("does not answer")
    silent.is_deaf = False
    await bench.status(lambda status: len(status.routes) == 2 and not status.refused)
