"""What a key may have, counted by a real Redis."""

from __future__ import annotations

import asyncio

import pytest

from broker_pipeline import redis_keys
from broker_pipeline.messages.keys import KeyLimits
from broker_pipeline.state.access.rate_limits import HELD_S, RateLimits, Taken, Wanted
from broker_pipeline.state.redis_client import RedisClient, open_redis

A_DAY = 24 * 60  # minutes: what fills in a test is far less than one


@pytest.fixture
def limits(redis: RedisClient, namespace: str) -> RateLimits:
    return RateLimits(redis, namespace)


async def take(limits: RateLimits, wanted: Wanted, key: str = "k", **most: int) -> Taken:
    return await limits.take(key, "alice", KeyLimits(**most), wanted)


async def test_a_minutes_requests_are_there_at_once_and_then_one_by_one(limits: RateLimits) -> None:
    for left in (2, 1, 0):
        taken = await take(limits, Wanted(requests=1), requests_per_minute=3)
        assert taken.refusal is None
        assert taken.requests is not None
        assert (taken.requests.limit, taken.requests.remaining, taken.tokens) == (3, left, None)
    taken = await take(limits, Wanted(requests=1), requests_per_minute=3)
    assert taken.refusal is not None
    assert 19 < taken.refusal.retry_after_s <= 20, "a third of a minute for a third of the requests"
    assert taken.requests is not None
    assert 59 < taken.requests.reset_s <= 60
    assert (await take(limits, Wanted(requests=1), key="other", requests_per_minute=3)).refusal is None


async def test_the_bucket_fills_by_redis_clock(limits: RateLimits, redis: RedisClient, namespace: str) -> None:
    """A minute passes by moving the bucket's own time back."""
    for _ in range(4):
        await take(limits, Wanted(requests=1), requests_per_minute=4)
    bucket = redis_keys.limits(namespace, "k")
    at = float((await redis.hget(bucket, "requests_at")) or 0)  # type: ignore[misc]
    await redis.hset(bucket, "requests_at", str(at - 31))  # type: ignore[misc]
    taken = await take(limits, Wanted(requests=1), requests_per_minute=4)
    assert taken.refusal is None
    assert taken.requests is not None
    assert taken.requests.remaining == 1
    await redis.hset(bucket, "requests_at", str(at + 1e6))  # type: ignore[misc]
    assert (await take(limits, Wanted(requests=1), requests_per_minute=4)).refusal is None, "a clock that was ahead"
    assert await redis.ttl(bucket) > 60


async def test_all_is_taken_or_nothing(limits: RateLimits) -> None:
    most = {"requests_per_minute": 10, "tokens_per_minute": 100}
    assert (await take(limits, Wanted(requests=1, tokens=90), **most)).refusal is None
    refused = await take(limits, Wanted(requests=1, tokens=20), **most)
    assert refused.refusal is not None
    assert "100 tokens a minute" in refused.refusal.message
    assert refused.requests is not None
    assert refused.requests.remaining == 9
    assert (await take(limits, Wanted(requests=1, tokens=10), **most)).refusal is None


async def test_many_gateways_together_let_no_more_in(redis_url: str, limits: RateLimits, namespace: str) -> None:
    async with open_redis(redis_url) as second:
        both = (limits, RateLimits(second, namespace))
        wanted = Wanted(requests=1)
        taken = await asyncio.gather(*(take(both[i % 2], wanted, requests_per_minute=20) for i in range(60)))
    assert 20 <= sum(each.refusal is None for each in taken) <= 20 + 2


async def test_requests_under_way_count_until_they_end_or_their_gateway_is_gone(
    limits: RateLimits, redis: RedisClient, namespace: str
) -> None:
    async def begin(name: str) -> bool:
        return (await take(limits, Wanted(requests=1, name=name), max_parallel=2)).refusal is None

    assert [await begin(name) for name in "abc"] == [True, True, False]
    await limits.release("k", ["a"])
    assert [await begin(name) for name in "cd"] == [True, False]
    under_way = redis_keys.limits_parallel(namespace, "k")
    await redis.zadd(under_way, {"b": 1.0})  # its time has passed
    await limits.hold("k", ["c", "of an earlier time"])
    assert [await begin(name) for name in "de"] == [True, False]
    assert await redis.ttl(under_way) > HELD_S / 2


@pytest.mark.parametrize("is_line_quicker", [False, True])
@pytest.mark.parametrize("limit", ["max_parallel", "max_queued"])
async def test_requests_and_lines_have_the_only_place_in_turns_while_both_want_it(
    limits: RateLimits, redis: RedisClient, namespace: str, limit: str, is_line_quicker: bool
) -> None:
    queued = redis_keys.tenant_jobs(namespace, "alice", "queued")
    turns = []

    async def begin(kind: str) -> bool:
        given = {"name": kind} if limit == "max_parallel" else {"jobs": 1}
        if (await take(limits, Wanted(**given, yields=kind == "line"), **{limit: 1})).refusal is not None:
            return False
        turns.append(kind)
        if limit == "max_queued":
            await redis.zadd(queued, {kind: 1.0})
        return True

    kinds = ["line", "request"] if is_line_quicker else ["request", "line"]
    assert await begin(kinds[0])
    for _ in range(6):
        for kind in kinds:  # neither pauses
            if kind != turns[-1]:
                assert not await begin(kind)
        await limits.release("k", [turns[-1]])
        await redis.delete(queued)
        assert [await begin(kind) for kind in (turns[-1], *({"line", "request"} - {turns[-1]}))] == [False, True]
    assert turns == [*kinds, *kinds, *kinds, kinds[0]]


async def test_the_only_place_is_anybodys_while_nobody_else_wants_it(limits: RateLimits) -> None:
    for _ in range(3):
        assert (await take(limits, Wanted(name="line", yields=True), max_parallel=1)).refusal is None
        await limits.release("k", ["line"])
    for _ in range(3):
        assert (await take(limits, Wanted(name="request"), max_parallel=1)).refusal is None
        await limits.release("k", ["request"])


async def test_jobs_that_wait_are_counted_where_they_wait(
    limits: RateLimits, redis: RedisClient, namespace: str
) -> None:
    waiting = redis_keys.tenant_jobs(namespace, "alice", "queued")
    await redis.zadd(waiting, {"a": 1.0, "b": 2.0})
    assert (await take(limits, Wanted(jobs=1), max_queued=3)).refusal is None
    refused = (await take(limits, Wanted(jobs=2), max_queued=3)).refusal
    assert refused is not None
    assert 0 < refused.retry_after_s < 120
