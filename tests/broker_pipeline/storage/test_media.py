"""The media store over a real JetStream and a real Redis."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from broker_pipeline import redis_keys, subjects
from broker_pipeline.errors import MediaMissingError, QueueFullError, StateError, TransportError
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, JobSpec, MediaRef
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.storage.media_objects import NUM_STREAMS
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.transport import Transport
from tests.kit.waiting import eventually

MIB = 2**20


@pytest.fixture
async def store(transport: Transport, redis: RedisClient, namespace: str) -> MediaStore:
    store = MediaStore(transport, redis, namespace, 64 * MIB)
    await store.ensure()
    return store


async def num_objects(transport: Transport, namespace: str) -> int:
    """Count the subjects that have chunks, as the server sees it."""
    streams = [subjects.media_stream(namespace, shard) for shard in range(NUM_STREAMS)]
    infos = [await transport.jetstream().stream_info(stream, subjects_filter=">") for stream in streams]
    return sum(len(info.state.subjects or ()) for info in infos)


async def until_aged(store: MediaStore, ref: MediaRef, age_s: float) -> None:
    async def is_aged() -> bool:
        return (await store._objects.age_s(ref.object_name) or 0.0) > age_s

    await eventually(is_aged)


async def until_gone(store: MediaStore, ref: MediaRef) -> None:
    async def is_gone() -> bool:
        return await store._objects.get(ref.object_name, ref.num_bytes) is None

    await eventually(is_gone)


@pytest.mark.parametrize("num_bytes", [1, 1000, MIB, MIB + 1, 5 * MIB + 17])
async def test_what_is_put_can_be_got_without_redis(
    store: MediaStore, transport: Transport, namespace: str, num_bytes: int
) -> None:
    content = os.urandom(num_bytes)
    ref = await store.put(content, "job")
    assert ref.sha256 == hashlib.sha256(content).hexdigest()
    assert ref.num_bytes == num_bytes
    assert await MediaStore(transport, None, namespace).get(ref) == content


async def test_equal_bytes_are_stored_once(store: MediaStore, transport: Transport, namespace: str) -> None:
    first, second = await store.put(b"same", "job-1"), await store.put(b"same", "job-2")
    assert first == second
    assert await num_objects(transport, namespace) == 1


async def test_equal_bytes_put_at_once_are_stored_once(
    store: MediaStore, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    content = os.urandom(2 * MIB)
    refs = await asyncio.gather(*(store.put(content, f"job-{number}") for number in range(6)))
    assert len(set(refs)) == 1
    assert await num_objects(transport, namespace) == 1
    assert await redis.scard(redis_keys.media_jobs(namespace, refs[0].sha256)) == 6
    assert await redis.zcard(redis_keys.media_doomed(namespace)) == 0


async def test_bytes_go_with_the_last_job(store: MediaStore, transport: Transport, namespace: str) -> None:
    ref = await store.put(b"shared", "job-1")
    await store.put(b"shared", "job-2")
    await store.release([ref], "job-1")
    assert await store.sweep(0) == 0
    assert await store.get(ref) == b"shared"
    await store.release([ref], "job-2")
    assert await store.sweep(0) == 1
    with pytest.raises(MediaMissingError, match="has no"):
        await store.get(ref)
    assert await num_objects(transport, namespace) == 0
    assert await store.size_bytes() == 0


async def test_grace_keeps_what_was_released_a_moment_ago(store: MediaStore) -> None:
    ref = await store.put(b"x", "job-1")
    await store.release([ref], "job-1")
    assert await store.sweep(60) == 0
    again = await store.put(b"x", "job-2")
    assert again == ref
    assert await store.sweep(0) == 0
    assert await store.get(again) == b"x"


async def test_a_spec_releases_all_of_its_media_and_twice_is_once(store: MediaStore, redis: RedisClient) -> None:
    refs = [await store.put(content, "job-1") for content in (b"one", b"two")]
    other = await store.put(b"two", "job-2")
    content = tuple(ImagePart(media=ref) for ref in refs)
    spec = JobSpec(job_id="job-1", created_at=0.0, messages=(ChatMessage(role="user", content=content),))
    await store.release(spec, "job-1")
    await store.release(spec, "job-1")
    assert await store.sweep(0) == 1
    assert await store.get(other) == b"two"


async def test_put_while_a_sweep_is_half_done(store: MediaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep has given the bytes up in Redis, but has not deleted them yet; somebody puts them again."""
    old = await store.put(b"contested", "job-1")
    await store.release([old], "job-1")
    new: list[MediaRef] = []
    delete = type(store._objects).delete

    async def put_first(objects: object, name: str) -> None:
        if not new:
            new.append(await store.put(b"contested", "job-2"))
        await delete(objects, name)  # type: ignore[arg-type]

    monkeypatch.setattr(type(store._objects), "delete", put_first)
    assert await store.sweep(0) == 1
    assert new[0].object_name != old.object_name
    assert await store.get(new[0]) == b"contested"


