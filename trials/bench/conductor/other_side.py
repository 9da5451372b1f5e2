"""All that a conductor speaks to, for measuring just the conductor: clients, a vision worker, and stages that wait as
long as they would compute, and answer.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np
import uvloop

from broker_pipeline import subjects
from broker_pipeline.messages.activation import Envelope, MicrobatchResult, StageTiming, VisualSpan
from broker_pipeline.messages.control import Hello, HelloReply, WatchRequest
from broker_pipeline.messages.jobs import ChatMessage, ImagePart, JobEvent, JobSpec, MediaRef, TextPart
from broker_pipeline.messages.sampling import SampledToken, SamplingParams
from broker_pipeline.messages.vision import PreparedSession, PrepareRequest
from broker_pipeline.messages.workers import BlockRange, Heartbeat, Role, WorkerRecord
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.wire.transport import Transport
from broker_pipeline.wire.wire_tensor import WireTensor

FINGERPRINT = "0" * 64
PIPELINE = "main"
NUM_PROMPT_TOKENS = 219
NUM_TOKENS = 256
"""Of the vocabulary, one for each byte."""
_NUM_LETTERS = 94
"""Ids that stages answer with: printable ones, since most tokens of a caption are whole characters."""
NUM_AHEAD = 64
"""Jobs beyond the sessions that compute, so that the stages never wait for one."""
_VISUAL = VisualSpan(offset=4, count=196, row=0)


class OtherSideSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Whom to be, and how fast."""

    nats_url: str
    redis_url: str
    namespace: str
    num_stages: int
    num_sessions: int
    num_output_tokens: int
    tokens_per_s: float
    are_watched: bool


@asynccontextmanager
async def other_side(settings: OtherSideSettings) -> AsyncIterator[None]:
    """Run clients, vision worker and stages in another process while the context is open."""
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_run, args=(settings, ready), daemon=True)
    process.start()
    try:
        if not await asyncio.to_thread(ready.wait, 30.0):
            raise TimeoutError("the process that answers did not start")
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.join, 10.0)


def _run(settings: OtherSideSettings, ready: Any) -> None:
    uvloop.run(_serve(settings, ready))


async def _serve(settings: OtherSideSettings, ready: Any) -> None:
    async with (
        Transport.open(settings.nats_url, name="bench") as transport,
        open_redis(settings.redis_url) as redis,
        asyncio.TaskGroup() as tasks,
    ):
        registry = WorkerRegistry(redis, settings.namespace, PIPELINE)
        route = _Route(settings)
        for record in _records(settings):
            tasks.create_task(_greet(transport, record))
            tasks.create_task(_work(transport, record, route))
            await registry.register(record)
            beat = Heartbeat(worker=record.worker, instance=record.instance, role=record.role)
            tasks.create_task(registry.announce(lambda it=record: it, lambda it=beat: it, transport))  # type: ignore[misc]
        tasks.create_task(_ask(transport, settings, ready))


def _records(settings: OtherSideSettings) -> list[WorkerRecord]:
    room = 2 * (settings.num_sessions + NUM_AHEAD) * (NUM_PROMPT_TOKENS + settings.num_output_tokens)

    def record(name: str, role: Role, **facts: Any) -> WorkerRecord:
        root = subjects.worker_root(settings.namespace, PIPELINE, role, name, name)
        return WorkerRecord(
            worker=name, instance=name, role=role, pipeline=PIPELINE, subject=root, dtype="float32",
            fingerprint=FINGERPRINT, **facts,
        )  # fmt: skip

    stages = [
        record(
            f"stage-{index}",
            "stage",
            blocks=BlockRange(start=index, stop=index + 1),
            num_layers=settings.num_stages,
            kv_capacity_tokens=room,
            max_batch_tokens=8192,
        )
        for index in range(settings.num_stages)
    ]
    return [*stages, record("vision-0", "vision")]


# --- workers --------------------------------------------------------------------------------------------------------


async def _greet(transport: Transport, record: WorkerRecord) -> None:
    async with transport.subscribe(subjects.control(record.subject), Hello) as hellos:
        async for message in hellos:
            await message.respond(HelloReply(record=record))


