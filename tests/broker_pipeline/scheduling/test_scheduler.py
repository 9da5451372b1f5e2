import pytest

from broker_pipeline.errors import Failure
from broker_pipeline.scheduling.kv_ledger import Close
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.policies.fair_shares import INTERACTIVE_PER_BATCH
from tests.kit.simulated.simulation import Simulation

GONE = Failure("stage", "gone", retryable=True)


@pytest.fixture
def two_stages() -> Simulation:
    simulation = Simulation()
    simulation.start_worker("a", 0, 2)
    simulation.start_worker("b", 2, 4)
    return simulation


def test_a_job_runs_from_prompt_to_limit(two_stages: Simulation) -> None:
    job = two_stages.submit(10, 5)
    two_stages.run()
    assert job.outcome == "succeeded"
    two_stages.check_ended()


def test_a_long_prompt_goes_in_chunks_and_only_the_last_wants_a_token(two_stages: Simulation) -> None:
    two_stages.submit(40, 2)
    chunks = []
    for _ in range(3):
        (microbatch,) = two_stages.plan()
        chunks += [(segment.start, segment.count, segment.wants_token) for segment in microbatch.segments]
        assert two_stages.plan() == []
        two_stages.deliver(microbatch)
    assert chunks == [(0, 16, False), (16, 16, False), (32, 8, True)]


def test_prefill_and_decode_share_a_microbatch(two_stages: Simulation) -> None:
    two_stages.submit(4, 10)
    (first,) = two_stages.plan()
    two_stages.deliver(first)
    two_stages.submit(30, 10)
    # One session's decode step leaves 15 of 16 tokens to the other one's prompt, once both are in one microbatch.
    shares = []
    for _ in range(6):
        shares += [[segment.count for segment in microbatch.segments] for microbatch in two_stages.plan()]
        two_stages.deliver(two_stages.network[0])
    assert all(sum(share) <= 16 for share in shares)
    two_stages.run()
    two_stages.check_ended()


def test_sessions_are_assigned_to_stages_and_one_microbatches(two_stages: Simulation) -> None:
    for _ in range(9):
        two_stages.submit(1, 8)
    planned = two_stages.plan()
    assert [len(microbatch.segments) for microbatch in planned] == [3, 3, 3]
    sessions = [segment.session.key for microbatch in planned for segment in microbatch.segments]
    assert len(set(sessions)) == 9


def test_no_session_twice_in_flight(two_stages: Simulation) -> None:
    for _ in range(5):
        two_stages.submit(3, 8)
    for _ in range(15):
        two_stages.plan()
        in_flight = [segment.session.key for m in two_stages.network for segment in m.segments]
        assert len(in_flight) == len(set(in_flight))
        two_stages.deliver(two_stages.network[-1])


def test_waits_for_room_rather_than_over_committing(two_stages: Simulation) -> None:
    jobs = [two_stages.submit(20, 20) for _ in range(5)]
    two_stages.plan()
    assert two_stages.scheduler.num_running == 2
    assert two_stages.scheduler.num_waiting == 3
    two_stages.run()
    assert all(job.outcome == "succeeded" for job in jobs)
    two_stages.check_ended()


def test_sessions_that_have_not_begun_are_counted_wherever_they_wait(two_stages: Simulation) -> None:
    for _ in range(5):
        two_stages.submit(20, 20)
    two_stages.house()
    assert two_stages.scheduler.num_unopened == 5
    two_stages.plan()  # room for two, each in a microbatch of its own
    assert two_stages.scheduler.num_unopened == 3
    waiting = next(iter(two_stages.scheduler._waiting))
    two_stages.cancel(two_stages.jobs[waiting.key.session])
    assert two_stages.scheduler.num_unopened == 2
    two_stages.run()
    assert two_stages.scheduler.num_unopened == 0


