"""Jobs that are sent again or discarded, against a real Redis."""

import asyncio
import contextlib
import random

import msgspec
import pytest

from broker_pipeline import redis_keys
from broker_pipeline.errors import ComputeError, Failure, JobNotFoundError, JobStateError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.jobs import (
    ChatMessage,
    JobRecord,
    JobResult,
    JobSpec,
    PastEnd,
    TextPart,
    TokenEntry,
    Usage,
)
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import JobCounts, JobStore, TokenCommit
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.unpublished_jobs import UnpublishedJobs

MODEL = "a" * 64
NUM_PAST_ENDS = 10  # of scripts/jobs/prelude.lua
CAUSE = Failure("compute", 'it "broke"\nin the middle', retryable=False)
TOKENS = tuple(TokenEntry(token_id=number) for number in range(3))
RESULT = JobResult(
    text="a cat", finish_reason="stop", usage=Usage(num_prompt_tokens=5, num_visual_tokens=3, num_output_tokens=3)
)


@pytest.fixture
def store(redis: RedisClient, namespace: str) -> JobStore:
    return JobStore(redis, namespace)


@pytest.fixture
def failed(redis: RedisClient, namespace: str) -> FailedJobs:
    return FailedJobs(redis, namespace)


def again(spec: JobSpec, num_retries: int = 1) -> JobSpec:
    return msgspec.structs.replace(spec, num_retries=num_retries)


async def failed_job(store: JobStore, key: str | None = None) -> JobSpec:
    spec = JobSpec(
        job_id=new_job_id(),
        created_at=1.7e9,
        messages=(ChatMessage(role="user", content=(TextPart(text="Describe."),)),),
        metadata={"a": "b"},
    )
    await store.create(spec, key)
    await fail(store, spec)
    return spec


async def fail(store: JobStore, spec: JobSpec, cause: Failure = CAUSE) -> JobRecord:
    attempt = await store.begin_attempt(spec, MODEL)
    await store.commit([TokenCommit(spec.job_id, attempt.number, 0, TOKENS)])
    assert await store.finish(spec.job_id, attempt.number, "failed", error=cause)
    return await store.get(spec.job_id)


async def test_a_job_sent_again_starts_over_and_remembers(store: JobStore, failed: FailedJobs) -> None:
    spec = await failed_job(store)
    before = await store.get(spec.job_id)
    record = await failed.retry(again(spec))
    assert record == await store.get(spec.job_id)
    assert (record.status, record.num_retries, record.error, record.result) == ("queued", 1, None, None)
    assert (record.created_at, record.metadata) == (spec.created_at, {"a": "b"})
    assert (record.started_at, record.finished_at) == (None, None)
    assert before.finished_at is not None
    assert record.failures == (PastEnd(status="failed", attempt=1, finished_at=before.finished_at, error=CAUSE),)
    assert await store.tokens(spec.job_id) == []
    assert await store.counts() == JobCounts(queued=1)
    assert [found.job_id for found in (await store.list(status="failed")).records] == []

    assert (record.fingerprint, record.first_attempt) == (None, 2), "none of its tokens are there any more"

    attempt = await store.begin_attempt(again(spec), MODEL)
    assert (attempt.number, attempt.tokens, attempt.is_finished) == (2, [], False)
    assert await store.finish(spec.job_id, 2, "succeeded", RESULT)
    record = await store.get(spec.job_id)
    assert (record.status, record.error, len(record.failures)) == ("succeeded", None, 1)
    assert await store.counts() == JobCounts(succeeded=1)


async def test_a_job_sent_again_no_longer_expires_until_it_ends(
    store: JobStore, failed: FailedJobs, redis: RedisClient, namespace: str
) -> None:
    spec = await failed_job(store)
    key = redis_keys.job(namespace, spec.job_id)
    assert await redis.ttl(key) > 0
    await failed.retry(again(spec))
    assert await redis.ttl(key) == -1
    assert await redis.zscore(redis_keys.expiry(namespace), spec.job_id) is None


async def test_sending_again_twice_is_once(store: JobStore, failed: FailedJobs) -> None:
    spec = await failed_job(store)
    records = await asyncio.gather(*(failed.retry(again(spec)) for _ in range(5)))
    assert len({msgspec.json.encode(record) for record in records}) == 1
    assert await store.counts() == JobCounts(queued=1)