async def _work(transport: Transport, record: WorkerRecord, route: _Route) -> None:
    """Answer as this worker. The first stage answers for all: there is nothing to hand on."""
    subject = subjects.work(record.subject)
    if record.role == "vision":
        async with transport.subscribe(subject, PrepareRequest) as requests:
            async for request in requests:
                await request.respond(*_prepared(request.body))
        return
    loop = asyncio.get_running_loop()
    async with transport.subscribe(subject, Envelope) as envelopes, asyncio.TaskGroup() as tasks:
        async for message in envelopes:
            done_at, timings = route.take(message.body, loop.time())
            tasks.create_task(_answer(transport, answer_to(message.body, timings), message.body.reply, done_at))


async def _answer(transport: Transport, result: MicrobatchResult, reply: str, at: float) -> None:
    await asyncio.sleep(at - asyncio.get_running_loop().time())
    await transport.publish(reply, result)


class _Route:
    """When each stage is free, by its subject: microbatches go through all of them, one behind the other."""

    def __init__(self, settings: OtherSideSettings) -> None:
        self._tokens_per_s = settings.tokens_per_s
        self._free_at: defaultdict[str, float] = defaultdict(float)

    def take(self, envelope: Envelope, now: float) -> tuple[float, tuple[StageTiming, ...]]:
        """Return when a microbatch that comes now is through, and how long it waited and was computed at each stage."""
        timings = []
        compute_s = len(envelope.segments) / self._tokens_per_s
        for subject in envelope.route:
            queue_s = max(0.0, self._free_at[subject] - now)
            self._free_at[subject] = now = now + queue_s + compute_s
            name = subject.split(".")[4]  # see `subjects.worker_root`
            timings.append(StageTiming(worker=name, queue_s=queue_s, compute_s=compute_s))
        return now, tuple(timings)


def _prepared(request: PrepareRequest) -> tuple[PreparedSession, dict[str, WireTensor]]:
    ids = np.arange(NUM_PROMPT_TOKENS, dtype=np.int32)
    answer = PreparedSession(
        session=request.session,
        attempt=request.attempt,
        worker="vision-0",
        num_tokens=NUM_PROMPT_TOKENS,
        visual=(_VISUAL,),
    )
    positions = np.ascontiguousarray(np.stack([ids, ids, ids]))
    return answer, {"token_ids": WireTensor.from_numpy(ids), "positions": WireTensor.from_numpy(positions)}


def answer_to(envelope: Envelope, timings: tuple[StageTiming, ...]) -> MicrobatchResult:
    """Return what the route's last stage would answer, with tokens of no meaning."""
    tokens = tuple(
        SampledToken(
            session=segment.session,
            attempt=segment.attempt,
            position=segment.start + segment.count,
            token_id=(segment.start + segment.count) % _NUM_LETTERS,
        )
        for segment in envelope.segments
        if segment.wants_token
    )
    return MicrobatchResult(
        pipeline=envelope.pipeline,
        fingerprint=envelope.fingerprint,
        epoch=envelope.epoch,
        microbatch=envelope.microbatch,
        worker=timings[-1].worker,
        tokens=tokens,
        timings=timings,
    )


# --- clients --------------------------------------------------------------------------------------------------------


async def _ask(transport: Transport, settings: OtherSideSettings, ready: Any) -> None:
    """Keep as many jobs under way: each that ends is followed by another one."""
    queue, numbers = JobQueue(transport, settings.namespace), itertools.count()
    async with transport.subscribe(subjects.job_events(settings.namespace, "*"), JobEvent) as events:
        if settings.are_watched:
            await transport.publish(subjects.watch(settings.namespace), WatchRequest(is_for_all=True, for_s=300.0))
        for _ in range(settings.num_sessions + NUM_AHEAD):
            await queue.publish(_job(next(numbers), settings))
        ready.set()
        async for message in events:
            if message.body.kind == "finished":
                await queue.publish(_job(next(numbers), settings))


def _job(number: int, settings: OtherSideSettings) -> JobSpec:
    num_tokens = settings.num_output_tokens
    if number < settings.num_sessions:  # those that begin together are not to end together, over and over
        num_tokens = 1 + number * num_tokens // settings.num_sessions
    picture = MediaRef(sha256=f"{number:064x}", object_name=f"{number}", num_bytes=1)
    content = (ImagePart(media=picture), TextPart(text="Describe this image."))
    return JobSpec(
        job_id=f"job-{number:08d}",
        created_at=time.time(),
        messages=(ChatMessage(role="user", content=content),),
        sampling=SamplingParams(max_tokens=num_tokens, ignore_eos=True),
    )
