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
import secrets
import time

from broker_pipeline import subjects
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.limits import SchedulerLimits
from broker_pipeline.scheduling.routes import Route, StageInfo
from broker_pipeline.state.redis_client import open_redis
from trials.bench.conductor.answering_stage import STAGE, answering_stage
from trials.bench.conductor.job_stream import NUM_PROMPT_TOKENS, JobStream
from trials.bench.conductor.rows import PARTS, ConductorBenchSettings, ConductorRow
from trials.bench.conductor.stopwatch import Stopwatch
from trials.bench.conductor.timed_conductor import (
    TimedBuilder,
    TimedDispatcher,
    TimedScheduler,
    TimedStore,
    TimedTransport,
)
from trials.bench.options import say


async def measure_conductor(settings: ConductorBenchSettings, nats_url: str, redis_url: str) -> list[ConductorRow]:
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
        jobs = JobStream(num_sessions, settings.num_output_tokens, store, committer, generations, Route((worker,)))
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(dispatcher.run()), tasks.create_task(committer.run())]
            await asyncio.sleep(0.1)
            running += [tasks.create_task(jobs.keep_one()) for _ in range(num_sessions)]
            row = await _observe(settings, num_sessions, watch, generations, jobs)
            for task in running:
                task.cancel()
    return row


async def _observe(
    settings: ConductorBenchSettings, num_sessions: int, watch: Stopwatch, generations: Generations, jobs: JobStream
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
    room = 2 * num_sessions * (NUM_PROMPT_TOKENS + num_output_tokens)
    return StageInfo(STAGE, STAGE, root, BlockRange(start=0, stop=1), room, 8192)
