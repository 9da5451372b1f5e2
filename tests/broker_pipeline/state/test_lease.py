import asyncio
import signal
import time

import pytest

from broker_pipeline import redis_keys
from broker_pipeline.errors import LeaseLostError, StateError
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.local.servers import EmbeddedRedis
from tests.kit.fake_clock import FakeClock
from tests.kit.waiting import eventually


async def acquired(lease: Lease) -> int:
    """Wait for a lease that another may have."""
    while (epoch := await lease.acquire()) is None:  # noqa: ASYNC110 - as conductors do
        await asyncio.sleep(0.01)
    return epoch


async def test_epochs_grow_from_holder_to_holder(redis: RedisClient, namespace: str) -> None:
    epochs = []
    for instance in "abcab":
        lease = Lease(redis, namespace, "main", instance, ttl_s=5)
        epochs.append(await acquired(lease))
        assert lease.is_held
        await lease.release()
        assert not lease.is_held
    assert epochs == sorted(set(epochs))


async def test_acquiring_again_is_the_same_epoch(redis: RedisClient, namespace: str) -> None:
    lease = Lease(redis, namespace, "main", "a", ttl_s=5)
    assert await lease.acquire() == await lease.acquire()


async def test_a_standby_gets_in_after_the_release(redis: RedisClient, namespace: str) -> None:
    first, second = (Lease(redis, namespace, "main", name, ttl_s=5) for name in "ab")
    epoch = await acquired(first)
    assert await second.acquire() is None
    assert not second.is_held
    await first.release()
    assert await acquired(second) > epoch


async def test_shares_have_leases_of_their_own_and_no_epoch_twice(redis: RedisClient, namespace: str) -> None:
    of = {"": "a", "x": "a", "y": "b"}
    leases = [Lease(redis, namespace, "main", name, share=share, ttl_s=5) for share, name in of.items()]
    epochs = [await lease.acquire() for lease in leases]
    assert len(set(epochs)) == 3
    assert None not in epochs
    assert await Lease(redis, namespace, "main", "b", share="x", ttl_s=5).acquire() is None


async def test_a_standby_gets_in_after_a_dead_holder(redis: RedisClient, namespace: str) -> None:
    first, second = (Lease(redis, namespace, "main", name, ttl_s=0.5) for name in "ab")
    await first.acquire()
    started = time.monotonic()
    await acquired(second)
    assert 0.4 < time.monotonic() - started < 1.0
    assert not first.is_held


async def test_the_lease_of_one_that_is_gone_is_free_and_it_hears_of_that(redis: RedisClient, namespace: str) -> None:
    first, second = (Lease(redis, namespace, "main", name, ttl_s=60) for name in "ab")
    epoch = await acquired(first)
    assert await second.acquire({"c"}) is None
    newer = await second.acquire({"a", "c"})
    assert newer is not None
    assert newer > epoch
    with pytest.raises(LeaseLostError, match="another conductor"):
        async with asyncio.timeout(5):
            await first.hold()
    assert not first.is_held
    assert second.is_held


async def test_who_has_stood_still_does_not_believe_that_it_has_the_lease(redis: RedisClient, namespace: str) -> None:
    clock = FakeClock()
    lease = Lease(redis, namespace, "main", "a", ttl_s=10, clock=clock)
    await lease.acquire()
    clock.pass_s(0.7)
    assert lease.is_held
    clock.pass_s(0.1)
    assert not lease.is_held, "another may have taken it, although it has not ended"
    assert await lease.acquire() is not None
    assert lease.is_held


async def test_pipelines_have_leases_of_their_own(redis: RedisClient, namespace: str) -> None:
    for pipeline in ("one", "two"):
        assert await Lease(redis, namespace, pipeline, pipeline, ttl_s=5).acquire() is not None