def test_jobs_start_in_order(two_stages: Simulation) -> None:
    for _ in range(6):
        two_stages.submit(20, 20)
    two_stages.run()
    assert two_stages.admitted == [f"job{number}" for number in range(6)]


def test_interactive_prompts_go_before_batch_prompts_but_for_one_after_a_number(two_stages: Simulation) -> None:
    for number in range(INTERACTIVE_PER_BATCH + 4):
        two_stages.submit(4, 1, is_batch=number < 2)
    order = []
    while planned := two_stages.plan():
        order += [segment.session.turn.is_batch for microbatch in planned for segment in microbatch.segments]
        for microbatch in planned:
            two_stages.deliver(microbatch)
    assert order == [*[False] * INTERACTIVE_PER_BATCH, True, *[False] * 2, True]


def test_short_sessions_pass_a_long_one_but_not_for_ever(two_stages: Simulation) -> None:
    two_stages.submit(10, 20)
    two_stages.plan()
    long = two_stages.submit(40, 50)
    for _ in range(30):
        two_stages.submit(10, 20)
    for _ in range(300):
        two_stages.now += 0.1
        two_stages.plan()
        two_stages.deliver(two_stages.network[0])
        if long.name in two_stages.admitted:
            break
    passed_by = two_stages.admitted.index(long.name)
    assert 2 < passed_by < 12
    two_stages.run()
    two_stages.check_ended()


def test_a_large_session_is_not_starved_by_another_route_that_shares_a_worker() -> None:
    simulation = Simulation()
    simulation.start_worker("a", 0, 2, kv=100)
    simulation.start_worker("b", 0, 2, kv=1000)
    simulation.start_worker("c", 2, 4, kv=100)
    for _ in range(4):
        simulation.submit(5, 15)
    simulation.plan()
    large = simulation.submit(30, 60)
    for _ in range(40):
        simulation.submit(5, 15)
    for _ in range(2000):
        simulation.now += 0.05
        simulation.plan()
        simulation.deliver(simulation.network[0])
        if large.outcome:
            break
    assert large.outcome == "succeeded"
    assert sum(1 for job in simulation.jobs.values() if job.outcome) < 40


def test_sessions_spread_over_routes_by_free_room() -> None:
    simulation = Simulation()
    for name in ("a0", "a1"):
        simulation.start_worker(name, 0, 2)
    for name in ("b0", "b1"):
        simulation.start_worker(name, 2, 4)
    for _ in range(4):
        simulation.submit(10, 10)
    simulation.plan()
    used = [simulation.scheduler.ledger.used_tokens(key) for key in simulation.stages]
    assert used == [40, 40, 40, 40]


def test_losing_a_worker_loses_its_sessions_only_and_they_go_on_where_they_were() -> None:
    simulation = Simulation()
    keys = [simulation.start_worker(name, *blocks) for name, blocks in
            [("a0", (0, 2)), ("a1", (0, 2)), ("b0", (2, 4)), ("b1", (2, 4))]]  # fmt: skip
    jobs = [simulation.submit(10, 10) for _ in range(6)]
    for _ in range(12):
        simulation.plan()
        simulation.deliver(simulation.network[0])
    progress = {job.name: len(job.generated) for job in jobs}
    assert all(progress.values())
    simulation.kill_worker(keys[0])
    assert len(simulation.homeless) == 3
    simulation.run()
    assert all(job.outcome == "succeeded" for job in jobs)
    simulation.check_ended()


def test_the_replay_prefills_prompt_and_tokens_so_far(two_stages: Simulation) -> None:
    job = two_stages.submit(10, 20)
    for _ in range(4):
        two_stages.plan()
        two_stages.deliver(two_stages.network[0])
    assert len(job.generated) == 4
    a = next(iter(two_stages.stages))
    two_stages.kill_worker(a)
    assert two_stages.plan() == [] or all(not m.segments for m in two_stages.network)
    two_stages.start_worker("a", 0, 2)
    planned = [m for m in two_stages.plan() if m.segments]
    (segment,) = planned[0].segments
    assert (segment.start, segment.count, segment.wants_token) == (0, 14, True)
    assert segment.session.token_ids(0, 14).tolist() == [*range(10), *job.generated]


