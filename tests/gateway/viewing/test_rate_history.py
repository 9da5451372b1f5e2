"""The last hour in Redis, whichever gateways noted it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec

from broker_pipeline import redis_keys
from broker_pipeline.errors import StateError
from broker_pipeline.messages.gateway import PipelineStatus, QueueStatus, RateSample
from broker_pipeline.state.redis_client import RedisClient
from gateway.viewing.rate_history import NUM_KEPT, RateHistoryStore, sample_of
from tests.kit.waiting import eventually

SAMPLE = RateSample(num_waiting=3, num_running=2, num_failed=1, captions_per_s=4.5, tokens_per_s=99.0)
NOTHING_RUNS = PipelineStatus(
    pipeline="main",
    workers=(),
    conductor=None,
    queue=QueueStatus(num_waiting=7, num_in_progress=0),
    jobs={"running": 0, "failed": 5},
)


async def test_one_of_several_gateways_notes_a_moment(redis: RedisClient, namespace: str) -> None:
    gateways = [RateHistoryStore(redis, namespace, "main") for _ in range(5)]
    assert sorted(await asyncio.gather(*(gateway.add(SAMPLE) for gateway in gateways))) == [False] * 4 + [True]
    histories = [await gateway.history() for gateway in gateways]
    (sample,) = histories[0].samples
    assert all(history == histories[0] for history in histories)
    assert msgspec.structs.replace(sample, at=0.0) == SAMPLE
    seconds, _ = await redis.time()
    assert abs(sample.at - seconds) < 5


async def test_an_hour_is_kept_and_goes_by_itself(redis: RedisClient, namespace: str) -> None:
    store = RateHistoryStore(redis, namespace, "main", least_s=0.0)
    key = redis_keys.rates(namespace, "main")
    await redis.rpush(key, *[msgspec.json.encode(SAMPLE)] * (NUM_KEPT + 5))
    assert await store.add(SAMPLE)
    samples = (await store.history()).samples
    assert len(samples) == NUM_KEPT
    assert samples[-1].at > 0
    assert 3600 < await redis.ttl(key) <= 7200


async def test_what_is_no_sample_is_passed_over(redis: RedisClient, namespace: str) -> None:
    store, key = RateHistoryStore(redis, namespace, "main"), redis_keys.rates(namespace, "main")
    await redis.rpush(key, b"\xff", b"[]", b'{"at": "x"}')
    assert await store.add(SAMPLE)
    assert len((await store.history()).samples) == 1
    await redis.set(key, "no list at all")
    assert (await store.history()).samples == ()
    assert await store.add(SAMPLE)


async def test_an_outage_leaves_a_gap(redis: RedisClient, namespace: str) -> None:
    store = RateHistoryStore(redis, namespace, "main")
    answers = [StateError("Redis is away"), StateError("Redis is away")]

    async def read() -> PipelineStatus:
        if answers:
            raise answers.pop()
        return NOTHING_RUNS

    async def noted() -> bool:
        return len((await store.history()).samples) == 1

    keeping = asyncio.ensure_future(store.keep(read, interval_s=0.01))
    await eventually(noted)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping
    assert not answers


def test_a_pipeline_without_a_conductor_has_a_queue_all_the_same() -> None:
    sample = sample_of(NOTHING_RUNS)
    assert (sample.num_waiting, sample.num_running, sample.num_failed, sample.captions_per_s) == (7, 0, 5, 0.0)