async def test_puts_releases_and_sweeps_in_any_order_lose_nothing(store: MediaStore, redis: RedisClient) -> None:
    contents = [bytes([number]) * 100 for number in range(3)]
    is_done = asyncio.Event()

    async def user(number: int) -> None:
        for turn in range(15):
            content, job = contents[(number + turn) % 3], f"job-{number}-{turn}"
            ref = await store.put(content, job)
            await asyncio.sleep(0)
            assert await store.get(ref) == content
            await store.release([ref], job)

    async def sweeper() -> None:
        while not is_done.is_set():
            await store.sweep(0)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        sweepers = [group.create_task(sweeper()) for _ in range(2)]
        users = [group.create_task(user(number)) for number in range(6)]
        await asyncio.gather(*users)
        is_done.set()
        await asyncio.gather(*sweepers)
    await store.sweep(0)
    assert await store.size_bytes() == 0


async def test_a_full_store_refuses_and_keeps_no_piece(
    transport: Transport, redis: RedisClient, namespace: str
) -> None:
    store = MediaStore(transport, redis, namespace, NUM_STREAMS * 3 * MIB)
    await store.ensure()
    await store.put(os.urandom(MIB), "job-1")
    with pytest.raises(QueueFullError, match="maximum bytes exceeded"):
        await store.put(os.urandom(4 * MIB), "job-2")
    assert await store.size_bytes() < 1.1 * MIB
    assert await num_objects(transport, namespace) == 1
    await store.put(os.urandom(MIB), "job-3")


async def test_an_upload_that_died_half_way_is_swept(
    store: MediaStore, transport: Transport, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker_pipeline.storage.media.UPLOAD_S", 0.0)
    started = asyncio.Event()

    async def put_half(objects: object, name: str, content: bytes, *, chunk_bytes: int) -> None:
        await store._objects.jetstream.publish(store._objects._subject(name), content[:10])
        started.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(type(store._objects), "put", put_half)
        upload = asyncio.create_task(store.put(b"0123456789abc", "job-1"))
        await started.wait()
        upload.cancel()  # a cancelled task cleans up as little as a killed process
        with pytest.raises(asyncio.CancelledError):
            await upload
    assert await store.size_bytes() > 0
    assert await store.sweep(0) == 1
    assert await store.size_bytes() == 0


async def test_an_upload_that_a_sweep_overtook_says_so(store: MediaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker_pipeline.storage.media.UPLOAD_S", 0.0)
    put = type(store._objects).put

    async def put_then_sweep(objects: object, name: str, content: bytes, *, chunk_bytes: int) -> None:
        await put(objects, name, content, chunk_bytes=chunk_bytes)  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        await store.sweep(0)

    monkeypatch.setattr(type(store._objects), "put", put_then_sweep)
    with pytest.raises(TransportError, match="try again"):
        await store.put(b"slow", "job-1")


async def test_sweeps_side_by_side_share_the_work(store: MediaStore) -> None:
    refs = [await store.put(b"%d" % number, "job-1") for number in range(5)]
    await store.release(refs, "job-1")
    assert sum(await asyncio.gather(*(store.sweep(0) for _ in range(3)))) == 5
    assert await store.size_bytes() == 0


async def test_bytes_that_vanished_are_stored_anew(store: MediaStore) -> None:
    """The store's disk was lost, or they grew too old; Redis still knows them."""
    ref = await store.put(b"precious", "job-1")
    await store._objects.delete(ref.object_name)
    with pytest.raises(MediaMissingError):
        await store.get(ref)
    again = await store.put(b"precious", "job-2")
    assert again.object_name != ref.object_name
    assert await store.get(again) == b"precious"


async def test_bytes_past_half_of_their_life_are_stored_anew(
    transport: Transport, redis: RedisClient, namespace: str
) -> None:
    store = MediaStore(transport, redis, namespace, MIB, max_age_s=2.0)
    await store.ensure()
    first = await store.put(b"old", "job-1")
    assert await store.put(b"old", "job-1") == first
    await until_aged(store, first, 1.0)
    second = await store.put(b"old", "job-2")
    assert second.object_name != first.object_name
    await until_gone(store, first)
    assert await store.get(second) == b"old"


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"num_bytes": 3}, {"num_bytes": 5}, {"object_name": "no.x"}])
async def test_a_reference_that_lies_gets_nothing(store: MediaStore, change: dict[str, object]) -> None:
    ref = await store.put(b"four", "job-1")
    facts = {"sha256": ref.sha256, "object_name": ref.object_name, "num_bytes": ref.num_bytes}
    with pytest.raises(MediaMissingError):
        await store.get(MediaRef(**{**facts, **change}))  # type: ignore[arg-type]