def test_a_broken_microbatch_is_retried_session_by_session_and_only_the_culprit_fails(two_stages: Simulation) -> None:
    good = [two_stages.submit(3, 4) for _ in range(5)]
    bad = two_stages.submit(3, 4, is_poison=True)
    more = [two_stages.submit(3, 4) for _ in range(5)]
    two_stages.run()
    assert all(job.outcome == "succeeded" for job in (*good, *more))
    assert bad.outcome == "failed"
    assert bad.failure is not None
    assert bad.failure.code == "retries_exhausted"
    two_stages.check_ended()


def test_suspects_are_alone_and_one_at_a_time(two_stages: Simulation) -> None:
    for _ in range(4):
        two_stages.submit(3, 4)
    (first, *_) = two_stages.plan()
    suspects = {segment.session.key.session for segment in first.segments}
    two_stages.deliver(first, break_at=1)
    for _ in range(50):
        two_stages.plan()
        alone = [m for m in two_stages.network if any(s.session.is_alone for s in m.segments)]
        assert len(alone) <= 1
        assert all(len(microbatch.segments) == 1 for microbatch in alone)
        if not two_stages.network:
            break
        two_stages.deliver(two_stages.network[0])
    assert suspects
    assert all(job.outcome == "succeeded" for job in two_stages.jobs.values())


def test_who_was_alone_takes_the_blame_from_the_others(two_stages: Simulation) -> None:
    for _ in range(6):
        two_stages.submit(3, 6)
    first, second, *_ = two_stages.plan()
    two_stages.deliver(first, break_at=0)
    two_stages.deliver(second)
    while not any(m.is_alone for m in two_stages.plan()):
        two_stages.deliver(two_stages.network[0])
    alone = next(m for m in two_stages.network if m.is_alone)
    lost = two_stages.scheduler.leave(alone.route.workers[0].key, GONE)
    assert [each.session.key for each in lost if each.is_blamed] == [alone.segments[0].session.key]
    assert len(lost) == 6


def test_a_missed_deadline_suspends_until_the_worker_answers(two_stages: Simulation) -> None:
    job = two_stages.submit(3, 4)
    (microbatch,) = two_stages.plan()
    two_stages.network.clear()  # lost on the way
    two_stages.now = microbatch.deadline - 0.001
    assert two_stages.scheduler.batches.expired(two_stages.now) == []
    two_stages.now = microbatch.deadline
    two_stages.expire()
    assert two_stages.scheduler.assign("x", 10) is None
    assert two_stages.scheduler.longest_session() == 0
    used = [two_stages.scheduler.ledger.used_tokens(key) for key in two_stages.stages]
    assert used == [7, 7], "what a suspended worker may hold still counts"
    two_stages.run()
    assert job.outcome == "succeeded"
    two_stages.check_ended()


def test_a_question_that_was_lost_suspends_nobody_who_has_answered_a_later_one(two_stages: Simulation) -> None:
    (a, _) = two_stages.stages
    two_stages.suspend(a)
    two_stages.probe_all()
    two_stages.network.clear()  # lost on the way
    two_stages.probe_all()
    two_stages.deliver(two_stages.network[0])
    assert len(two_stages.scheduler.routes.usable) == 2
    two_stages.now += 60
    two_stages.expire()
    assert len(two_stages.scheduler.routes.usable) == 2
    two_stages.check_ended()


def test_late_answers_are_for_nobody(two_stages: Simulation) -> None:
    two_stages.submit(3, 4)
    (microbatch,) = two_stages.plan()
    two_stages.lost(two_stages.scheduler.fail_microbatch(microbatch.number, GONE))
    assert two_stages.deliver(microbatch).microbatch is None
    two_stages.run()
    two_stages.check_ended()


