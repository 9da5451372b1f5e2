"""What nobody can run ends as a failed job, and can be sent again."""

from __future__ import annotations

import msgspec

from broker_pipeline import redis_keys, subjects
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, JobSpec
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.storage.media import MediaStore
from tests.kit.acting.conductor_bench import Bench


async def publish(bench: Bench, job_id: str, content: bytes) -> None:
    """Put bytes into the queue as a publisher of another version might."""
    subject = subjects.job_queue_subject(bench.namespace)
    await bench.transport.jetstream().publish(subject, content, headers={"Nats-Msg-Id": job_id})


async def send_again(bench: Bench, job_id: str) -> None:
    again = msgspec.structs.replace(await bench.store.spec(job_id), num_retries=1)
    await FailedJobs(bench.redis, bench.namespace).retry(again)
    await bench.queue.publish(again, occasion="retry-1")


async def test_a_job_whose_message_nobody_can_read_fails_and_its_picture_is_kept(bench: Bench) -> None:
    stage = await bench.stage("a", 0, 6)
    await bench.vision()
    media = MediaStore(bench.transport, bench.redis, bench.namespace)
    job_id = new_job_id()
    ref = await media.put(b"picture", job_id)
    messages = (ChatMessage(role="user", content=(ImagePart(media=ref),)),)
    spec = JobSpec(job_id=job_id, created_at=1.0, messages=messages)
    await bench.store.create(spec)
    await publish(bench, job_id, msgspec.json.encode(spec).replace(b'"messages"', b'"massages"'))
    await publish(bench, "unknown-job", b"\xff\x00")
    bench.conductor()
    next_job = await bench.submit()
    await bench.wait([job_id, next_job])
    await bench.check_right([next_job])
    record = await bench.store.get(job_id)
    assert record.error is not None
    assert (record.status, record.error.code) == ("failed", "malformed_envelope")
    assert "massages" in record.error.message
    await bench.check_empty(stage)
    assert await media.sweep(0) == 0, "its picture waits with it"
    assert await bench.redis.zcard(redis_keys.media_kept(bench.namespace)) == 1


async def test_a_job_that_was_delivered_too_often_runs_when_it_is_sent_again(bench: Bench) -> None:
    job_id = await bench.submit()
    async with bench.queue as queue:
        for _ in range(4):
            delivery = await queue.pull(5)
            assert delivery is not None
            await delivery.retry()
    await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor(max_deliveries=3)
    [record] = await bench.wait([job_id])
    assert record.error is not None
    assert (record.status, record.error.code) == ("failed", "retries_exhausted")
    await send_again(bench, job_id)
    await bench.wait([job_id])
    await bench.check_right([job_id])
    assert (await bench.store.get(job_id)).failures[0].error == record.error


async def test_a_job_sent_again_has_all_its_attempts_anew(bench: Bench) -> None:
    stage = await bench.stage("a", 0, 6)
    await bench.vision()
    bench.conductor(max_attempts=3)
    job_id, neighbour = await bench.submit(), await bench.submit()
    stage.poison.add(job_id)
    [record, _] = await bench.wait([job_id, neighbour])
    assert record.status == "failed"
    stage.poison.clear()
    await send_again(bench, job_id)
    await bench.wait([job_id])
    await bench.check_right([job_id, neighbour])
    await bench.check_empty(stage)


async def test_backoff_lies_between_the_attempts(bench: Bench) -> None:
    """A stage that is out of step each time: five attempts, pauses of 0.4 + 0.8 + 1.6 s between the last four."""
    stage = await bench.stage("a", 0, 6, kv=4096)
    await bench.vision()
    bench.conductor()
    stage.kv_tokens = 8  # less than it announces
    job_id = await bench.submit()
    [record] = await bench.wait([job_id], timeout_s=20)
    assert record.error is not None
    assert (record.status, record.error.code, record.attempt) == ("failed", "retries_exhausted", 5)
    assert "kv_capacity" in record.error.message
    assert record.started_at is not None
    assert record.finished_at is not None
    assert 2.8 <= record.finished_at - record.started_at < 8
