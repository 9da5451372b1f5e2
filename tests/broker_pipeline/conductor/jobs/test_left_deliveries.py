"""What a dead conductor had in its hands is delivered again at once, not when its time has passed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from broker_pipeline import redis_keys
from broker_pipeline.conductor.jobs.left_deliveries import LeftDeliveries
from broker_pipeline.errors import TransportError
from broker_pipeline.messages.jobs import ChatMessage, JobSpec, TextPart
from broker_pipeline.state.held_jobs import HeldJobs, Hold
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.jobs import Delivery, JobQueue
from broker_pipeline.wire.transport import Transport

MODEL = "a" * 64


@dataclass
class Side:
    """A queue whose jobs come back by themselves after a minute, and what Redis knows of them."""

    transport: Transport
    redis: RedisClient
    namespace: str
    queue: JobQueue
    store: JobStore

    async def put(self, job_id: str) -> None:
        """Put a job into the queue."""
        text = ChatMessage(role="user", content=(TextPart(text="hello"),))
        await self.queue.publish(JobSpec(job_id=job_id, created_at=1.0, messages=(text,)))

    async def taken(self, job_id: str, *, epoch: int, share: str = "") -> Delivery:
        """Have a tenure take a job and begin it."""
        await self.put(job_id)
        delivery = await self.queue.pull(5.0)
        assert delivery is not None
        await self.store.begin_attempt(delivery.spec, MODEL, hold=Hold(epoch, share, delivery.name))
        return delivery

    def left(self, epoch: int, share: str = "") -> LeftDeliveries:
        """Return what a tenure does first."""
        return LeftDeliveries(self.transport, HeldJobs(self.redis, self.namespace), self.queue, share, epoch)

    async def again(self) -> list[str]:
        """Return the jobs that are there for whoever pulls, with their number of deliveries."""
        found = []
        while (delivery := await self.queue.pull(0.5)) is not None:
            found.append(f"{delivery.spec.job_id} {delivery.num_deliveries}")
        return sorted(found)


@pytest.fixture
async def side(transport: Transport, redis: RedisClient, namespace: str) -> Side:
    queue = JobQueue(transport, namespace, ack_wait_s=60.0)
    await queue.ensure()
    return Side(transport, redis, namespace, queue, JobStore(redis, namespace))


async def test_jobs_of_earlier_tenures_are_delivered_again(side: Side) -> None:
    async with side.queue:
        await side.taken("a", epoch=5)
        await side.taken("b", epoch=6)
        await side.left(epoch=7).hand_back_in_time()
        assert await side.again() == ["a 2", "b 2"]


async def test_jobs_of_others_stay_where_they_are_and_an_end_without_acknowledgement_is_seen_again(side: Side) -> None:
    async with side.queue:
        await side.taken("mine", epoch=7)
        await side.taken("of-another-share", epoch=5, share="x")
        await side.taken("ended", epoch=5)
        await side.store.finish("ended", 1, "cancelled")
        await side.left(epoch=7).hand_back_in_time()
        assert await side.again() == ["ended 2"]
        assert await side.redis.hget(redis_keys.job(side.namespace, "ended"), "held") is None


async def test_a_job_that_nobody_had_begun_yet_is_delivered_again(side: Side) -> None:
    """Its conductor died between its delivery and the first word of that in Redis."""
    async with side.queue:
        await side.taken("of-another-share", epoch=5, share="x")
        ended = await side.taken("ended", epoch=7)
        await ended.ack()
        await side.put("not-begun")
        assert await side.queue.pull(5.0) is not None
        await side.taken("mine", epoch=7)
        await side.put("waiting")
        await side.left(epoch=7).hand_back_in_time()
        assert await side.again() == ["not-begun 2", "waiting 1"]


async def test_what_nobody_can_read_counts_as_held_by_nobody(side: Side) -> None:
    async with side.queue:
        for job_id in "abcd":
            await side.taken(job_id, epoch=5)
        await side.redis.hset(redis_keys.job(side.namespace, "a"), "held", b"\xff{")
        hold = b'{"epoch":5,"share":"","delivery":"nobody.knows"}'
        await side.redis.hset(redis_keys.job(side.namespace, "d"), "held", hold)
        await side.redis.set(redis_keys.job(side.namespace, "b"), "no hash")
        assert await side.left(epoch=7).hand_back(), "none of them is in the others' way"
        assert await side.again() == ["a 2", "b 2", "c 2", "d 2"]


async def test_handing_back_twice_delivers_once(side: Side) -> None:
    async with side.queue:
        await side.taken("a", epoch=5)
        await side.left(epoch=7).hand_back_in_time()
        await side.left(epoch=7).hand_back_in_time()
        assert await side.again() == ["a 2"]


async def test_what_a_dead_tenure_began_and_a_late_one_was_given_is_delivered_again(side: Side) -> None:
    """The hold is the dead one's still, which keeps nothing from being handed back."""
    async with side.queue:
        await side.taken("a", epoch=5)
        handing_back = asyncio.create_task(side.left(epoch=7).hand_back())
        late = await side.queue.pull(5.0)
        assert late is not None
        assert late.num_deliveries == 2, "handed back, and given to somebody who is refused it"
        await handing_back
        assert await side.again() == ["a 3"]


async def test_what_was_delivered_as_the_broker_went_away_is_handed_back_when_it_is_back(side: Side) -> None:
    async with side.queue:
        in_hands: list[str] = []
        left = LeftDeliveries(side.transport, HeldJobs(side.redis, side.namespace), side.queue, "", 7, lambda: in_hands)
        for job_id in ("lost", "taken"):
            await side.put(job_id)
            delivery = await side.queue.pull(5.0)
            assert delivery is not None
        in_hands.append(delivery.name)
        running = asyncio.create_task(left.run())
        for num_deliveries in (2, 3):  # at the tenure's begin, and after an outage
            again = await side.queue.pull(5.0)
            assert again is not None
            assert (again.spec.job_id, again.num_deliveries) == ("lost", num_deliveries)
            assert await side.again() == []
            left.on_reconnect()
        running.cancel()
        await asyncio.wait({running})


@pytest.mark.parametrize("name", ["", "somewhere.else", "$JS.ACK", "$JS.ACK.a b", "$JS.ACK.>", "$JS.ACK.a\r\nPUB x 0"])
async def test_a_name_that_is_no_delivery_is_refused(side: Side, name: str) -> None:
    with pytest.raises(TransportError, match="no delivery"):
        await side.queue.hand_back(name)
