"""What the conductor's event loop spends on a token, with real NATS and Redis, and a stage that only answers.

    this process, measured                                                  another process
    scheduler ─► envelope ─► transport ──────────── NATS ────────────────► one stage: waits, answers
    committer ─► Redis     ◄─ tokens ◄─ complete ◄── NATS ◄──────────────┘

Every session is followed by another one, so that their number stays. The stage takes its time in proportion to the
tokens: the pace is the same for any number of sessions, and what a token costs can be compared between them. Seconds
are seconds of a core of this process alone.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from broker_pipeline import subjects
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.detokenizer import Vocabulary
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.conductor.output.output import Output
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.jobs import ChatMessage, JobResult, JobSpec, TextPart, Usage
from broker_pipeline.messages.sampling import SamplingParams, SamplingSettings
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from broker_pipeline.state.redis_client import open_redis
from trials.bench.conductor.answering_stage import NUM_TOKENS, STAGE, answering_stage
from trials.bench.conductor.stopwatch import Stopwatch
from trials.bench.conductor.timed_conductor import (
    TimedBuilder,
    TimedDispatcher,
    TimedScheduler,
    TimedStore,
    TimedTransport,
)

T = TypeVar("T")
Body = TypeVar("Body", bound=msgspec.Struct)

PARTS = ("receive", "complete", "take", "plan", "build", "send", "commit", "events")
"""What a token passes through: result decoded, scheduler told, text and stop checks, next step planned, its envelope
built, encoded and handed to NATS, tokens committed to Redis, events published."""

_PROMPT = 219
_VISUAL = 196


class ConductorBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    num_sessions: tuple[int, ...]
    num_output_tokens: int
    tokens_per_s: float
    """The stage's pace."""
    seconds: float
    """Measured, for each number of sessions."""
    are_watched: bool = False
    """Whether somebody streams every session."""


class ConductorRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent with one number of sessions: seconds of a core."""

    num_sessions: int
    num_tokens: int
    num_jobs: int
    seconds: float
    total_s: float
    parts_s: dict[str, float]
    """By part of the way of a token, see `PARTS`."""
    jobs_s: float
    """Attempts begun, sessions started, results written."""

    def per_token_us(self, part: str) -> float:
        """Return microseconds per token of one part."""
        return 1e6 * self.parts_s.get(part, 0.0) / max(1, self.num_tokens)

    @property
    def rest_us(self) -> float:
        """Microseconds per token of everything else: event loop, sockets, Redis's protocol."""
        return 1e6 * (self.total_s - sum(self.parts_s.values()) - self.jobs_s) / max(1, self.num_tokens)

    @property
    def token_us(self) -> float:
        """Microseconds per token without what was spent on jobs."""
        return 1e6 * (self.total_s - self.jobs_s) / max(1, self.num_tokens)

    @property
    def job_us(self) -> float:
        """Microseconds per job without its tokens, as far as this benchmark runs it: no queue, no vision, no media."""
        return 1e6 * self.jobs_s / max(1, self.num_jobs)


# --- jobs -----------------------------------------------------------------------------------------------------------


class _Jobs:
    """Sessions that follow one another."""

    def __init__(
        self,
        num_sessions: int,
        num_output_tokens: int,
        store: TimedStore,
        committer: Committer,
        generations: Generations,
        route: Route,
    ) -> None:
        self._num_sessions = num_sessions
        self._num_output_tokens = num_output_tokens
        self._store = store
        self._committer = committer
        self._generations = generations
        self._route = route
        self._numbers = itertools.count()
        self._vocabulary = _vocabulary()
        self.num_ended = 0

    async def keep_one(self) -> None:
        """Run one job after the other until cancelled."""
        while True:
            await self._run(next(self._numbers))

    async def _run(self, number: int) -> None:
        watch, store = self._store.watch, self._store
        job_id = f"job-{number:08d}"
        spec = _spec(job_id, self._num_output_tokens)
        attempt = await watch.steps("jobs", store.begin_attempt(spec))
        with watch.part("jobs"):
            generation = self._generation(job_id, number, attempt.number)
            self._generations.start(generation)
        lost = await generation.ended()
        assert lost is None, f"{job_id} was lost: {lost}"
        await watch.steps("jobs", self._finish(generation, attempt.number))
        self.num_ended += 1

    async def _finish(self, generation: Generation, attempt: int) -> None:
        tokens = await self._committer.last(generation.job_id, attempt)
        num_tokens = len(generation.output.token_ids)
        usage = Usage(num_prompt_tokens=_PROMPT, num_visual_tokens=0, num_output_tokens=num_tokens)
        result = JobResult(text=generation.output.text, finish_reason="length", usage=usage)
        assert await self._store.finish(generation.job_id, attempt, "succeeded", result, tokens=tokens)

    def _generation(self, job_id: str, number: int, attempt: int) -> Generation:
        num_tokens = self._num_output_tokens
        if number < self._num_sessions:  # those that begin together are not to end together, over and over
            num_tokens = 1 + number * num_tokens // self._num_sessions
        output = Output(self._vocabulary, eos_token_ids=(NUM_TOKENS,), max_tokens=num_tokens)
        session = SessionState(
            key=SessionKey(job_id, 1),
            order=number,
            route=self._route,
            prompt=_prompt(),
            sampling=SamplingSettings(),
            num_kv_tokens=_PROMPT + num_tokens,
        )
        return Generation(session, attempt, output, self._committer)