async def test_a_reader_without_redis_cannot_put(transport: Transport, namespace: str) -> None:
    with pytest.raises(StateError, match="without Redis"):
        await MediaStore(transport, None, namespace).put(b"x", "job")


async def test_ensure_again_changes_the_limits(transport: Transport, redis: RedisClient, namespace: str) -> None:
    await MediaStore(transport, redis, namespace, NUM_STREAMS * MIB).ensure()
    larger = MediaStore(transport, redis, namespace, NUM_STREAMS * 8 * MIB)
    await larger.ensure(update=False)
    with pytest.raises(QueueFullError):
        await larger.put(os.urandom(2 * MIB), "job")
    await larger.ensure()
    await larger.put(os.urandom(2 * MIB), "job")


async def test_media_outlive_a_killed_server(own_nats: EmbeddedNats, redis: RedisClient, namespace: str) -> None:
    async with Transport.open(own_nats.url, name="test") as transport:
        store = MediaStore(transport, redis, namespace, NUM_STREAMS * 8 * MIB)
        await store.ensure()
        content = os.urandom(2 * MIB)
        ref = await store.put(content, "job-1")
        own_nats.kill()
        while transport.is_connected:  # noqa: ASYNC110 - the test asks for nothing that tells
            await asyncio.sleep(0.01)
        with pytest.raises(TransportError):
            await store.put(b"meanwhile", "job-2")
        await own_nats.restart()
        await transport.link.barrier()
        assert await store.get(ref) == content
        assert await store.put(content, "job-3") == ref


def job_with(*refs: MediaRef, job_id: str = "job", num_retries: int = 0) -> JobSpec:
    parts = tuple(ImagePart(media=ref) for ref in refs)
    messages = (ChatMessage(role="user", content=parts),)
    return JobSpec(job_id=job_id, created_at=0.0, messages=messages, num_retries=num_retries)


async def age_kept(redis: RedisClient, namespace: str, seconds: float) -> None:
    key = redis_keys.media_kept(namespace)
    for member, until in await redis.zrange(key, 0, -1, withscores=True):
        await redis.zadd(key, {member: until - seconds})


async def test_a_failed_job_keeps_its_media_until_it_is_sent_again(store: MediaStore) -> None:
    ref = await store.put(b"picture", "job")
    first = job_with(ref)
    await store.keep(first)
    assert await store.sweep(0) == 0
    second = await store.reclaim(job_with(ref, num_retries=1))
    assert second == job_with(ref, num_retries=1)
    await store.hold(second)
    await store.release(first, first.media_holder)
    await store.release(first, first.media_holder)
    assert await store.sweep(0) == 0, "an earlier sending cannot take its media"
    assert await store.get(second.media()[0]) == b"picture"
    await store.release(second, second.media_holder)
    assert await store.sweep(0) == 1


async def test_kept_media_go_after_their_time(store: MediaStore, redis: RedisClient, namespace: str) -> None:
    spec = job_with(await store.put(b"picture", "job"))
    await store.keep(spec)
    await age_kept(redis, namespace, 7 * 24 * 3600 - 1)
    assert await store.sweep(0) == 0
    await age_kept(redis, namespace, 2)
    assert await store.sweep(0) == 1
    with pytest.raises(MediaMissingError):
        await store.reclaim(job_with(*spec.media(), num_retries=1))


