"""Routes, workers and sessions: the whole conductor with workers that die, hang, lose and fail."""

from __future__ import annotations

import time

from broker_pipeline import subjects
from broker_pipeline.errors import ComputeError, StageError
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.workers import TransportCounts
from tests.kit.acting.conductor_bench import Bench
from tests.kit.acting.worker import frozen


async def test_jobs_run_to_their_end_and_leave_nothing_behind(bench: Bench) -> None:
    stages = [await bench.stage("a", 0, 2), await bench.stage("b", 2, 4), await bench.stage("c", 4, 6)]
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(30)]
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    await bench.check_empty(*stages)
    assert {record.attempt for record in records} == {1}
    assert max(stages[0].batch_sizes) > 3, "sessions share microbatches"
    counts = await bench.store.counts()
    assert (counts.succeeded, counts.running, counts.queued) == (30, 0, 0)


async def test_status_shows_workers_routes_and_why_one_is_refused(bench: Bench) -> None:
    await bench.stage("a", 0, 3)
    await bench.stage("b", 3, 6)
    await bench.stage("wrong", 3, 6, fingerprint="0" * 64)
    await bench.vision()
    bench.conductor()
    status = await bench.status(lambda status: len(status.routes) == 1 and bool(status.vision))
    assert [route.workers for route in status.routes] == [("a", "b")]
    assert {stage.worker for stage in status.stages} == {"a", "b"}
    assert [vision.worker for vision in status.vision] == ["vision-0"]
    (refused,) = status.refused
    assert refused.worker == "wrong"
    assert "its artifact is 000000000000" in refused.reason
    assert status.waits_for is None
    assert status.instance == "c0"


async def test_status_counts_the_messages_that_broke_the_contract_by_process(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 1)
    root = subjects.worker_root(bench.namespace, "main", "stage", "a", "i")
    await bench.transport.publish(subjects.heartbeat(root), WatchRequest(for_s=1.0))
    counted = TransportCounts(num_malformed=1)  # of both: they share a transport here
    await bench.status(lambda status: status.transport == {"conductor": counted, "a": counted})


async def test_without_a_route_jobs_stay_in_the_queue_and_status_says_why(bench: Bench) -> None:
    await bench.stage("a", 0, 3)
    await bench.vision()
    bench.conductor()
    job_id = await bench.submit()
    status = await bench.status(lambda status: len(status.stages) == 1 and status.num_jobs_waiting == 1)
    assert [(gap.start, gap.stop) for gap in status.missing_blocks] == [(3, 6)]
    assert status.waits_for == "no route covers the whole model"
    assert (await bench.store.get(job_id)).status == "queued"
    await bench.stage("b", 3, 6)
    await bench.wait([job_id])
    await bench.check_right([job_id])


async def test_a_stage_that_dies_costs_a_replay_and_the_other_route_never_notices(bench: Bench) -> None:
    stages = [await bench.stage(name, start, stop, step_s=0.01)
              for name, start, stop in [("a0", 0, 3), ("a1", 0, 3), ("b0", 3, 6), ("b1", 3, 6)]]  # fmt: skip
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 2)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(16)]
    await bench.progress(job_ids, 5)
    on_victim = set(stages[0].reserved)
    assert 0 < len(on_victim) < 16
    await stages[0].die()
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert {record.job_id for record in records if record.attempt > 1} == on_victim
    await bench.check_empty(*stages[1:])


async def test_a_stage_that_comes_back_under_its_name_serves_again(bench: Bench) -> None:
    first = await bench.stage("a", 0, 3, step_s=0.01)
    b = await bench.stage("b", 3, 6)
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit(max_tokens=40) for _ in range(8)]
    await bench.progress(job_ids, 5)
    await first.die()
    second = await bench.stage("a", 0, 3)
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    await bench.check_empty(second, b)


async def test_a_frozen_stage_is_fenced_and_rejoins_with_its_kv_accounted_for(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, step_s=0.01, kv=1000)
    b = await bench.stage("b", 3, 6)
    spare = await bench.stage("spare", 0, 3, kv=1000)
    await bench.vision()
    bench.conductor()
    await bench.status(lambda status: len(status.routes) == 2)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(10)]
    await bench.progress(job_ids, 5)
    assert a.reserved
    with frozen(a):
        await bench.wait(job_ids)
        await bench.check_right(job_ids)
        status = await bench.status(lambda s: any(stage.state == "suspended" for stage in s.stages))
        assert [route.workers for route in status.routes] == [("spare", "b")]
    await bench.status(lambda s: all(stage.state == "ready" for stage in s.stages) and len(s.routes) == 2)
    await bench.check_empty(a, b, spare)
    more = [await bench.submit() for _ in range(6)]
    await bench.wait(more)
    await bench.check_right(more)


