"""A process that answers jobs at once, with the same tokens for all: what a conductor writes and publishes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from multiprocessing.connection import Connection

import uvloop

from broker_pipeline import subjects
from broker_pipeline.messages.jobs import JobEvent, JobResult, TokenEntry, Usage
from broker_pipeline.state.job_store import JobStore, TokenCommit
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.storage.jobs import Delivery, JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport

_NUM_AT_ONCE = 64
_TOKENS = tuple(TokenEntry(token_id=number, text=" word") for number in range(64))
_TOKENS_PER_EVENT = 8
"""As conductors commit them a few steps at a time."""
_RESULT = JobResult(
    text="A picture for measuring what carries pictures.",
    finish_reason="length",
    usage=Usage(num_prompt_tokens=219, num_visual_tokens=196, num_output_tokens=64),
)


def run_answering(nats_url: str, redis_url: str, namespace: str, has_tokens: bool, pipe: Connection) -> None:
    """Say through `pipe` that jobs are answered, and answer them until killed; `has_tokens` for clients that stream."""
    uvloop.run(_answer(nats_url, redis_url, namespace, has_tokens, pipe))


async def _answer(nats_url: str, redis_url: str, namespace: str, has_tokens: bool, pipe: Connection) -> None:
    async with Transport.open(nats_url, name="bench answers") as transport, open_redis(redis_url) as redis:
        queue = JobQueue(transport, namespace)
        media = MediaStore(transport, redis, namespace)
        answerer = _Answerer(transport, JobStore(redis, namespace), media, namespace, has_tokens)
        await queue.ensure(update=False)
        running: set[asyncio.Task[None]] = set()
        async with queue, asyncio.TaskGroup() as group:
            pipe.send_bytes(b"ready")
            while True:
                if len(running) == _NUM_AT_ONCE:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                if (delivery := await queue.pull(1.0, _NUM_AT_ONCE - len(running))) is not None:
                    running.add(task := group.create_task(answerer.run(delivery)))
                    task.add_done_callback(running.discard)


@dataclass(frozen=True, slots=True)
class _Answerer:
    transport: Transport
    store: JobStore
    media: MediaStore
    namespace: str
    has_tokens: bool

    async def run(self, delivery: Delivery) -> None:
        """Run one job as `conductor/jobs` does."""
        spec = delivery.spec
        attempt = await self.store.begin_attempt(spec, "0" * 64)
        if not attempt.is_finished:
            if self.has_tokens:
                await self._stream(spec.job_id, attempt.number)
            await self.store.finish(spec.job_id, attempt.number, "succeeded", _RESULT)
            await self._say(JobEvent(job_id=spec.job_id, kind="finished"))
        await self.media.release(spec, spec.media_holder)
        await delivery.ack()

    async def _stream(self, job_id: str, attempt: int) -> None:
        await self.store.commit([TokenCommit(job_id, attempt, 0, _TOKENS)])
        for start in range(0, len(_TOKENS), _TOKENS_PER_EVENT):
            tokens = _TOKENS[start : start + _TOKENS_PER_EVENT]
            await self._say(JobEvent(job_id=job_id, kind="tokens", index=start, attempt=attempt, tokens=tokens))

    async def _say(self, event: JobEvent) -> None:
        await self.transport.publish(subjects.job_events(self.namespace, event.job_id, event.kind), event)
