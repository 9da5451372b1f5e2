"""Does at protocol level what a conductor does, with made-up tokens: real queue, real Redis, real events, no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

from broker_pipeline import redis_keys, subjects
from broker_pipeline.errors import Failure, JobNotFoundError
from broker_pipeline.messages.jobs import JobEvent, JobRecord, JobResult, JobSpec, TextPart, TokenEntry, Usage
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.state.job_store import JobStore, TokenCommit
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.jobs import Delivery, JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport

MODEL = "0" * 64

NOTHING_RUNS: dict[str, Any] = {
    "instance": "acting",
    "epoch": 1,
    "updated_at": 0.0,
    "uptime_s": 0.0,
    **dict.fromkeys(("routes", "missing_blocks", "stages", "vision", "refused"), ()),
    "waits_for": None,
    **dict.fromkeys(("num_jobs_waiting", "num_replays", "num_uncommitted_tokens"), 0),
    "num_sessions": {},
    "num_finished": {},
    **dict.fromkeys(("tokens_per_s", "captions_per_s"), 0.0),
}

Caption = Callable[[JobSpec, list[bytes]], str | Failure]


class ActingConductor:
    """Runs jobs one step at a time where a test asks for it, or all that come."""

    def __init__(self, transport: Transport, redis: RedisClient, namespace: str) -> None:
        self.store = JobStore(redis, namespace)
        self.queue = JobQueue(transport, namespace, ack_wait_s=30.0)
        self.media = MediaStore(transport, redis, namespace)
        self.num_runs: dict[str, int] = {}
        self.model: tuple[str, str] | None = None
        """Name and fingerprint of the model that results are said to be of."""
        self._transport = transport
        self._redis = redis
        self._namespace = namespace

    async def show_model(self, name: str, fingerprint: str) -> None:
        """Say that this model answers from now on."""
        self.model = name, fingerprint
        status = ConductorStatus(**NOTHING_RUNS, model=name, fingerprint=fingerprint)
        await self._redis.set(redis_keys.status(self._namespace, "main"), msgspec.json.encode(status))

    async def take(self, timeout_s: float = 5.0) -> Delivery:
        """Return the next job."""
        delivery = await self.queue.pull(timeout_s)
        assert delivery is not None, "no job in the queue"
        return delivery

    async def begin(self, spec: JobSpec, model: str = MODEL) -> int:
        """Begin an attempt, say so, and return its number; 0 when there is nothing to run."""
        attempt = await self.store.begin_attempt(spec, model)
        if attempt.is_finished:
            return 0
        self.num_runs[spec.job_id] = self.num_runs.get(spec.job_id, 0) + 1
        await self.say(JobEvent(job_id=spec.job_id, kind="started", record=await self.store.get(spec.job_id)))
        return attempt.number

    async def commit(self, job_id: str, attempt: int, start: int, words: list[str], *, tells: bool = True) -> None:
        """Commit tokens, and tell of them unless the message shall be lost."""
        entries = [TokenEntry(token_id=start + index, text=word) for index, word in enumerate(words)]
        await self.commit_entries(job_id, attempt, start, entries, tells=tells)

    async def commit_entries(
        self, job_id: str, attempt: int, start: int, tokens: Sequence[TokenEntry], *, tells: bool = True
    ) -> None:
        """Do the same with tokens that have more to them than text."""
        entries = tuple(tokens)
        assert await self.store.commit([TokenCommit(job_id, attempt, start, entries)]) == [True]
        if tells:
            await self.say(JobEvent(job_id=job_id, kind="tokens", index=start, attempt=attempt, tokens=entries))

    async def finish(
        self, spec: JobSpec, attempt: int, outcome: str | Failure | JobResult, *, tells: bool = True
    ) -> None:
        """End a job."""
        job_id = spec.job_id
        if isinstance(outcome, Failure):
            await self.store.finish(job_id, attempt, "failed", error=outcome)
        elif isinstance(outcome, JobResult):
            status = "cancelled" if outcome.finish_reason == "cancelled" else "succeeded"
            await self.store.finish(job_id, attempt, status, outcome)
        else:
            usage = Usage(num_prompt_tokens=20, num_visual_tokens=10, num_output_tokens=len(outcome.split()))
            model, fingerprint = self.model or (None, None)
            result = JobResult(text=outcome, finish_reason="stop", usage=usage, model=model, fingerprint=fingerprint)
            await self.store.finish(job_id, attempt, "succeeded", result)
        if isinstance(outcome, Failure):
            await self.media.keep(spec)
        else:
            await self.media.release(spec, spec.media_holder)
        if tells:
            await self.say(JobEvent(job_id=job_id, kind="finished", record=await self._record(job_id)))

    async def _record(self, job_id: str) -> JobRecord | None:
        try:
            return await self.store.get(job_id)
        except JobNotFoundError:  # whoever waited for it was quicker, and has had it forgotten
            return None

    async def say(self, event: JobEvent) -> None:
        """Publish an event."""
        await self._transport.publish(subjects.job_events(self._namespace, event.job_id, event.kind), event)

    async def run(self, delivery: Delivery, caption: Caption) -> None:
        """Run one job to its end."""
        spec = delivery.spec
        if attempt := await self.begin(spec):
            outcome = caption(spec, [await self.media.get(ref) for ref in spec.media()])
            if isinstance(outcome, str):
                await self.commit(spec.job_id, attempt, 0, [f"{word} " for word in outcome.split()])
            await self.finish(spec, attempt, outcome)
        await delivery.ack()

    async def run_all(self, caption: Caption) -> None:
        """Run what comes until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                if (delivery := await self.queue.pull(1.0)) is not None:
                    group.create_task(self.run(delivery, caption))

    @asynccontextmanager
    async def running(self, caption: Caption) -> AsyncIterator[None]:
        """Run what comes while the context is open."""
        task = asyncio.ensure_future(self.run_all(caption))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def acting_conductor(transport: Transport, redis: RedisClient, namespace: str) -> AsyncIterator[ActingConductor]:
    """Open the queue for pulling. It must exist, or be made by this."""
    conductor = ActingConductor(transport, redis, namespace)
    await conductor.queue.ensure(update=False)
    await conductor.media.ensure(update=False)
    async with conductor.queue:
        yield conductor


def prompt_of(spec: JobSpec) -> str:
    """Return the text of a job's last message."""
    return "".join(part.text for part in spec.messages[-1].content if isinstance(part, TextPart))
