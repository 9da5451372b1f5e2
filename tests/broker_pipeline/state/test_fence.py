"""What may begin an attempt: whoever has the lease, or anybody where nobody has."""

from __future__ import annotations

import pytest

from broker_pipeline.errors import JobNotFoundError, LeaseLostError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.jobs import ChatMessage, JobSpec, TextPart
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.redis_client import RedisClient

MODEL = "a" * 64


@pytest.fixture
def store(redis: RedisClient, namespace: str) -> JobStore:
    return JobStore(redis, namespace)


def make_spec() -> JobSpec:
    message = ChatMessage(role="user", content=(TextPart(text="Describe."),))
    return JobSpec(job_id=new_job_id(), created_at=1.0, messages=(message,))


async def test_an_attempt_begins_while_the_lease_is_nobody_elses(
    redis: RedisClient, store: JobStore, namespace: str
) -> None:
    spec = make_spec()
    mine, theirs = (Lease(redis, namespace, "main", instance) for instance in ("mine", "theirs"))
    assert (await store.begin_attempt(spec, MODEL, fence=mine.fence)).number == 1, "nobody has it"
    await mine.acquire()
    assert (await store.begin_attempt(spec, MODEL, fence=mine.fence)).number == 2
    await theirs.acquire(gone=["mine"])
    with pytest.raises(LeaseLostError):
        await store.begin_attempt(spec, MODEL, fence=mine.fence)
    assert (await store.get(spec.job_id)).attempt == 2
    with pytest.raises(LeaseLostError):
        await store.begin_attempt(other := make_spec(), MODEL, fence=mine.fence)
    with pytest.raises(JobNotFoundError):
        await store.get(other.job_id)
    assert (await store.begin_attempt(spec, MODEL, fence=theirs.fence)).number == 3


async def test_what_is_no_lease_is_nobodys(redis: RedisClient, store: JobStore, namespace: str) -> None:
    fence = Lease(redis, namespace, "main", "mine").fence
    await redis.lpush(fence.key, "garbage")
    assert (await store.begin_attempt(make_spec(), MODEL, fence=fence)).number == 1
