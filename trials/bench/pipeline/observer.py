"""Listens to a running pipeline as a stranger may: heartbeats, results, status. Nothing in the pipeline waits for it.

NATS   heartbeats ──► busy seconds, microbatches, tokens of every worker, cumulative
       results    ──► waiting and computing of every microbatch on every stage
HTTP   /v1/status ──► sessions by state, what the conductor waits for
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import fmean

import msgspec

from broker_pipeline import subjects
from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.errors import GatewayUnreachableError, SlowConsumerError
from broker_pipeline.messages.activation import MicrobatchResult, StageTiming
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.wire.transport import Transport
from trials.bench.breakdown import Breakdown, PromptLoad, WorkerLoad
from trials.bench.pipeline.gpu_watch import GpuWatch
from trials.bench.spread import Spread

_STATUS_S = 0.5
_SETTLE_S = 5.0
"""Most that a round waits for what conductors show next: they do so every second."""


@dataclass(frozen=True, slots=True)
class _Beat:
    heard_at: float
    heartbeat: Heartbeat


@dataclass(slots=True)
class _Seen:
    """What was heard since a round began."""

    started_at: float
    first_beats: dict[str, _Beat]
    first_prompts: PromptLoad | None = None
    num_results: int = 0
    num_tokens: int = 0
    timings: defaultdict[str, list[StageTiming]] = field(default_factory=lambda: defaultdict(list))
    sessions: list[dict[str, int]] = field(default_factory=list)
    waits: Counter[str] = field(default_factory=Counter)


class PipelineObserver:
    """What went on since `begin`. Made by `watch`."""

    def __init__(self, gpus: GpuWatch) -> None:
        """Start with nothing heard; `gpus` is asked in the end."""
        self._gpus = gpus
        self._beats: dict[str, _Beat] = {}
        self._seen = _Seen(time.monotonic(), {})
        self._prompts: PromptLoad | None = None
        self._shown_at = 0.0
        self._shown = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def watch(cls, cluster: LocalCluster) -> AsyncIterator[PipelineObserver]:
        """Listen while the context is open."""
        settings = cluster.settings
        log = settings.data_dir.absolute() / "logs" / "nvidia-smi.log"
        results = subjects.all_results(subjects.results(settings.namespace, settings.pipeline, "*"))
        beats = subjects.heartbeats(settings.namespace, settings.pipeline)
        async with GpuWatch.open(log) as gpus, Transport.open(cluster.nats_url, name="bench") as transport:
            observer = cls(gpus)
            async with (
                transport.subscribe(beats, Heartbeat, on_dropped=_ignore) as heartbeats,
                transport.subscribe(results, MicrobatchResult, on_dropped=_ignore) as answers,
                asyncio.TaskGroup() as tasks,
            ):
                listening = [
                    tasks.create_task(observer._hear_beats(heartbeats)),
                    tasks.create_task(observer._hear_results(answers)),
                    tasks.create_task(observer._poll_status(cluster.gateway_url)),
                ]
                try:
                    yield observer
                finally:
                    for task in listening:
                        task.cancel()

    async def begin(self) -> None:
        """Forget what was before, once conductors have shown all of it."""
        await self._settle()
        self._seen = _Seen(time.monotonic(), dict(self._beats), self._prompts)
        self._gpus.begin()

    async def end(self, submit_s: Sequence[float], job_s: Sequence[float]) -> Breakdown:
        """Sum up what was heard since `begin`; what the client has measured goes in as it is.

        What conductors count is awaited: a round may be shorter than the second between two of their reports.
        """
        breakdown, first = self._sum_up(submit_s, job_s), self._seen.first_prompts
        await self._settle()
        return msgspec.structs.replace(breakdown, prompts=self._prompts.since(first) if self._prompts else None)

    def _sum_up(self, submit_s: Sequence[float], job_s: Sequence[float]) -> Breakdown:
        seen, seconds = self._seen, time.monotonic() - self._seen.started_at
        workers = tuple(self._load(instance, beat) for instance, beat in sorted(self._beats.items(), key=_by_name))
        states = sorted({state for sessions in seen.sessions for state in sessions})
        num_sessions = {
            state: round(fmean(each.get(state, 0) for each in seen.sessions), 2) for state in states if seen.sessions
        }
        num_polls = max(1, len(seen.sessions))
        return Breakdown(
            workers=workers,
            results_per_s=seen.num_results / seconds,
            tokens_per_result=seen.num_tokens / max(1, seen.num_results),
            outside_ms=_outside_ms(num_sessions.get("running", 0.0), seen, seconds),
            num_sessions=num_sessions,
            waits_for={reason: round(count / num_polls, 3) for reason, count in seen.waits.most_common(4)},
            submit_s=Spread.of(submit_s),
            job_s=Spread.of(job_s),
            gpus=self._gpus.end(),
        )

    async def _settle(self) -> None:
        """Wait until conductors have shown what was by now; where none is left, what they showed last stands."""
        now = time.time()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                while self._shown_at < now:
                    await self._shown.wait()

    def _load(self, instance: str, beat: _Beat) -> WorkerLoad:
        now = beat.heartbeat
        before = self._seen.first_beats.get(instance, _Beat(self._seen.started_at, _nothing_yet(now)))
        seconds = max(beat.heard_at - before.heard_at, 1e-6)
        num_microbatches = now.num_microbatches - before.heartbeat.num_microbatches
        num_tokens = now.num_tokens - before.heartbeat.num_tokens
        timings = self._seen.timings.get(now.worker, [])
        return WorkerLoad(
            worker=now.worker,
            busy=round((now.busy_s - before.heartbeat.busy_s) / seconds, 4),
            microbatches_per_s=num_microbatches / seconds,
            tokens_per_microbatch=num_tokens / max(1, num_microbatches),
            queue_ms=1e3 * fmean(timing.queue_s for timing in timings) if timings else None,
            compute_ms=1e3 * fmean(timing.compute_s for timing in timings) if timings else None,
        )

    async def _hear_beats(self, messages: AsyncIterator) -> None:  # type: ignore[type-arg]
        async for message in messages:
            self._beats[message.body.instance] = _Beat(time.monotonic(), message.body)

    async def _hear_results(self, messages: AsyncIterator) -> None:  # type: ignore[type-arg]
        async for message in messages:
            result: MicrobatchResult = message.body
            self._seen.num_results += 1
            self._seen.num_tokens += len(result.tokens)
            for timing in result.timings:
                self._seen.timings[timing.worker].append(timing)

    async def _poll_status(self, gateway_url: str) -> None:
        while True:
            await asyncio.sleep(_STATUS_S)
            try:
                status = await fetch_status(gateway_url)
            except GatewayUnreachableError:
                continue
            if status.conductor is not None:
                self._prompts, self._shown_at = _prompts(status.conductor), status.conductor.updated_at
                self._shown.set()
                self._shown.clear()
                self._seen.sessions.append(status.conductor.num_sessions)
                if status.conductor.waits_for:
                    self._seen.waits[status.conductor.waits_for] += 1


def _prompts(shown: ConductorStatus) -> PromptLoad:
    return PromptLoad(
        num_tokens=shown.num_prompt_tokens,
        num_copied_tokens=shown.num_copied_tokens,
        num_kept_tokens=shown.kept.num_hit_tokens,
        num_kept_hits=shown.kept.num_hits,
        num_evictions=shown.kept.num_evictions,
    )


def _outside_ms(num_running: float, seen: _Seen, seconds: float) -> float | None:
    """Apply Little's law: n sessions that get a token every T seconds get n / T tokens a second."""
    if num_running < 1 or seen.num_tokens == 0:
        return None
    round_ms = 1e3 * num_running * seconds / seen.num_tokens
    on_stages = sum(
        1e3 * sum(timing.queue_s + timing.compute_s for timing in timings) for timings in seen.timings.values()
    )
    return round(max(0.0, round_ms - on_stages / max(1, seen.num_results)), 3)


def _nothing_yet(heartbeat: Heartbeat) -> Heartbeat:
    return Heartbeat(worker=heartbeat.worker, instance=heartbeat.instance, role=heartbeat.role)


def _by_name(item: tuple[str, _Beat]) -> str:
    return item[1].heartbeat.worker


def _ignore(_: SlowConsumerError, __: object) -> None:
    """Let a message go: a benchmark may miss one, and must not hold the pipeline up."""