async def test_only_what_has_failed_or_was_cancelled_is_sent_again(store: JobStore, failed: FailedJobs) -> None:
    with pytest.raises(JobNotFoundError):
        await failed.retry(JobSpec(job_id="gone", created_at=0.0, num_retries=1, messages=_messages()))
    spec = JobSpec(job_id=new_job_id(), created_at=0.0, messages=_messages())
    await store.create(spec)
    for status in ("queued", "running"):
        with pytest.raises(JobStateError, match=status):
            await failed.retry(again(spec))
        attempt = await store.begin_attempt(spec, MODEL)
    await store.finish(spec.job_id, attempt.number, "succeeded", RESULT)
    with pytest.raises(JobStateError, match="succeeded"):
        await failed.retry(again(spec))
    cancelled = JobSpec(job_id=new_job_id(), created_at=0.0, messages=_messages())
    await store.create(cancelled)
    await store.request_cancel(cancelled.job_id)
    record = await failed.retry(again(cancelled))
    assert (record.status, record.failures[0].status, record.failures[0].error) == ("queued", "cancelled", None)
    assert not (await store.begin_attempt(again(cancelled), MODEL)).is_cancelled


async def test_what_an_earlier_sending_left_behind_changes_nothing(store: JobStore, failed: FailedJobs) -> None:
    spec = await failed_job(store)
    await failed.retry(again(spec))
    assert not await store.finish(spec.job_id, 1, "succeeded", RESULT), "the repeat of a finish whose answer was lost"
    assert await store.commit([TokenCommit(spec.job_id, 1, 0, TOKENS)]) == [False]
    stale = await store.begin_attempt(spec, MODEL)
    assert (stale.is_finished, stale.has_failed) == (True, False), "its message is to be acknowledged"
    assert (await store.get(spec.job_id)).status == "queued"
    assert (await store.begin_attempt(again(spec), MODEL)).number == 2


async def test_a_wish_that_redis_lost_is_granted_by_its_message(store: JobStore) -> None:
    """Redis came back from a file of a second ago; the queue holds the job as it was sent again."""
    spec = await failed_job(store)
    attempt = await store.begin_attempt(again(spec), MODEL)
    assert (attempt.number, attempt.is_finished, attempt.tokens) == (2, False, [])
    record = await store.get(spec.job_id)
    assert (record.status, record.num_retries, [past.error for past in record.failures]) == ("running", 1, [CAUSE])


async def test_only_the_last_failures_are_kept(store: JobStore, failed: FailedJobs) -> None:
    spec = await failed_job(store)
    for number in range(1, NUM_PAST_ENDS + 5):
        await failed.retry(again(spec, number))
        await fail(store, again(spec, number), Failure("compute", f"number {number}\n"))
    record = await store.get(spec.job_id)
    messages = [past.error.message for past in record.failures if past.error]
    last = NUM_PAST_ENDS + 4
    assert messages == [f"number {number}\n" for number in range(last - NUM_PAST_ENDS, last)]
    assert record.error is not None
    assert record.error.message == f"number {last}\n"


async def test_what_is_not_published_is_noted_until_it_is(
    redis: RedisClient, namespace: str, store: JobStore, failed: FailedJobs
) -> None:
    notes = UnpublishedJobs(redis, namespace)
    specs = [await failed_job(store) for _ in range(3)]
    for spec in specs:
        await failed.retry(again(spec))
    assert await notes.left(since_s=60) == []
    assert await notes.left(since_s=0) == [spec.job_id for spec in specs]
    await notes.mark(again(specs[0]))
    await store.begin_attempt(again(specs[1]), MODEL)
    assert await notes.left(since_s=0) == [specs[2].job_id], "the other two are in the queue"
    await notes.mark(specs[2])
    assert await notes.left(since_s=0) == [specs[2].job_id], "that was of an earlier sending"