def test_a_draining_worker_finishes_its_sessions_and_gets_no_new_ones() -> None:
    simulation = Simulation()
    a0 = simulation.start_worker("a0", 0, 4)
    simulation.start_worker("a1", 0, 4)
    jobs = [simulation.submit(10, 10) for _ in range(4)]
    simulation.plan()
    assert simulation.scheduler.ledger.used_tokens(a0) == 40
    simulation.scheduler.drain(a0)
    jobs += [simulation.submit(10, 10) for _ in range(4)]
    simulation.plan()
    assert simulation.scheduler.ledger.used_tokens(a0) == 40
    simulation.run()
    assert all(job.outcome == "succeeded" for job in jobs)
    simulation.check_ended()


def test_closes_reach_idle_stages_in_an_empty_microbatch(two_stages: Simulation) -> None:
    two_stages.submit(3, 1)
    (microbatch,) = two_stages.plan()
    two_stages.deliver(microbatch)
    flushes = two_stages.plan()
    assert [(m.segments, len(m.closes), len(m.route)) for m in flushes] == [((), 1, 1), ((), 1, 1)]
    two_stages.run()
    two_stages.check_ended()


def test_closes_reach_the_stages_behind_one_that_ended_the_microbatch_early(two_stages: Simulation) -> None:
    first = two_stages.submit(3, 1)
    (microbatch,) = two_stages.plan()
    two_stages.deliver(microbatch)
    assert first.outcome == "succeeded"
    two_stages.submit(3, 2)
    (second,) = two_stages.plan()
    assert len(second.closes) == 1
    a, b = two_stages.stages
    two_stages.deliver(second, spoil_at=0)  # the first stage leaves the only session out and answers at once
    assert two_stages.scheduler.ledger.used_tokens(a) == 5
    assert two_stages.scheduler.ledger.used_tokens(b) == 9
    two_stages.run()
    two_stages.check_ended()


def test_cancelling_in_flight_frees_everything(two_stages: Simulation) -> None:
    job = two_stages.submit(10, 10)
    other = two_stages.submit(10, 10)
    (*_,) = two_stages.plan()
    two_stages.cancel(job)
    two_stages.run()
    assert (job.outcome, other.outcome) == ("cancelled", "succeeded")
    two_stages.check_ended()


def test_a_session_longer_than_every_stage_finds_no_route(two_stages: Simulation) -> None:
    assert two_stages.scheduler.assign("x", 101) is None
    assert two_stages.scheduler.longest_session() == 100
    assert two_stages.scheduler.assign("x", 100) is not None


def test_sessions_in_preparation_count_against_room(two_stages: Simulation) -> None:
    assert two_stages.scheduler.room() == 100
    two_stages.scheduler.assign("x", 60)
    assert two_stages.scheduler.room() == 40
    two_stages.scheduler.release("x")
    assert two_stages.scheduler.room() == 100


def test_session_limit_per_route() -> None:
    simulation = Simulation(limits=SchedulerLimits(max_sessions=2))
    simulation.start_worker("a", 0, 4)
    for _ in range(5):
        simulation.submit(2, 3)
    simulation.plan()
    assert simulation.scheduler.num_running == 2
    simulation.run()
    simulation.check_ended()


def test_the_first_microbatch_has_more_time() -> None:
    simulation = Simulation(limits=SchedulerLimits(deadline_s=30, first_deadline_s=180))
    simulation.start_worker("a", 0, 4)
    simulation.submit(2, 5)
    (first,) = simulation.plan()
    assert first.deadline == 180
    simulation.deliver(first)
    (second,) = simulation.plan()
    assert 30 < second.deadline < 31


