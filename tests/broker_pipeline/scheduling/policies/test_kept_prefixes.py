"""What finished sessions leave for others: who begins with it, what it makes way for, and when it is gone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.limits import SchedulerLimits
from tests.kit.simulated.simulation import SimulatedJob, Simulation
from tests.kit.simulated.stages import SimulatedStage, stage_worker


def simulation(*, kv: int = 640, step: int = 8, share: float = 0.5, num_drafts: int = 0) -> Simulation:
    """Return one with two stages, in which the prompts of a tenant all begin alike."""
    limits = SchedulerLimits(kv_step_tokens=step, kept_prefix_share=share, drafts=DraftLimits(num_drafts))
    found = Simulation(limits=limits, shares_prefixes=True)
    found.start_worker("a", 0, 2, kv=kv, batch=kv)
    found.start_worker("b", 2, 4, kv=kv, batch=kv)
    return found


def done(it: Simulation, num_prompt: int, max_tokens: int = 2, *, tenant: str = "") -> SimulatedJob:
    """Have a job done, until everything is quiet."""
    job = it.submit(num_prompt, max_tokens, tenant=tenant)
    it.run()
    assert job.outcome == "succeeded"
    return job


def kept_tokens(it: Simulation) -> list[int]:
    """Return what each stage holds, which is what the ledger says is kept."""
    found = [sum(stage.reserved.values()) for stage in it.stages.values()]
    assert found == [it.scheduler.ledger.kept_tokens(key) for key in it.stages]
    assert found == [it.scheduler.ledger.used_tokens(key) for key in it.stages]
    return found


def test_a_session_begins_with_what_one_that_has_ended_has_left() -> None:
    it = simulation()
    done(it, 100)
    kept = it.scheduler.kept
    assert (len(kept), kept.num_tokens, kept_tokens(it)) == (1, 96, [96, 96])
    done(it, 90)
    assert (kept.num_hits, kept.num_hit_tokens) == (1, 80)
    assert it.scheduler.batches.num_copied_tokens == 80
    it.check_ended()


def test_of_tenants_each_has_its_own() -> None:
    it = simulation()
    done(it, 100, tenant="a")
    done(it, 100, tenant="b")
    assert (it.scheduler.kept.num_hits, len(it.scheduler.kept)) == (0, 2)


def test_what_was_said_is_kept_as_well_but_for_the_last_token() -> None:
    it = simulation()
    done(it, 100, max_tokens=45)  # 144 tokens are computed
    assert kept_tokens(it) == [144, 144]


@pytest.mark.parametrize("num_said", range(20, 84))
def test_of_one_that_ends_behind_drafts_those_that_were_right_are_kept(num_said: int) -> None:
    """It says a word to stop at, say: whatever became of the drafts of its last step, in each place of a block."""
    it, plain = simulation(num_drafts=6), simulation()
    job = it.submit(20, 100)
    while len(job.generated) < num_said:
        it.plan()
        it.deliver(it.network[0])
    job.outcome, job.max_tokens = "succeeded", len(job.generated)
    it.scheduler.release(job.name, is_finished=True)
    it.run()
    assert kept_tokens(it) == [(20 + len(job.generated) - 1) // 16 * 16] * 2
    done(plain, 20, max_tokens=len(job.generated))
    left, right = ([list(stage.cached.values()) for stage in each.stages.values()] for each in (it, plain))
    assert left == right
    it.check_ended()


def test_a_session_that_comes_again_begins_with_what_it_has_left_itself() -> None:
    """As after a server has forgotten that its job has ended."""
    it = simulation()
    job = done(it, 100)
    said, job.outcome, job.generated = job.generated, "", []
    it.homeless.append((job, False))
    it.run()
    assert (job.outcome, job.generated, job.num_lost) == ("succeeded", said, 0)
    assert (it.scheduler.kept.num_hits, len(it.scheduler.kept), kept_tokens(it)) == (1, 1, [96, 96])
    it.check_ended()


def test_one_that_has_all_of_another_takes_its_place() -> None:
    it = simulation()
    done(it, 90)
    done(it, 200)
    assert (len(it.scheduler.kept), kept_tokens(it)) == (1, [192, 192])
    done(it, 90)
    assert it.scheduler.kept.num_hit_tokens == 80 + 80
    assert it.scheduler.kept.num_evictions == 0


def test_a_cancelled_session_leaves_nothing() -> None:
    it = simulation()
    job = it.submit(100, 20)
    it.plan()
    it.deliver(it.network[0])
    it.cancel(job)
    it.run()
    assert kept_tokens(it) == [0, 0]


def test_with_a_share_of_nothing_nothing_is_kept() -> None:
    it = simulation(share=0.0)
    done(it, 100)
    assert kept_tokens(it) == [0, 0]


def test_a_route_with_a_stage_of_an_earlier_release_is_asked_to_keep_nothing() -> None:
    it = simulation()
    it.kill_worker(next(key for key in it.stages if key.startswith("b")))
    old = replace(stage_worker("b", 2, 4, instance=9, kv=640, batch=640), keeps_prefixes=False)
    it.stages[old.key] = SimulatedStage(old)
    it.scheduler.join(old)
    it.submit(100, 2)
    sent = it.plan()
    while it.network:
        it.deliver(it.network[0])
        sent += it.plan()
    assert {close.num_kept_tokens for each in sent for close in each.closes} == {0}
    assert kept_tokens(it) == [0, 0]


def test_beyond_the_share_the_least_lately_used_goes() -> None:
    it = simulation()  # 320 tokens may be kept
    for tenant in "abc":
        done(it, 100, tenant=tenant)
    assert kept_tokens(it) == [288, 288]
    done(it, 40, tenant="a")
    assert it.scheduler.kept.num_hits == 1
    done(it, 100, tenant="d")
    assert kept_tokens(it)[0] <= 320
    before = it.scheduler.kept.num_hits
    done(it, 40, tenant="b")
    assert it.scheduler.kept.num_hits == before, "it was used least lately"
    done(it, 40, tenant="a")
    assert it.scheduler.kept.num_hits == before + 1
    it.check_ended()


def test_who_is_prepared_has_room_by_the_time_that_it_is() -> None:
    """Nobody waits for an answer to a close first."""
    it = simulation(kv=200)
    done(it, 90)
    assert kept_tokens(it) == [80, 80]
    it.scheduler.assign("job1", 152, it.now)
    for each in it.plan():
        it.deliver(each)
    job = it.submit(150, 2, tenant="other")
    it.plan()
    assert job.name in it.admitted


def test_a_session_that_needs_all_of_a_stage_gets_it() -> None:
    it = simulation(kv=200)
    done(it, 90)
    done(it, 196, tenant="other")
    assert it.scheduler.kept.num_evictions == 1
    it.check_ended()


def test_what_is_kept_goes_before_anybody_is_preempted() -> None:
    it = simulation(kv=200, step=4)
    done(it, 90, tenant="other")
    jobs = [it.submit(40, 55), it.submit(40, 55)]
    it.run()
    assert [job.outcome for job in jobs] == ["succeeded"] * 2
    assert it.scheduler.kept.num_evictions
    assert it.scheduler.growth.num_preemptions == 0
    it.check_ended()


def test_with_a_stage_that_is_gone_nothing_is_left_of_what_was_kept_on_its_routes() -> None:
    it = simulation()
    done(it, 100)
    it.kill_worker(next(key for key in it.stages if key.startswith("b")))
    it.run()
    assert (len(it.scheduler.kept), kept_tokens(it)) == (0, [0])
    it.start_worker("b", 2, 4, kv=640, batch=640)
    done(it, 100)
    assert it.scheduler.kept.num_hits == 0


def test_a_stage_that_drains_is_told_to_keep_nothing() -> None:
    it = simulation()
    done(it, 100)
    it.scheduler.drain(next(iter(it.stages)))
    it.plan()
    while it.network:
        it.deliver(it.network[0])
    assert kept_tokens(it) == [0, 0]


def test_what_a_stage_has_lost_all_the_same_costs_one_attempt_and_is_not_asked_for_again() -> None:
    it = simulation()
    done(it, 200)
    for stage in it.stages.values():
        for table in (stage.reserved, stage.cached, stage.kept):
            table.clear()
    assert [done(it, 100).num_lost for _ in range(2)] == [1, 0]
    it.check_ended()


def test_what_is_kept_counts_as_room() -> None:
    it = simulation()
    before = it.scheduler.room()
    done(it, 100)
    assert it.scheduler.room() == before


@settings(max_examples=60, deadline=None)
@given(
    kv=st.integers(80, 400),
    step=st.integers(1, 40),
    share=st.floats(0, 1),
    jobs=st.lists(
        st.tuples(st.integers(1, 70), st.integers(1, 40), st.sampled_from("ab"), st.integers(0, 6)),
        min_size=1,
        max_size=12,
    ),
)
def test_room_is_never_exceeded_nobody_waits_for_what_is_kept_and_all_of_it_can_be_dropped(
    kv: int, step: int, share: float, jobs: list[tuple[int, int, str, int]]
) -> None:
    """The simulation looks at each plan and answer: see `Simulation.check` and `check_kept`."""
    it = simulation(kv=kv, step=step, share=share)
    for num_prompt, max_tokens, tenant, num_answers in jobs:
        it.submit(num_prompt, min(max_tokens, kv - num_prompt), tenant=tenant)
        it.plan()
        for each in it.network[:num_answers]:
            it.deliver(each)
            it.plan()
        assert it.scheduler.kept.num_tokens <= share * kv
    it.run()
    assert all(job.num_lost == 0 for job in it.jobs.values()), "no faults, no losses"
    assert it.scheduler.kept.num_tokens == kept_tokens(it)[0] <= share * kv
    it.check_ended()
