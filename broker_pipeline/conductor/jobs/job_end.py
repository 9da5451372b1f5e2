"""How a job ends: its result written once, whoever waits for it told, its media given up, its message acknowledged."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Self

import structlog

from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.errors import Failure, GarbledStateError, JobNotFoundError, PipelineError, TransportError
from broker_pipeline.messages.jobs import Choice, FinishReason, JobEvent, JobRecord, JobResult, Usage
from broker_pipeline.model_facts import ModelFacts
from broker_pipeline.scheduling.policies.sampling import as_asked
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import Attempt, JobStore
from broker_pipeline.state.persistence import persist
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.tracing.activities import JOB
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends: with a result (whole, or cut short), or with an error."""

    status: Literal["succeeded", "failed", "cancelled"]
    choices: tuple[Choice, ...] = ()
    error: Failure | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first output ended, unless the job was cancelled."""
        return self.choices[0].finish_reason if self.choices and self.status == "succeeded" else "cancelled"

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all outputs."""
        return sum(choice.num_output_tokens for choice in self.choices)

    @classmethod
    def failed(cls, error: PipelineError) -> Ending:
        """Return the end of a job that cannot be run."""
        return cls("failed", error=error.to_failure())


@dataclass(frozen=True, slots=True)
class Stores:
    """Where jobs are kept, and where their events go."""

    jobs: JobStore
    media: MediaStore
    failed: FailedJobs
    events: JobEvents

    @classmethod
    def open(cls, transport: Transport, redis: RedisClient, namespace: str, watchers: Watchers) -> Self:
        """Return the stores of a namespace; events are published where `watchers` want them."""
        return cls(
            jobs=JobStore(redis, namespace),
            media=MediaStore(transport, redis, namespace),
            failed=FailedJobs(redis, namespace),
            events=JobEvents(transport, namespace, watchers),
        )


@dataclass(frozen=True, slots=True, eq=False)
class JobEnds:
    """Ends the jobs of one conductor."""

    live: LiveJobs
    stores: Stores
    committer: Committer
    facts: ModelFacts
    """The model that results name."""

    async def write(self, job: LiveJob, attempt: Attempt, ending: Ending) -> bool:
        """Write the end; False when it is not this attempt's to write, so that another has to look again."""
        tokens = await self.committer.last(job.job_id, attempt.number)
        result = _result(job, attempt, ending, self.facts) if ending.status != "failed" else None
        error = job.spec.as_sent(ending.error) if ending.error else None
        num_tokens = ending.num_output_tokens if ending.status == "succeeded" else None
        is_written = await persist(
            lambda: self.stores.jobs.finish(
                job.job_id, attempt.number, ending.status, result, error, tokens, num_tokens
            )
        )
        if not is_written:
            log.warning("end_refused", job=job.job_id, attempt=attempt.number)
            return False
        self.live.num_finished[ending.status] += 1
        tracer.span(JOB, tracer.now() - _age_ns(job), session=job.job_id, status=ending.status)
        log.info(
            "job_finished",
            job=job.job_id,
            status=ending.status,
            attempt=attempt.number,
            num_tokens=ending.num_output_tokens,
            code=ending.error.code if ending.error else None,
            reason=ending.error.message if ending.error else ending.finish_reason,
        )
        await self._tell(job)
        await self.acknowledge(job, has_failed=ending.status == "failed")
        return True

    async def write_garbled(self, job: LiveJob, error: GarbledStateError) -> None:
        """End a job of which Redis holds something that nobody can go on from; unless it has ended already."""
        reason = GarbledStateError(f"{error.message}; sent again (`broker-pipeline failed retry`), it begins anew")
        if await persist(lambda: self.stores.failed.fail_garbled(job.job_id, job.spec, reason.to_failure())):
            self.live.num_finished["failed"] += 1
            log.error("job_garbled", job=job.job_id, reason=error.message)
            await self._tell(job)
        await self.acknowledge(job, has_failed=True)

    async def acknowledge(self, job: LiveJob, *, has_failed: bool) -> None:
        """Give up the job's media and take it out of the queue, in this order: what is left undone is done again.

        A job that has failed keeps its media for a while: it may be sent again. Nobody waits for the server's word:
        a job that comes again is seen to have ended.
        """
        media, spec = self.stores.media, job.spec
        await persist(lambda: media.keep(spec) if has_failed else media.release(spec, spec.media_holder))
        try:
            await job.delivery.ack(timeout_s=None)
        except TransportError as error:
            log.warning("ack_lost", job=job.job_id, reason=error.message)

    async def _tell(self, job: LiveJob) -> None:
        """Tell who waits for the end that it has come: always, since that takes no reading where nobody watches."""
        is_watched = self.stores.events.is_watched(job.job_id)
        record = await self._record(job.job_id) if is_watched else None
        await self.stores.events.say(JobEvent(job_id=job.job_id, kind="finished", record=record))

    async def _record(self, job_id: str) -> JobRecord | None:
        try:
            return await persist(lambda: self.stores.jobs.get(job_id))
        except JobNotFoundError:  # whoever waited for it was quicker, and has had it forgotten
            return None


def _age_ns(job: LiveJob) -> int:
    return round(max(0.0, time.time() - job.spec.created_at) * 1e9)


def _result(job: LiveJob, attempt: Attempt, ending: Ending, facts: ModelFacts) -> JobResult:
    prompt = job.prompt
    usage = Usage(
        num_prompt_tokens=prompt.num_tokens if prompt else 0,
        num_visual_tokens=prompt.num_visual_tokens if prompt else 0,
        num_output_tokens=ending.num_output_tokens,
        num_reasoning_tokens=sum(choice.num_reasoning_tokens for choice in ending.choices),
    )
    return JobResult(
        text=ending.choices[0].text if ending.choices else "",
        reasoning=ending.choices[0].reasoning if ending.choices else "",
        finish_reason=ending.finish_reason,
        stop_reason=ending.choices[0].stop_reason if ending.choices else None,
        usage=usage,
        num_attempts=attempt.number,
        choices=ending.choices if job.spec.sampling.num_outputs > 1 else (),
        model=None if attempt.has_foreign_tokens else facts.name,
        fingerprint=attempt.other_model or None if attempt.has_foreign_tokens else facts.fingerprint,
        sampling=as_asked(job.spec.sampling, job.sampling) if job.sampling else None,
        max_tokens=job.num_kv_tokens - prompt.num_tokens if prompt and job.num_kv_tokens else None,
    )