async def test_of_many_racing_standbys_one_holds_at_a_time(redis_url: str, namespace: str) -> None:
    holders: list[str] = []
    epochs: list[int] = []

    async def stand(instance: str) -> None:
        async with open_redis(redis_url) as client:
            lease = Lease(client, namespace, "main", instance, ttl_s=1)
            epochs.append(await acquired(lease))
            holders.append(instance)
            await asyncio.sleep(0.02)
            assert holders[-1] == instance, "another got in meanwhile"
            await lease.release()

    await asyncio.gather(*(stand(f"i{i}") for i in range(8)))
    assert len(set(holders)) == 8
    assert epochs == sorted(set(epochs))


async def test_hold_keeps_the_lease_beyond_its_time_to_live(redis: RedisClient, namespace: str) -> None:
    lease = Lease(redis, namespace, "main", "a", ttl_s=0.8)
    await lease.acquire()
    acquired = time.monotonic()
    holding = asyncio.ensure_future(lease.hold())
    key = redis_keys.lease(namespace, "main")

    async def is_renewed() -> bool:
        return await redis.pttl(key) > 640

    while time.monotonic() < acquired + 0.8:
        assert await redis.pexpire(key, 600)
        await eventually(is_renewed)
    assert lease.is_held
    assert await redis.get(key) == b"a"
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding


async def test_hold_ends_when_another_has_the_lease(redis: RedisClient, namespace: str) -> None:
    lease = Lease(redis, namespace, "main", "a", ttl_s=0.6)
    await lease.acquire()
    await redis.set(redis_keys.lease(namespace, "main"), "b")
    with pytest.raises(LeaseLostError, match="main"):
        async with asyncio.timeout(2):
            await lease.hold()
    assert not lease.is_held
    await lease.release()
    assert await redis.get(redis_keys.lease(namespace, "main")) == b"b"


async def test_hold_ends_in_time_when_redis_falls_silent(own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_redis(own_redis.url, timeout_s=30) as client:
        lease = Lease(client, namespace, "main", "a", ttl_s=0.8)
        await lease.acquire()
        acquired = time.monotonic()
        own_redis.kill(signal.SIGSTOP)
        with pytest.raises(LeaseLostError, match=r"not renewed within 0.8 s"):
            await lease.hold()
        assert time.monotonic() - acquired <= 0.85, "before Redis would let another in"
        own_redis.kill(signal.SIGCONT)


class CountingLease(Lease):
    num_renewals = 0

    async def _renew(self) -> None:
        self.num_renewals += 1
        await super()._renew()


async def test_hold_outlives_a_quick_restart_of_redis(own_redis: EmbeddedRedis, namespace: str) -> None:
    async with open_redis(own_redis.url) as client:
        lease = CountingLease(client, namespace, "main", "a", ttl_s=2.0)
        await lease.acquire()
        first_end = lease._valid_until
        holding = asyncio.ensure_future(lease.hold())
        own_redis.kill()
        await own_redis.process.wait()
        with pytest.raises(StateError):
            await lease.acquire()
        await eventually(lambda: lease.num_renewals > 1)
        assert lease._valid_until == first_end, "they failed"
        await own_redis.restart()
        await eventually(lambda: lease._valid_until > first_end)
        assert not holding.done()
        assert lease.is_held
        holding.cancel()
        await asyncio.wait({holding})


async def test_a_wiped_redis_ends_the_lease_and_hands_out_a_newer_epoch(
    own_redis: EmbeddedRedis, namespace: str
) -> None:
    async with open_redis(own_redis.url) as client:
        lease = Lease(client, namespace, "main", "a", ttl_s=0.6)
        epoch = await acquired(lease)
        await client.flushall()
        with pytest.raises(LeaseLostError):
            await lease.hold()
        again = await acquired(lease)
        assert again > epoch
        await client.flushall()
        await asyncio.sleep(0.02)
        assert await acquired(Lease(client, namespace, "main", "b", ttl_s=0.6)) > again
