"""Submits faster than the pipeline runs: the gateway must refuse with 429 and `Retry-After`, and no process may grow.

measure the rate (closed loop) ──► submit at a multiple of it (open loop, bounded queue) ──► what was accepted ends
                                      └── resident memory of every process, twice a second
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import msgspec

from broker_pipeline.client.calls import retry_after_s
from broker_pipeline.client.gateway_client import fetch_status
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.plan import LocalSettings
from trials.soak.memory import Growth, MemoryLog, growth_of
from trials.soak.proof.client import SoakClient
from trials.soak.proof.leftovers import adopt_orphans, living_descendants
from trials.soak.proof.proofs import Proof, proof_of_none
from trials.soak.proof.questions import Question, make_questions, write_pictures
from trials.soak.system import components

QUEUE_JOBS = 64
_MIB = 1024 * 1024
_SLACK_BYTES = 12 * _MIB
_SLACK_SHARE = 0.06
_RESULT_BYTES = 24 * 1024
"""What Redis may keep of one finished job, for a week: its record, its result and up to a hundred tokens."""
_SAMPLE_S = 0.5
_PROGRESS_S = 10.0
_NUM_QUESTIONS = 256
_CALIBRATION_IN_FLIGHT = 32
_MAX_CALLS = 400
_DRAIN_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadSettings:
    """`factor` is how many times faster than the pipeline jobs are submitted, for `duration_s` seconds."""

    factor: float
    duration_s: float
    seed: int
    calibration_s: float = 10.0


class OverloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    is_proven: bool
    seed: int
    factor: float
    seconds: float
    pipeline_jobs_per_s: float
    submitted_per_s: float
    answers: dict[str, int]
    """Answers to submissions by status; `unanswered` where the connection failed."""
    num_with_retry_after: int
    memory: tuple[Growth, ...]
    proofs: tuple[Proof, ...]


@dataclass(slots=True)
class _Answers:
    by_status: Counter[str] = field(default_factory=Counter)
    num_with_retry_after: int = 0
    accepted: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


class Overload:
    """One run. `say` is told what happens."""

    def __init__(self, system: LocalSettings, settings: OverloadSettings, say: Callable[[str], None]) -> None:
        """Prepare a run; `say` is told what happens."""
        self.memory = MemoryLog()
        self._system = system
        self._settings = settings
        self._say = say
        self._answers = _Answers()

    async def run(self) -> OverloadReport:
        """Do all of it; raises `ServerStartError` when the pipeline could not be brought up."""
        adopt_orphans()
        pictures = self._system.data_dir / "pictures"
        write_pictures(pictures, self._settings.seed)
        questions = make_questions(self._settings.seed, _NUM_QUESTIONS)
        cluster = LocalCluster(self._system)
        self._say(f"starting {len(components(self._system))} programs; the queue holds {QUEUE_JOBS} jobs")
        async with cluster, SoakClient.open(cluster.gateway_urls, pictures, run=secrets.token_hex(4)) as client:
            rate = await self._calibrate(client, questions)
            started = time.monotonic()
            await self._overload(cluster, client, questions, rate)
            seconds = time.monotonic() - started
            unfinished = await self._drain(cluster)
            restarts = [f"{name}: {p.num_restarts}" for name, p in cluster.processes.items() if p.num_restarts]
        growths = self._growths()
        proofs = self._proofs(growths, unfinished, restarts)
        return OverloadReport(
            is_proven=all(proof.holds for proof in proofs),
            seed=self._settings.seed,
            factor=self._settings.factor,
            seconds=round(seconds, 2),
            pipeline_jobs_per_s=round(rate, 2),
            submitted_per_s=round(sum(self._answers.by_status.values()) / seconds, 2),
            answers=dict(self._answers.by_status),
            num_with_retry_after=self._answers.num_with_retry_after,
            memory=growths,
            proofs=proofs,
        )

    async def _calibrate(self, client: SoakClient, questions: Sequence[Question]) -> float:
        """Return jobs per second with as many in flight as the pipeline likes."""
        self._say(f"measuring the pipeline's rate for {self._settings.calibration_s:g} s")
        started, num_done, next_number = time.monotonic(), 0, 0

        async def keep_asking() -> None:
            nonlocal num_done, next_number
            while time.monotonic() - started < self._settings.calibration_s:
                next_number += 1
                question = questions[next_number % len(questions)]
                await client.run(msgspec.structs.replace(question, number=-next_number))
                num_done += 1

        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CALIBRATION_IN_FLIGHT):
                tasks.create_task(keep_asking())
        return num_done / (time.monotonic() - started)

    async def _overload(
        self, cluster: LocalCluster, client: SoakClient, questions: Sequence[Question], rate: float
    ) -> None:
        every_s = 1 / (rate * self._settings.factor)
        self._say(
            f"the pipeline runs {rate:.1f} jobs/s; submitting {1 / every_s:.1f}/s for {self._settings.duration_s:g} s"
        )
        started = time.monotonic()
        sampling = asyncio.create_task(self._sample(cluster, started))
        open_calls = asyncio.Semaphore(_MAX_CALLS)
        try:
            async with asyncio.TaskGroup() as calls:
                number = 0
                while (due := started + number * every_s) < started + self._settings.duration_s:
                    await asyncio.sleep(max(0.0, due - time.monotonic()))
                    await open_calls.acquire()
                    question = msgspec.structs.replace(questions[number % len(questions)], number=number)
                    calls.create_task(self._submit(client, question, open_calls))
                    number += 1
        finally:
            sampling.cancel()
            await asyncio.wait({sampling})

    async def _submit(self, client: SoakClient, question: Question, open_calls: asyncio.Semaphore) -> None:
        """Submit once, as a client without patience does."""
        answers = self._answers
        url = client.url(question.number) + "/v1/jobs"
        try:
            status, retry_after, content = await client.submit_once(url, question)
        except (aiohttp.ClientError, OSError, TimeoutError):
            answers.by_status["unanswered"] += 1
            return
        finally:
            open_calls.release()
        answers.by_status[str(status)] += 1
        if status == 202:
            answers.accepted.append(msgspec.json.decode(content, type=JobRecord).job_id)
        elif status == 429 and retry_after_s(retry_after) > 0:
            answers.num_with_retry_after += 1
        else:
            answers.strange.append(f"{status} Retry-After={retry_after} {content[:200].decode(errors='replace')}")

    async def _sample(self, cluster: LocalCluster, started: float) -> None:
        told_at = started
        while True:
            now = time.monotonic()
            self.memory.take(now - started, {name: program.pid for name, program in cluster.processes.items()})
            if now - told_at >= _PROGRESS_S:
                told_at = now
                said = ", ".join(f"{count} x {status}" for status, count in sorted(self._answers.by_status.items()))
                self._say(f"{now - started:.0f} s: {said}")
            await asyncio.sleep(_SAMPLE_S)

    async def _drain(self, cluster: LocalCluster) -> list[str]:
        """Wait until everything accepted has ended; return what has not, or not well."""
        self._say(f"waiting for the {len(self._answers.accepted)} accepted jobs")
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        while time.monotonic() < deadline:
            jobs = (await fetch_status(cluster.gateway_urls[0])).jobs
            if not jobs["queued"] and not jobs["running"]:
                break
            await asyncio.sleep(1.0)
        return [f"{jobs[status]} jobs are {status}" for status in ("queued", "running", "failed") if jobs[status]]

    def _growths(self) -> tuple[Growth, ...]:
        found = []
        for name, samples in self.memory.samples.items():
            allowed = max(_SLACK_BYTES, int(samples[-1][1] * _SLACK_SHARE))
            if name == "redis":
                allowed += _RESULT_BYTES * len(self._answers.accepted) // 3
            found.append(growth_of(name, samples, allowed_bytes=allowed))
        return tuple(found)

    def _proofs(self, growths: Sequence[Growth], unfinished: list[str], restarts: list[str]) -> tuple[Proof, ...]:
        answers = self._answers
        grown = [
            f"{growth.process}: {growth.middle_bytes / _MIB:.1f} MiB, then {growth.last_bytes / _MIB:.1f} MiB"
            for growth in growths
            if not growth.is_flat
        ]
        num_answers = sum(answers.by_status.values())
        refused = [] if answers.by_status["429"] else ["nothing was refused: this was no overload"]
        return (
            proof_of_none(
                "what was too much was answered 429 with Retry-After",
                refused + answers.strange,
                num_checked=num_answers,
            ),
            proof_of_none(
                "every call was answered", ["some were not"] * answers.by_status["unanswered"], num_checked=num_answers
            ),
            proof_of_none("everything accepted has ended well", unfinished, num_checked=len(answers.accepted)),
            proof_of_none("memory is flat in every process", grown, num_checked=len(growths)),
            proof_of_none("no process was started again", restarts, num_checked=len(growths)),
            proof_of_none("no process is left", living_descendants(), num_checked=len(growths)),
        )
