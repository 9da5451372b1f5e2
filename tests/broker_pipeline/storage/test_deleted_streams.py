"""Somebody deletes the stream, the consumer or the media that we use: on the newest server and on the oldest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from broker_pipeline import subjects
from broker_pipeline.errors import TransportError
from broker_pipeline.storage.jobs import Delivery, JobQueue, QueueDepth
from broker_pipeline.storage.media_objects import NUM_STREAMS, MediaObjects
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.transport import Transport
from tests.broker_pipeline.storage.test_jobs import spec, until_pulling
from tests.kit.running.debian_servers import debians_nats, needs_debians_servers

NAMESPACE = "t"


@pytest_asyncio.fixture(params=["newest", pytest.param("debians", marks=needs_debians_servers)])
async def transport(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Transport]:
    if request.param == "newest":
        async with EmbeddedNats(tmp_path / "nats") as server, Transport.open(server.url, name="test") as opened:
            yield opened
    else:
        async with debians_nats(tmp_path) as url, Transport.open(url, name="test") as opened:
            yield opened


@pytest_asyncio.fixture
async def queue(transport: Transport) -> AsyncIterator[JobQueue]:
    """What a conductor pulls from."""
    queue = JobQueue(transport, NAMESPACE, ack_wait_s=30.0)
    await queue.ensure(update=False)
    async with queue:
        yield queue


@pytest_asyncio.fixture
async def publisher(transport: Transport, queue: JobQueue) -> JobQueue:
    """What a gateway publishes to."""
    publisher = JobQueue(transport, NAMESPACE, max_bytes=2**20)
    await publisher.ensure()
    return publisher


async def delete_consumer(transport: Transport) -> None:
    jetstream = transport.jetstream()
    for consumer in await jetstream.consumers_info(subjects.job_stream(NAMESPACE)):
        await jetstream.delete_consumer(subjects.job_stream(NAMESPACE), consumer.name)


async def delete_stream(transport: Transport) -> None:
    await transport.jetstream().delete_stream(subjects.job_stream(NAMESPACE))


async def pulled(queue: JobQueue) -> Delivery:
    delivery = await queue.pull(10.0)
    assert delivery is not None
    return delivery


Delete = Callable[[Transport], Awaitable[None]]
BOTH = pytest.mark.parametrize("delete", [delete_consumer, delete_stream])


@BOTH
async def test_whoever_pulls_goes_on(
    transport: Transport, queue: JobQueue, publisher: JobQueue, delete: Delete
) -> None:
    """Whether it was waiting for a job at that moment, and is told, or not, when an old server never says a word."""
    for number in range(2):
        pulling = asyncio.create_task(pulled(queue)) if number else None
        if pulling:
            await until_pulling(transport, NAMESPACE)
        await delete(transport)
        await publisher.depth()
        await publisher.publish(spec(f"job-{number}"))
        delivery = await (pulling or pulled(queue))
        assert delivery.spec.job_id == f"job-{number}"
        await delivery.ack()
    assert await publisher.depth() == QueueDepth(num_waiting=0, num_in_progress=0)


@BOTH
async def test_whoever_publishes_goes_on_and_keeps_the_limits(
    transport: Transport, queue: JobQueue, publisher: JobQueue, delete: Delete
) -> None:
    await delete(transport)
    await publisher.publish(spec("a"))
    assert (await pulled(queue)).spec.job_id == "a"
    info = await transport.jetstream().stream_info(subjects.job_stream(NAMESPACE))
    assert info.config.max_bytes == 2**20


@BOTH
async def test_the_depth_can_be_asked_by_anybody(
    transport: Transport, queue: JobQueue, publisher: JobQueue, delete: Delete
) -> None:
    await delete(transport)
    for asking in (queue, publisher, JobQueue(transport, NAMESPACE)):
        assert await asking.depth() == QueueDepth(num_waiting=0, num_in_progress=0)


async def test_with_the_consumer_no_job_is_lost(transport: Transport, queue: JobQueue, publisher: JobQueue) -> None:
    """Those in progress are delivered again as well, to whoever pulls next."""
    for number in range(4):
        await publisher.publish(spec(f"job-{number}"))
    held = [await pulled(queue) for _ in range(2)]
    await delete_consumer(transport)
    again = [await pulled(queue) for _ in range(4)]
    assert [delivery.spec.job_id for delivery in again] == [f"job-{number}" for number in range(4)]
    for delivery in (*held, *again):
        with contextlib.suppress(TransportError):
            await delivery.ack(0.5)
    assert await publisher.depth() == QueueDepth(num_waiting=0, num_in_progress=0)


async def test_a_late_acknowledgement_takes_no_job_out_of_the_next_stream(
    transport: Transport, queue: JobQueue, publisher: JobQueue
) -> None:
    """Messages of the new stream have the numbers that those of the old one had."""
    for number in range(3):
        await publisher.publish(spec(f"old-{number}"))
    old = [await pulled(queue) for _ in range(3)]
    await delete_stream(transport)
    for number in range(3):
        await publisher.publish(spec(f"new-{number}"))
    first = await pulled(queue)
    for delivery in old:
        with contextlib.suppress(TransportError):
            await delivery.in_progress()
            await delivery.ack(0.3)
    assert await publisher.depth() == QueueDepth(num_waiting=2, num_in_progress=1)
    assert [first.spec.job_id, *[(await pulled(queue)).spec.job_id for _ in range(2)]] == ["new-0", "new-1", "new-2"]


async def test_a_queue_made_again_is_younger(transport: Transport, queue: JobQueue, publisher: JobQueue) -> None:
    first = await publisher.made_at()
    assert await queue.made_at() == first
    await delete_consumer(transport)
    assert await queue.made_at() == first
    await delete_stream(transport)
    assert await queue.made_at() > first


async def test_a_media_store_that_is_gone_is_empty_until_somebody_stores_something(transport: Transport) -> None:
    objects = MediaObjects(transport.jetstream(for_bulk=True, timeout_s=1.0), "gone", 2**20, 3600.0)
    await objects.ensure()
    await objects.put("one", b"1" * 10)
    for shard in range(NUM_STREAMS):
        await transport.jetstream().delete_stream(subjects.media_stream("gone", shard))
    assert await objects.get("one", 10) is None
    assert await objects.age_s("one") is None
    await objects.delete("one")
    assert await objects.size_bytes() == 0
    await objects.put("two", b"2" * 10)
    assert await objects.get("two", 10) == b"2" * 10
    assert await objects.get("one", 10) is None