async def test_a_stage_that_hangs_computing_is_suspended_by_its_deadline(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.005)
    await bench.vision()
    bench.conductor(deadline_s=0.5)
    job_ids = [await bench.submit(max_tokens=40) for _ in range(4)]
    await bench.progress(job_ids, 5)
    a.is_hung = True
    await bench.status(lambda s: [stage.state for stage in s.stages] == ["suspended"])
    a.is_hung = False
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    await bench.check_empty(a)


async def test_envelopes_lost_on_their_way_are_found_missing_before_their_deadline(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, step_s=0.005)
    b = await bench.stage("b", 3, 6, step_s=0.005)
    await bench.vision()
    bench.conductor(deadline_s=60.0)
    job_ids = [await bench.submit(max_tokens=40) for _ in range(4)]
    await bench.progress(job_ids, 5)
    b.num_to_lose = 2
    started = time.monotonic()
    await bench.wait(job_ids)
    assert time.monotonic() - started < 10
    await bench.check_right(job_ids)
    await bench.check_empty(a, b)


async def test_poison_costs_its_own_job_only(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3)
    b = await bench.stage("b", 3, 6)
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(6)]
    bad = await bench.submit()
    b.poison.add(bad)
    job_ids += [await bench.submit() for _ in range(6)]
    *_, record = await bench.wait([*job_ids, bad])
    await bench.check_right(job_ids)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.code == "retries_exhausted"
    assert "poisoned" in record.error.message
    await bench.check_empty(a, b)


async def test_missing_rows_are_asked_for_again(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6)
    vision = await bench.vision()
    job_id = await bench.submit()
    a.rowless.add(job_id)
    bench.conductor()
    await bench.wait([job_id])
    await bench.check_right([job_id])
    await bench.check_empty(a)
    assert a.opens.count(job_id) == 2
    assert len(vision.requests) >= 1


async def test_a_vision_worker_that_vanishes_is_replaced_by_another(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    first = await bench.vision("vision-0")
    first.is_hung = True
    bench.conductor()
    job_ids = [await bench.submit() for _ in range(4)]
    await bench.until(lambda: len(first.requests) == 4)
    second = await bench.vision("vision-1")
    await first.die()
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert len(second.requests) == 4


async def test_a_vision_worker_that_always_fails_ends_the_job_after_bounded_tries(bench: Bench) -> None:
    await bench.stage("a", 0, 6)
    vision = await bench.vision()
    vision.failures["hard"] = ComputeError("tower out of memory").to_failure()
    vision.failures["odd"] = StageError("rows were not taken").to_failure()
    bench.conductor(max_attempts=2)
    hard, odd, good = await bench.submit("hard"), await bench.submit("odd"), await bench.submit()
    records = await bench.wait([hard, odd, good])
    assert [record.status for record in records] == ["failed", "failed", "succeeded"]
    assert all(record.error and record.error.code == "retries_exhausted" for record in records[:2])


async def test_who_asks_for_no_limit_gets_the_one_that_is_shown(bench: Bench) -> None:
    await bench.stage("a", 0, 6, kv=100)
    await bench.vision()
    bench.conductor()
    shown = await bench.status(lambda status: bool(status.routes))
    assert shown.limits is not None
    assert (shown.limits.max_tokens_in_all, shown.limits.default_max_tokens) == (100, 32)
    assert shown.limits.longest_token_bytes > 1
    [usual, cut] = await bench.wait(
        [await bench.submit(max_tokens=None), await bench.submit("long " * 18, max_tokens=None)]
    )
    for record, num_tokens in ((usual, 32), (cut, 10)):
        assert record.result is not None
        assert (record.result.finish_reason, record.result.usage.num_output_tokens) == ("length", num_tokens)


async def test_kv_room_bounds_what_runs_and_nothing_starves(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, kv=200)
    b = await bench.stage("b", 3, 6, kv=400)
    await bench.vision()
    bench.conductor()
    job_ids = [await bench.submit(max_tokens=10 + index % 50) for index in range(40)]
    await bench.wait(job_ids, timeout_s=30)
    await bench.check_right(job_ids)
    await bench.check_empty(a, b)
