import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from broker_pipeline import redis_keys, subjects
from broker_pipeline.errors import StateError, TransportError, WorkerNameTakenError
from broker_pipeline.messages.workers import BlockRange, Heartbeat, WorkerRecord
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.state.registry import WorkerRegistry, pipelines
from broker_pipeline.tools.local.servers import EmbeddedRedis
from tests.kit.waiting import eventually

MakeRecord = Callable[..., WorkerRecord]


@pytest.fixture
def make_record(namespace: str) -> MakeRecord:
    def make(worker: str = "stage-0", instance: str = "a", **fields: Any) -> WorkerRecord:
        defaults = {"role": "stage", "pipeline": "main", "host": "box", "pid": 7, "blocks": BlockRange(start=0, stop=2)}
        facts = {**defaults, **fields}
        subject = subjects.worker_root(namespace, facts["pipeline"], facts["role"], worker, instance)
        return WorkerRecord(worker=worker, instance=instance, subject=subject, **facts)

    return make


def make_heartbeat() -> Heartbeat:
    return Heartbeat(worker="stage-0", instance="a", role="stage")


class Publications:
    """Collects what is published, or fails as a broken broker does."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, msgspec.Struct]] = []
        self.is_broken = False
        self.num_refused = 0

    async def publish(self, subject: str, body: msgspec.Struct) -> None:
        if self.is_broken:
            self.num_refused += 1
            raise TransportError("gone")
        self.sent.append((subject, body))


@pytest.fixture
def registry(redis: RedisClient, namespace: str) -> WorkerRegistry:
    return WorkerRegistry(redis, namespace, "main", ttl_s=0.5)


async def test_registered_workers_are_listed_until_released(registry: WorkerRegistry, make_record: MakeRecord) -> None:
    second, first = make_record("stage-1", "x"), make_record("stage-0", "y")
    for record in (second, first, first):
        await registry.register(record)
    assert await registry.workers() == [first, second]
    for _ in range(2):
        await registry.release(first)
    assert await registry.workers() == [second]


async def test_pipelines_do_not_see_each_others_workers(
    redis: RedisClient, namespace: str, make_record: MakeRecord
) -> None:
    for name in ("main", "other"):
        await WorkerRegistry(redis, namespace, name).register(make_record(pipeline=name, instance=name))
    assert [record.instance for record in await WorkerRegistry(redis, namespace, "other").workers()] == ["other"]
    assert await pipelines(redis, namespace) == ["main", "other"]


async def test_a_record_that_is_not_renewed_disappears(
    registry: WorkerRegistry, redis: RedisClient, namespace: str, make_record: MakeRecord
) -> None:
    key = redis_keys.worker(namespace, "main", "stage-0")
    await registry.register(make_record())
    await redis.pexpire(key, 250)
    await registry.renew(make_record(state="draining"))
    assert await redis.pttl(key) > 250
    assert [record.state for record in await registry.workers()] == ["draining"]

    async def is_gone() -> bool:
        return await registry.workers() == []

    await eventually(is_gone)
    assert await redis.smembers(redis_keys.workers(namespace, "main")) == set()


async def test_the_name_of_a_live_worker_is_refused_quickly(
    redis: RedisClient, namespace: str, make_record: MakeRecord
) -> None:
    registry = WorkerRegistry(redis, namespace, "main", ttl_s=2.0)
    await registry.register(make_record(instance="a"))
    living = asyncio.ensure_future(registry.announce(make_record, make_heartbeat, Publications()))
    started = time.monotonic()
    with pytest.raises(WorkerNameTakenError, match=r"live stage on box \(pid 7, instance a\).*--name"):
        await registry.register(make_record(instance="b"))
    assert time.monotonic() - started < 1.5, "a renewal was seen well before the record could end"
    living.cancel()
    await asyncio.wait({living})
    assert [record.instance for record in await registry.workers()] == ["a"]


async def test_a_restarted_worker_waits_for_its_former_selfs_record_to_end(
    registry: WorkerRegistry, make_record: MakeRecord
) -> None:
    await registry.register(make_record(instance="killed"))
    started = time.monotonic()
    await registry.register(make_record(instance="new"))
    assert 0.3 < time.monotonic() - started < 1.0
    assert [record.instance for record in await registry.workers()] == ["new"]


async def test_an_old_instance_can_neither_renew_nor_release_the_new_ones_record(
    registry: WorkerRegistry, make_record: MakeRecord
) -> None:
    await registry.register(make_record(instance="old"))
    await registry.register(make_record(instance="new"))
    with pytest.raises(WorkerNameTakenError):
        await registry.renew(make_record(instance="old"))
    await registry.release(make_record(instance="old"))
    assert [record.instance for record in await registry.workers()] == ["new"]


async def test_of_two_racing_registrations_one_wins(redis_url: str, namespace: str, make_record: MakeRecord) -> None:
    async with open_redis(redis_url) as one, open_redis(redis_url) as two:
        registries = [WorkerRegistry(client, namespace, "main", ttl_s=1.0) for client in (one, two)]

        async def live(registry: WorkerRegistry, record: WorkerRecord) -> None:
            await registry.register(record)
            await registry.announce(lambda: record, make_heartbeat, Publications())

        lives = [
            asyncio.ensure_future(live(registry, make_record(instance=name)))
            for registry, name in zip(registries, "ab", strict=True)
        ]
        done, pending = await asyncio.wait(lives, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == len(pending) == 1
        assert isinstance(done.pop().exception(), WorkerNameTakenError)
        for life in pending:
            life.cancel()
        await asyncio.wait(pending)


async def test_of_many_who_take_a_name_at_the_same_moment_one_has_it(
    redis_url: str, namespace: str, make_record: MakeRecord
) -> None:
    async with open_redis(redis_url) as one, open_redis(redis_url) as two:
        registries = [WorkerRegistry(client, namespace, "main") for client in (one, two)]
        names = [f"i{number}" for number in range(32)]
        taking = [registries[number % 2].renew(make_record(instance=name)) for number, name in enumerate(names)]
        ends = await asyncio.gather(*taking, return_exceptions=True)
        assert [type(end) for end in ends if end is not None] == [WorkerNameTakenError] * 31
        [winner] = await registries[0].workers()
        assert winner.instance == names[ends.index(None)]


async def test_announce_renews_the_changing_record_and_beats(
    registry: WorkerRegistry, redis: RedisClient, namespace: str, make_record: MakeRecord
) -> None:
    await registry.register(make_record())
    started = time.monotonic()
    state = {"now": "ready"}
    out = Publications()
    living = asyncio.ensure_future(
        registry.announce(lambda: make_record(state=state["now"]), make_heartbeat, out, heartbeat_s=0.05)
    )
    await eventually(lambda: len(out.sent) > 12)
    assert time.monotonic() - started >= 12 * 0.05, "longer than the record would have lived"
    state["now"] = "draining"

    async def is_renewed() -> bool:
        return [record.state for record in await registry.workers()] == ["draining"]

    await eventually(is_renewed)
    living.cancel()
    with pytest.raises(asyncio.CancelledError):
        await living
    assert all(sent == (subjects.heartbeat(make_record().subject), make_heartbeat()) for sent in out.sent)


async def test_announce_outlives_redis_and_broker(
    own_redis: EmbeddedRedis, namespace: str, make_record: MakeRecord
) -> None:
    async with open_redis(own_redis.url, timeout_s=0.5) as client:
        registry = WorkerRegistry(client, namespace, "main", ttl_s=0.5)
        await registry.register(make_record())
        out = Publications()
        living = asyncio.ensure_future(registry.announce(make_record, make_heartbeat, out, heartbeat_s=0.05))
        await eventually(lambda: bool(out.sent))
        out.is_broken = True
        own_redis.kill()
        await own_redis.process.wait()
        await eventually(lambda: out.num_refused > 4)  # 0.2 s, in which the record is to be renewed twice
        with pytest.raises(StateError):
            await registry.workers()
        num_sent = len(out.sent)
        out.is_broken = False
        await own_redis.restart()
        await client.flushall()

        async def is_written_again() -> bool:
            return [record.instance for record in await registry.workers()] == ["a"]

        await eventually(is_written_again)
        await eventually(lambda: len(out.sent) > num_sent)
        living.cancel()
        await asyncio.wait({living})


async def test_announce_ends_when_another_instance_has_taken_the_name(
    registry: WorkerRegistry, make_record: MakeRecord
) -> None:
    await registry.register(make_record(instance="new"))
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.timeout(2):
            await registry.announce(lambda: make_record(instance="old"), make_heartbeat, Publications())
    assert caught.group_contains(WorkerNameTakenError)