async def test_a_reclaim_that_nobody_follows_up_ends_by_itself_and_one_that_is_held_does_not(
    store: MediaStore, redis: RedisClient, namespace: str
) -> None:
    ref = await store.put(b"picture", "job")
    spec = await store.reclaim(job_with(ref, num_retries=1))
    await store.release(job_with(ref), "job")
    await store.hold(spec)
    await age_kept(redis, namespace, 3600)
    assert await store.sweep(0) == 0
    await store.reclaim(spec)
    await age_kept(redis, namespace, 3601)
    assert await store.sweep(0) == 1


async def age_acquired(redis: RedisClient, namespace: str, seconds: float) -> None:
    key = redis_keys.media_acquired(namespace)
    for member, until in await redis.zrange(key, 0, -1, withscores=True):
        await redis.zadd(key, {member: until - seconds})


async def test_a_reference_that_came_after_its_sender_had_given_up_ends_by_itself(
    store: MediaStore, transport: Transport, redis: RedisClient, namespace: str
) -> None:
    """Redis was cut off when a gateway acquired known bytes; that arrived when it was back, the job never."""
    ref = await store.put(b"picture", "job-1")
    assert await store.put(b"picture", "job-of-a-submission-that-failed") == ref
    await store.release([ref], "job-1")
    await age_acquired(redis, namespace, 3599)
    assert await store.sweep(0) == 0
    await age_acquired(redis, namespace, 2)
    assert await store.sweep(0) == 1
    assert await num_objects(transport, namespace) == 0
    assert await redis.exists(redis_keys.media_jobs(namespace, ref.sha256)) == 0


async def test_a_reference_of_a_job_that_is_known_stays_for_as_long_as_the_job_needs_it(
    store: MediaStore, redis: RedisClient, namespace: str
) -> None:
    ref = await store.put(b"picture", "job")
    spec = job_with(ref)
    await JobStore(redis, namespace).create(spec)
    again = job_with(ref, num_retries=1)
    await store.hold(await store.reclaim(again))
    await age_acquired(redis, namespace, 2 * 3600)
    assert await store.sweep(0) == 0
    assert await redis.zcard(redis_keys.media_acquired(namespace)) == 0
    await store.release(spec, spec.media_holder)
    assert await store.sweep(0) == 0
    await store.release(again, again.media_holder)
    assert await store.sweep(0) == 1


async def test_without_all_media_nothing_is_reclaimed(store: MediaStore, redis: RedisClient, namespace: str) -> None:
    one, two = await store.put(b"one", "job"), await store.put(b"two", "other")
    await store.release([two], "other")
    assert await store.sweep(0) == 1
    with pytest.raises(MediaMissingError):
        await store.reclaim(job_with(one, two, num_retries=1))
    await store.release([one], "job")
    assert await store.sweep(0) == 1, "no reference stays behind"
    assert await redis.zcard(redis_keys.media_kept(namespace)) == 0


async def test_old_media_are_stored_anew_for_a_job_that_is_sent_again(
    transport: Transport, redis: RedisClient, namespace: str
) -> None:
    store = MediaStore(transport, redis, namespace, MIB, max_age_s=2.0)
    await store.ensure()
    ref = await store.put(b"picture", "job")
    await until_aged(store, ref, 1.0)
    spec = await store.reclaim(job_with(ref, num_retries=1))
    [fresh] = spec.media()
    assert fresh.object_name != ref.object_name
    await until_gone(store, ref)
    assert await store.get(fresh) == b"picture"


async def test_what_failed_jobs_keep_makes_room_when_the_store_fills(
    transport: Transport, redis: RedisClient, namespace: str
) -> None:
    store = MediaStore(transport, redis, namespace, 8 * MIB)
    await store.ensure()
    for number in range(120):  # many small ones: which stream has each is chance
        job = f"job-{number}"
        await store.keep(job_with(await store.put(os.urandom(24_576), job), job_id=job))
    assert await store.sweep(0) == 0
    waiting = [await store.put(os.urandom(24_576), "waiting") for _ in range(60)]
    assert await store.sweep(0) == 120
    assert [len(await store.get(ref)) for ref in waiting] == 60 * [24_576]