async def test_a_discarded_job_is_gone_and_its_late_message_does_not_bring_it_back(
    store: JobStore, failed: FailedJobs
) -> None:
    spec = await failed_job(store, "key")
    other = await failed_job(store)
    before = await store.get(spec.job_id)
    assert await failed.discard(spec.job_id) == (before, spec)
    for call in (store.get, store.spec, store.tokens, failed.discard, store.request_cancel):
        with pytest.raises(JobNotFoundError):
            await call(spec.job_id)
    with pytest.raises(JobNotFoundError):
        await failed.retry(again(spec))
    assert [record.job_id for record in (await store.list()).records] == [other.job_id]
    assert [record.job_id for record in (await store.list(status="failed")).records] == [other.job_id]
    late = await store.begin_attempt(spec, MODEL)
    assert (late.is_finished, late.has_failed) == (True, False)
    assert not await store.finish(spec.job_id, 1, "failed", error=CAUSE)
    _, is_new = await store.create(JobSpec(job_id=new_job_id(), created_at=0.0, messages=_messages()), "key")
    assert is_new, "its idempotency key is free"


async def test_only_failed_jobs_are_discarded(store: JobStore, failed: FailedJobs) -> None:
    spec = JobSpec(job_id=new_job_id(), created_at=0.0, messages=_messages())
    await store.create(spec)
    with pytest.raises(JobStateError, match="queued"):
        await failed.discard(spec.job_id)
    assert (await store.get(spec.job_id)).status == "queued"


async def test_a_job_that_nobody_can_read_fails_once(store: JobStore, failed: FailedJobs) -> None:
    spec = JobSpec(job_id=new_job_id(), created_at=0.0, messages=_messages())
    await store.create(spec)
    cause = ComputeError("unreadable").to_failure()
    assert await failed.fail_unreadable(spec.job_id, cause) == spec
    assert await failed.fail_unreadable(spec.job_id, cause) is None
    assert await failed.fail_unreadable("gone", cause) is None
    record = await store.get(spec.job_id)
    assert (record.status, record.error, record.attempt) == ("failed", cause, 0)
    assert (await failed.retry(again(spec))).status == "queued"


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_each_job_stands_in_one_place_and_is_counted_there(
    store: JobStore, failed: FailedJobs, redis: RedisClient, namespace: str, seed: int
) -> None:
    """Random calls of gateways and conductors that know nothing of each other, of all sendings, out of order."""
    chance = random.Random(seed)
    jobs = [JobSpec(job_id=new_job_id(), created_at=float(number), messages=_messages()) for number in range(4)]
    for spec in jobs:
        await store.create(spec)

    async def act() -> None:
        spec = again(chance.choice(jobs), chance.randrange(4))
        attempt = chance.randrange(1, 6)
        with contextlib.suppress(JobStateError):
            await chance.choice(
                [
                    lambda: store.begin_attempt(spec, MODEL),
                    lambda: store.begin_attempt(spec, MODEL),
                    lambda: store.commit([TokenCommit(spec.job_id, attempt, chance.randrange(3), TOKENS[:1])]),
                    lambda: store.finish(spec.job_id, attempt, "failed", error=CAUSE),
                    lambda: store.finish(spec.job_id, attempt, "cancelled"),
                    lambda: failed.retry(spec),
                    lambda: failed.retry(spec),
                    lambda: store.request_cancel(spec.job_id),
                ]
            )()

    for _ in range(80):
        await asyncio.gather(*(act() for _ in range(4)))
    records = {spec.job_id: await store.get(spec.job_id) for spec in jobs}
    assert any(record.num_retries for record in records.values())
    for record in records.values():
        is_over = record.status in ("failed", "cancelled")
        assert len(record.failures) <= record.num_retries
        assert (record.finished_at is not None) == is_over
        assert (record.error is not None) == (record.status == "failed")
        assert (await redis.zscore(redis_keys.expiry(namespace), record.job_id) is not None) == is_over
        assert (await redis.ttl(redis_keys.job(namespace, record.job_id)) > 0) == is_over
    listed = {
        record.job_id: record
        for status in ("queued", "running", "failed", "cancelled")
        for record in (await store.list(status=status)).records
    }
    assert listed == records
    counted = msgspec.structs.asdict(await store.counts())
    statuses = [record.status for record in records.values()]
    assert counted == {status: statuses.count(status) for status in counted}


def _messages() -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="user", content=(TextPart(text="Describe."),)),)
