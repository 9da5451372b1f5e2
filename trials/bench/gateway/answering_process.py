"""A process that answers jobs at once, with one text for all: what a conductor writes at a job's begin and end."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection

import uvloop

from broker_pipeline import subjects
from broker_pipeline.messages.jobs import JobEvent, JobResult, Usage
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.storage.jobs import Delivery, JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport

_NUM_AT_ONCE = 64
_RESULT = JobResult(
    text="A picture for measuring what carries pictures.",
    finish_reason="length",
    usage=Usage(num_prompt_tokens=219, num_visual_tokens=196, num_output_tokens=64),
)


def run_answering(nats_url: str, redis_url: str, namespace: str, pipe: Connection) -> None:
    """Say through `pipe` that jobs are answered, and answer them until killed."""
    uvloop.run(_answer(nats_url, redis_url, namespace, pipe))


async def _answer(nats_url: str, redis_url: str, namespace: str, pipe: Connection) -> None:
    async with Transport.open(nats_url, name="bench answers") as transport, open_redis(redis_url) as redis:
        queue = JobQueue(transport, namespace)
        answerer = _Answerer(transport, JobStore(redis, namespace), MediaStore(transport, redis, namespace), namespace)
        await queue.ensure(update=False)
        turns = asyncio.Semaphore(_NUM_AT_ONCE)
        async with queue, asyncio.TaskGroup() as group:
            pipe.send_bytes(b"ready")
            while True:
                await turns.acquire()
                if (delivery := await queue.pull(1.0)) is not None:
                    group.create_task(answerer.run(delivery)).add_done_callback(lambda _: turns.release())
                else:
                    turns.release()


class _Answerer:
    def __init__(self, transport: Transport, store: JobStore, media: MediaStore, namespace: str) -> None:
        self._transport, self._store, self._media, self._namespace = transport, store, media, namespace

    async def run(self, delivery: Delivery) -> None:
        """Run one job as `conductor/jobs` does, without tokens."""
        spec = delivery.spec
        attempt = await self._store.begin_attempt(spec, "0" * 64)
        if not attempt.is_finished:
            await self._store.finish(spec.job_id, attempt.number, "succeeded", _RESULT)
            event = JobEvent(job_id=spec.job_id, kind="finished")
            await self._transport.publish(subjects.job_events(self._namespace, spec.job_id, event.kind), event)
        await self._media.release(spec, spec.media_holder)
        await delivery.ack()