def _prompt() -> PreparedPrompt:
    ids = np.arange(_PROMPT, dtype=np.int32)
    visual = VisualSpan(offset=4, count=_VISUAL, row=0)
    return PreparedPrompt(ids, np.stack([ids, ids, ids]), visual=(visual,))


def _spec(job_id: str, num_output_tokens: int) -> JobSpec:
    message = ChatMessage(role="user", content=(TextPart(text="Describe this image."),))
    return JobSpec(
        job_id=job_id,
        created_at=time.time(),
        messages=(message,),
        sampling=SamplingParams(max_tokens=num_output_tokens),
    )


def _vocabulary() -> Vocabulary:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return Vocabulary(tokenizer)


# --- the measurement ------------------------------------------------------------------------------------------------


async def measure_conductor(
    settings: ConductorBenchSettings, nats_url: str, redis_url: str, say: Callable[[str], None] = lambda _: None
) -> list[ConductorRow]:
    """Measure every number of sessions in turn."""
    rows = []
    for num_sessions in settings.num_sessions:
        say(f"{num_sessions} sessions")
        rows.append(await _measure(settings, num_sessions, nats_url, redis_url))
    return rows


async def _measure(settings: ConductorBenchSettings, num_sessions: int, nats_url: str, redis_url: str) -> ConductorRow:
    watch = Stopwatch()
    namespace = f"bench-{secrets.token_hex(4)}"  # what an earlier run left is in nobody's way
    worker = _worker(namespace, num_sessions, settings.num_output_tokens)
    async with (
        TimedTransport.open(nats_url, name="bench conductor") as transport,
        open_redis(redis_url) as redis,
        answering_stage(nats_url, worker.subject, settings.tokens_per_s),
    ):
        assert isinstance(transport, TimedTransport)
        transport.watch = watch
        store = TimedStore(redis, namespace)
        scheduler = TimedScheduler(1, SchedulerLimits(max_sessions=num_sessions))
        scheduler.watch = store.watch = watch
        watchers = Watchers()
        watchers.take(WatchRequest(is_for_all=settings.are_watched, for_s=300.0))
        builder = TimedBuilder("main", "", 1, subjects.results(namespace, "main", "bench"), watch)
        committer = Committer(store, JobEvents(transport, namespace, watchers), lambda *_: None)
        plan_due = asyncio.Event()
        generations = Generations(scheduler, plan_due)
        dispatcher = TimedDispatcher(
            transport=transport,
            builder=builder,
            scheduler=scheduler,
            workers=Workers(scheduler, generations, plan_due),
            generations=generations,
            committer=committer,
            plan_due=plan_due,
        )
        dispatcher.watch = watch
        scheduler.join(worker)
        jobs = _Jobs(num_sessions, settings.num_output_tokens, store, committer, generations, Route((worker,)))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(dispatcher.run()), tasks.create_task(committer.run())]
            await asyncio.sleep(0.1)
            running += [tasks.create_task(jobs.keep_one()) for _ in range(num_sessions)]
            row = await _observe(settings, num_sessions, watch, generations, jobs)
            for task in running:
                task.cancel()
    return row


async def _observe(
    settings: ConductorBenchSettings, num_sessions: int, watch: Stopwatch, generations: Generations, jobs: _Jobs
) -> ConductorRow:
    await asyncio.sleep(min(2.0, settings.seconds))
    watch.seconds.clear()
    num_tokens, num_jobs = generations.num_tokens, jobs.num_ended
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.sleep(settings.seconds)
    cpu_s, seconds = time.process_time() - cpu, time.perf_counter() - started
    parts = {name: watch.seconds[name] for name in PARTS}
    return ConductorRow(
        num_sessions=num_sessions,
        num_tokens=generations.num_tokens - num_tokens,
        num_jobs=jobs.num_ended - num_jobs,
        seconds=seconds,
        total_s=cpu_s,
        parts_s=parts,
        jobs_s=watch.seconds["jobs"],
    )


def _worker(namespace: str, num_sessions: int, num_output_tokens: int) -> StageInfo:
    root = subjects.worker_root(namespace, "main", STAGE, f"{num_sessions}")
    room = 2 * num_sessions * (_PROMPT + num_output_tokens)
    return StageInfo(STAGE, STAGE, root, BlockRange(start=0, stop=1), room, 8192)