def test_a_step_larger_than_any_before_has_no_more_time_than_a_first_one() -> None:
    """In proportion to one token, the prompt below would take 4 x 16 s."""
    simulation = Simulation(limits=SchedulerLimits(deadline_s=2, first_deadline_s=5))
    simulation.seconds_per_token = 1.0
    simulation.start_worker("a", 0, 4)
    simulation.submit(1, 2)
    (first,) = simulation.plan()
    simulation.deliver(first)
    simulation.run()
    simulation.submit(16, 2)
    (guessed,) = simulation.plan()
    assert guessed.deadline - guessed.sent_at == 2 + 5
    simulation.deliver(guessed)
    simulation.run()
    simulation.submit(16, 2)
    (measured,) = simulation.plan()
    assert measured.deadline - measured.sent_at == 2 + 4 * 16


def test_a_lost_microbatch_is_overtaken_by_its_probe_long_before_its_deadline(two_stages: Simulation) -> None:
    job = two_stages.submit(3, 4)
    (microbatch,) = two_stages.plan()
    two_stages.network.clear()  # lost on the way
    two_stages.now = microbatch.suspect_at
    assert microbatch.suspect_at < 3 < microbatch.deadline
    two_stages.probe_late()
    two_stages.probe_late()
    (probe,) = two_stages.network
    assert probe.route == microbatch.route
    two_stages.deliver(probe)
    two_stages.probe_late()
    assert two_stages.network == [], "what was overtaken needs no other probe"
    assert two_stages.scheduler.batches.overtaken(two_stages.now + 0.4) == [], "it may have taken the slow connection"
    two_stages.now += 0.5
    assert two_stages.scheduler.batches.overtaken(two_stages.now) == [microbatch]
    two_stages.expire()
    assert len(two_stages.scheduler.routes.usable) == 2, "nobody is suspended for it"
    two_stages.run()
    assert job.outcome == "succeeded"
    two_stages.check_ended()


def test_a_probe_behind_a_slow_step_changes_nothing(two_stages: Simulation) -> None:
    job = two_stages.submit(3, 4)
    (microbatch,) = two_stages.plan()
    two_stages.now = microbatch.suspect_at
    two_stages.probe_late()
    two_stages.deliver(microbatch)
    two_stages.deliver(two_stages.network[0])
    assert two_stages.scheduler.batches.overtaken(two_stages.now + 60) == []
    assert len(job.generated) == 1


def test_a_lost_probe_is_sent_again_and_suspends_nobody(two_stages: Simulation) -> None:
    two_stages.submit(3, 4)
    (microbatch,) = two_stages.plan()
    two_stages.now = microbatch.suspect_at
    two_stages.probe_late()
    two_stages.network.clear()
    two_stages.now += 10
    two_stages.expire()
    assert len(two_stages.scheduler.routes.usable) == 2
    two_stages.probe_late()
    assert len(two_stages.network) == 1


def test_a_probe_that_is_lost_with_its_worker_keeps_no_close_from_the_others(two_stages: Simulation) -> None:
    two_stages.submit(3, 4)
    (microbatch,) = two_stages.plan()
    two_stages.now = microbatch.suspect_at
    two_stages.probe_late()
    two_stages.network.clear()
    two_stages.suspend(microbatch.route.workers[1].key)
    (closing,) = two_stages.plan()
    assert closing.route.workers == microbatch.route.workers[:1]
    assert closing.closes == (Close(microbatch.segments[0].session.key),)


def test_sessions_about_one_subject_are_assigned_to_one_route_and_others_spread() -> None:
    simulation = Simulation()
    for name in ("a", "b"):
        simulation.start_worker(name, 0, 4, kv=4000)
    scheduler = simulation.scheduler
    alike = [str(scheduler.assign(f"cat{number}", 10, subject="cat")) for number in range(4)]
    others = [str(scheduler.assign(f"other{number}", 10, subject=f"{number}")) for number in range(4)]
    assert len(set(alike)) == 1
    assert set(others) == {"a", "b"} - set(alike)
