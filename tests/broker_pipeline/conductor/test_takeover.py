"""A conductor that stops, dies, or finds NATS or Redis gone for a while."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from broker_pipeline import redis_keys, subjects
from broker_pipeline.messages.control import Hello
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from tests.kit.acting.conductor_bench import Bench, open_bench
from tests.kit.waiting import eventually


async def test_a_standby_takes_over_and_resumes_from_the_tokens_in_redis(bench: Bench) -> None:
    a = await bench.stage("a", 0, 3, step_s=0.01)
    b = await bench.stage("b", 3, 6)
    await bench.vision()
    bench.conductor("c0", lease_ttl_s=1.0)
    await bench.status(lambda status: status.instance == "c0")
    bench.conductor("c1", lease_ttl_s=1.0)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(8)]
    await bench.progress(job_ids, 10)
    first_epoch = a.epoch
    await _kill(bench, 0)
    records = await bench.wait(job_ids, timeout_s=20)
    await bench.check_right(job_ids)
    assert a.epoch > first_epoch
    assert all(record.attempt >= 2 for record in records)
    await bench.check_empty(a, b)


async def test_a_standby_waits_neither_for_the_lease_to_end_nor_for_the_queue(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.01)
    await bench.vision()
    times = {"lease_ttl_s": 60.0, "ack_wait_s": 60.0}
    bench.conductor("c0", **times)
    await bench.status(lambda status: status.instance == "c0")
    bench.conductor("c1", **times)
    await eventually(lambda: bench.redis.exists(redis_keys.conductor(bench.namespace, "main", "conductor-c1")))
    job_ids = [await bench.submit(max_tokens=60) for _ in range(8)]
    await bench.progress(job_ids, 10)
    first_epoch = a.epoch
    await _kill(bench, 0, left_s=60)
    records = await bench.wait(job_ids, timeout_s=20)
    await bench.check_right(job_ids)
    assert a.epoch > first_epoch
    assert all(record.attempt == 2 for record in records), "one attempt each, whoever had it"
    await bench.check_empty(a)


async def _kill(bench: Bench, index: int, left_s: float = 0.5) -> None:
    """End a conductor as SIGKILL would: it releases nothing and requeues nothing; what it left ends after `left_s`."""
    task = bench.conductors[index]
    name = f"conductor-c{index}"
    left = redis_keys.lease(bench.namespace, "main"), redis_keys.conductor(bench.namespace, "main", name)
    values = await bench.redis.mget(left)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await bench.redis.sadd(redis_keys.workers(bench.namespace, "main"), name)
    for key, value in zip(left, values, strict=True):
        await bench.redis.set(key, value, px=int(left_s * 1000), nx=True)


async def test_stopping_finishes_what_is_computed_and_puts_the_rest_back(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, kv=300, step_s=0.005)
    await bench.vision()
    stopping = bench.conductor()
    job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
    await bench.until(lambda: len(a.reserved) == 3)
    stopping.set()
    await asyncio.wait_for(bench.conductors[0], 5)
    records = [await bench.store.get(job_id) for job_id in job_ids]
    num_done = sum(record.status == "succeeded" for record in records)
    assert 3 <= num_done < 12
    bench.conductor("c1")
    await bench.wait(job_ids, timeout_s=10)
    await bench.check_right(job_ids)
    await bench.check_empty(a)


async def test_stopping_puts_back_what_is_not_done_at_the_deadline(bench: Bench) -> None:
    await bench.stage("a", 0, 6, step_s=0.02)
    await bench.vision()
    stopping = bench.conductor(drain_s=2.0)
    job_id = await bench.submit(max_tokens=150)
    await bench.progress([job_id], 3)
    started = time.monotonic()
    stopping.set()
    await asyncio.wait_for(bench.conductors[0], 5)
    assert time.monotonic() - started < 2.0
    assert await bench.redis.get(redis_keys.lease(bench.namespace, "main")) is None
    bench.conductor("c1")
    await bench.wait([job_id])
    await bench.check_right([job_id])


async def test_stopping_hands_everything_over_where_another_is_there(bench: Bench) -> None:
    a = await bench.stage("a", 0, 6, step_s=0.02)
    await bench.vision()
    stopping = bench.conductor("c0", drain_s=60.0)
    await bench.status(lambda status: status.instance == "c0")
    root = subjects.worker_root(bench.namespace, "main", "conductor", "conductor-c1", "c1")
    async with bench.transport.subscribe(subjects.control(root), Hello) as hellos:
        bench.conductor("c1")
        async with asyncio.timeout(20):
            await anext(hellos)  # c0 knows of it
    job_ids = [await bench.submit(max_tokens=150) for _ in range(4)]
    await bench.progress(job_ids, 3)
    stopping.set()
    await asyncio.wait_for(bench.conductors[0], 10)
    records = await bench.wait(job_ids)
    assert all(record.attempt == 2 for record in records)
    await bench.check_right(job_ids)
    await bench.check_empty(a)


async def test_nats_restarts_and_everything_goes_on(own_nats: EmbeddedNats, redis_url: str, namespace: str) -> None:
    async with open_bench(own_nats.url, redis_url, namespace) as bench:
        a = await bench.stage("a", 0, 3, step_s=0.01)
        b = await bench.stage("b", 3, 6)
        await bench.vision()
        bench.conductor(deadline_s=30.0)
        job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
        await bench.progress(job_ids, 5)
        own_nats.kill()
        await bench.until(lambda: not bench.transport.is_connected)
        await own_nats.restart()
        started = time.monotonic()
        await bench.wait(job_ids, timeout_s=25)
        assert time.monotonic() - started < 15, "replays begin at once, not at the deadline"
        await bench.check_right(job_ids)
        await bench.check_empty(a, b, timeout_s=15)


def _waits_for(bench: Bench) -> str | None:
    return bench.metrics.status.waits_for if bench.metrics.status else None


async def test_redis_restarts_and_everything_goes_on(nats_url: str, own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_bench(nats_url, own_redis.url, namespace) as bench:
        a = await bench.stage("a", 0, 3, step_s=0.01)
        b = await bench.stage("b", 3, 6)
        await bench.vision()
        bench.conductor(lease_ttl_s=3.0)
        job_ids = [await bench.submit(max_tokens=200) for _ in range(12)]  # some run yet when Redis has died
        await bench.progress(job_ids, 5)
        own_redis.kill()
        await bench.until(lambda: _waits_for(bench) == "Redis does not take results")
        await own_redis.restart()
        await bench.wait(job_ids, timeout_s=25)
        await bench.check_right(job_ids)
        await bench.check_empty(a, b, timeout_s=15)


async def test_redis_wiped_runs_the_jobs_again(nats_url: str, own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_bench(nats_url, own_redis.url, namespace) as bench:
        a = await bench.stage("a", 0, 3, step_s=0.01)
        b = await bench.stage("b", 3, 6)
        await bench.vision()
        bench.conductor()
        job_ids = [await bench.submit(max_tokens=60) for _ in range(12)]
        await bench.progress(job_ids, 5)
        await bench.redis.flushall()
        await bench.until(lambda: bool(a.reserved), timeout_s=15)
        async with asyncio.timeout(25):
            while (await bench.store.counts()).succeeded < 12:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await bench.check_right(job_ids)
        await bench.check_empty(a, b, timeout_s=15)
