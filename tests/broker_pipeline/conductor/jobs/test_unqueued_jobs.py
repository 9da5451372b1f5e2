"""Jobs that are recorded and were never queued, since a gateway was killed in between: the conductor finds them."""

from __future__ import annotations

from broker_pipeline import redis_keys
from broker_pipeline.conductor.jobs.job_end import Stores
from broker_pipeline.conductor.jobs.unqueued_jobs import UnqueuedJobs
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.storage.publishing import JobPublisher
from tests.broker_pipeline.state.test_job_store import make_spec
from tests.kit.acting.conductor_bench import Bench


def sweep_of(bench: Bench, since_s: float = 0.0) -> UnqueuedJobs:
    stores = Stores.open(bench.transport, bench.redis, bench.namespace, Watchers())
    return UnqueuedJobs(stores, JobPublisher.open(bench.queue, bench.redis, bench.namespace), since_s, every_s=0.05)


async def test_a_job_that_is_only_recorded_is_queued_and_runs(bench: Bench) -> None:
    specs = [make_spec() for _ in range(3)]
    for spec in specs:
        await bench.store.create(spec)
    assert await sweep_of(bench, since_s=60).sweep() == 0, "somebody may be about to queue them"
    assert (await bench.queue.depth()).num_waiting == 0
    assert await sweep_of(bench).sweep() == 3
    assert (await bench.queue.depth()).num_waiting == 3
    assert await sweep_of(bench).sweep() == 0, "and no more than once"
    await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor()
    records = await bench.wait([spec.job_id for spec in specs])
    assert {record.status for record in records} == {"succeeded"}


async def test_what_is_queued_or_begun_is_left_alone(bench: Bench) -> None:
    publisher = JobPublisher.open(bench.queue, bench.redis, bench.namespace)
    queued, begun, gone = make_spec(), make_spec(), make_spec()
    for spec in (queued, begun, gone):
        await bench.store.create(spec)
    await publisher.publish(queued)
    await bench.store.begin_attempt(begun, "a" * 64)
    await bench.store.discard(gone.job_id)
    assert await sweep_of(bench).sweep() == 0
    assert (await bench.queue.depth()).num_waiting == 1
    assert await bench.redis.zcard(redis_keys.unpublished(bench.namespace)) == 0


async def test_one_whose_record_is_garbled_ends_with_that_reason(bench: Bench) -> None:
    garbled, other_type, right = make_spec(), make_spec(), make_spec()
    for spec in (garbled, other_type, right):
        await bench.store.create(spec)
    await bench.redis.hset(redis_keys.job(bench.namespace, garbled.job_id), "spec", b"\xff{")  # type: ignore[arg-type]
    await bench.redis.delete(redis_keys.job(bench.namespace, other_type.job_id))
    await bench.redis.set(redis_keys.job(bench.namespace, other_type.job_id), "no job")
    await bench.redis.zadd(redis_keys.unpublished(bench.namespace), {"no note": 0, b"\xff": 1})  # type: ignore[dict-item]
    assert await sweep_of(bench).sweep() == 3
    for spec in (garbled, other_type):
        record = await bench.store.get(spec.job_id)
        assert record.status == "failed"
        assert record.error is not None
        assert record.error.code == "garbled_state"
    assert (await bench.store.get(right.job_id)).status == "queued"
    assert await sweep_of(bench).sweep() == 0
    assert [record.job_id for record in (await bench.store.list(status="queued")).records] == [right.job_id]
