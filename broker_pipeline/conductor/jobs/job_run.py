"""The life of one job in a conductor, attempt by attempt.

    begin_attempt ─► route ─► prepare ─► stages ─┬─► complete ──► commits flushed ─► finish ─► media ─► ack
         ▲                                       │
         └──────── retry policy ◄── lost ────────┘   the tokens so far come back from Redis with the next attempt

Two conductors may hold deliveries of one job: the queue forgot that it was out, or one of them stood still. The later
attempt voids the other, whose conductor then lets go of the job.

Whatever was lost, wherever, this is how a job goes on; there is no other way of recovery.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog

from broker_pipeline.conductor.jobs.generation_builder import GenerationBuilder
from broker_pipeline.conductor.jobs.job_end import Ending, JobEnds, Stores
from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.conductor.jobs.other_shares import OtherShares
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.conductor.output.generations import Generations
from broker_pipeline.conductor.output.output import Output, committed_choice, tokens_by_choice
from broker_pipeline.errors import (
    CancelledJobError,
    Failure,
    GarbledStateError,
    LeaseLostError,
    ModelChangedError,
    PipelineError,
    RetriesExhaustedError,
    StateError,
    TransportError,
)
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.scheduling.planned_batch import Lost
from broker_pipeline.scheduling.policies.retries import Retry, may_be_the_workers, named
from broker_pipeline.state.held_jobs import Hold
from broker_pipeline.state.job_store import Attempt
from broker_pipeline.state.lease import Fence
from broker_pipeline.state.persistence import persist
from broker_pipeline.tracing.activities import ATTEMPT
from broker_pipeline.tracing.tracer import tracer

log = structlog.get_logger()

_LEASE_POLL_S = 0.05
_REFUSED_S = 0.5
"""How long a job stays away from everybody that was taken without the lease: until that is known here."""
_OTHERS_FIRST_S = 0.2
"""How long a job that is left to other shares stays away from everybody."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why an attempt came to nothing."""

    failure: Failure
    is_blamed: bool
    num_tokens: int
    suspects: Collection[str] = ()
    in_preparation: bool = False


@dataclass(frozen=True, slots=True)
class RunLimits:
    """What every job of a tenure keeps to."""

    max_deliveries: int
    """Deliveries of one job, over all conductors, before it fails."""
    lease_held: Callable[[], bool]
    """Whether nobody else can conduct at this moment."""
    fence: Fence
    """What Redis looks at before an attempt begins."""
    restarts: bool = True
    """Whether a job with tokens of another model begins again from token 0; otherwise it fails."""
    requeue_s: float = 5.0
    """How long a job that Redis could not be told of stays away from everybody."""
    share: str = ""
    epoch: int = 0
    """Of the tenure: how the next one knows what to hand back."""


@dataclass(slots=True, kw_only=True, eq=False)
class JobRunner:
    """Runs jobs to their end, any number at the same time."""

    live: LiveJobs
    stores: Stores
    builder: GenerationBuilder
    generations: Generations
    committer: Committer
    ends: JobEnds
    limits: RunLimits
    others: OtherShares = field(default_factory=OtherShares)

    async def run(self, job: LiveJob) -> None:
        """Run one job until it has ended and is acknowledged, or is another conductor's."""
        try:
            await self._run(job)
        except GarbledStateError as error:
            self.committer.drop(job.job_id)
            await self.ends.write_garbled(job, error)
        except StateError as error:
            log.warning("job_requeued", job=job.job_id, reason=error.message)
            await self.requeue(job, delay_s=self.limits.requeue_s)
        finally:
            self.generations.stop(job.job_id)
            self.builder.workers.forget(job.job_id)
            self.live.remove(job)

    async def _run(self, job: LiveJob) -> None:
        try:
            while not await self._attempt(job):
                job.phase = "recovering"
        except LeaseLostError as error:
            await self._leave_to_holder(job, error)

    async def requeue(self, job: LiveJob, delay_s: float = 0.0) -> None:
        """Leave a job to whoever pulls next."""
        try:
            await job.delivery.retry(delay_s)
        except TransportError as error:
            log.warning("job_not_requeued", job=job.job_id, reason=error.message)

    # --- an attempt -------------------------------------------------------------------------------------------------

    async def _attempt(self, job: LiveJob) -> bool:
        """Begin an attempt; True when the job has ended with it, or is another's."""
        await self._until_lease_held()
        if await self._is_run_elsewhere(job):
            return True
        if not job.num_attempts and self.others.come_first(job.job_id):
            await self.requeue(job, _OTHERS_FIRST_S)
            return True
        attempt = await self._begun(job)
        if attempt.is_finished:
            log.info("job_was_finished", job=job.job_id)
            await self.ends.acknowledge(job, has_failed=attempt.has_failed)
            return True
        await self._announce(job, attempt)
        started = tracer.now()
        outcome = await self._outcome(job, attempt)
        tracer.span(ATTEMPT, started, session=job.job_id, attempt=attempt.number, outcome=_said(outcome))
        verdict = await self._after(job, outcome) if isinstance(outcome, _Lost) else outcome
        if isinstance(verdict, Ending):
            if isinstance(outcome, _Lost) and await self._leave_to_others(job, outcome):
                return True
            if verdict.status == "succeeded":
                self.others.note_success()
            return await self._finish(job, attempt, verdict)
        job.phase = "recovering"
        await self.committer.flushed(job.job_id)  # the next attempt goes on from what Redis holds
        await asyncio.sleep(verdict.delay_s)
        return False

    async def _begun(self, job: LiveJob) -> Attempt:
        limits = self.limits
        begin = partial(
            self.stores.jobs.begin_attempt,
            job.spec,
            self.builder.model.facts.fingerprint,
            restarts=limits.restarts,
            hold=Hold(limits.epoch, limits.share, job.delivery.name),
            fence=limits.fence,
        )
        return await persist(begin)

    async def _leave_to_holder(self, job: LiveJob, refusal: LeaseLostError) -> None:
        """Let go of a job that another conductor is to run.

        Where a later tenure runs it, its delivery is left as it is: requeued, it would be one more, and may void that.
        Else nobody may know of this delivery, so it is requeued, not at once: until this conductor hears that its lease
        is gone, it may be given the job again.
        """
        hold = await persist(lambda: self.stores.jobs.hold(job.job_id))
        is_run = hold is not None and hold.epoch > self.limits.epoch
        log.info("job_left_to_holder", job=job.job_id, reason=refusal.message, is_run=is_run)
        if not is_run:
            await self.requeue(job, _REFUSED_S)

    async def _until_lease_held(self) -> None:
        """Begin no attempt without the lease: after a standstill, that is likely to be the new holder's to do.

        A lease that was not renewed in time either still is, or this task ends. What is under way to Redis meanwhile
        is refused there: see `Fence`.
        """
        while not self.limits.lease_held():  # noqa: ASYNC110 - for a moment at most, see above
            await asyncio.sleep(_LEASE_POLL_S)

    async def _is_run_elsewhere(self, job: LiveJob) -> bool:
        """Return whether the last attempt was voided by one that runs: then there are two deliveries of the job.

        Whoever holds the later one keeps on prolonging it. This one is left as it is: requeued, it would be a third,
        and acknowledged, the job would be lost with the other conductor. When that dies, the queue delivers it again.
        """
        if (last := job.last_attempt) is None:
            return False
        is_elsewhere = await persist(lambda: self.stores.jobs.has_later_attempt(job.job_id, last))
        if is_elsewhere:
            log.warning("job_is_run_elsewhere", job=job.job_id, attempt=last)
        return is_elsewhere

    async def _announce(self, job: LiveJob, attempt: Attempt) -> None:
        job.num_attempts, job.last_attempt = job.num_attempts + 1, attempt.number
        self.live.num_replays += job.num_attempts > 1
        log.info(
            "attempt_begun",
            job=job.job_id,
            attempt=attempt.number,
            num_tokens=len(attempt.tokens),
            num_deliveries=job.delivery.num_deliveries,
        )
        if attempt.other_model is not None:
            log.warning("begun_by_other_model", job=job.job_id, model=attempt.other_model, restarts=not attempt.tokens)
        if job.num_attempts == 1 and self.stores.events.is_watched(job.job_id):
            record = await persist(lambda: self.stores.jobs.get(job.job_id))
            await self.stores.events.say(JobEvent(job_id=job.job_id, kind="started", record=record))

    async def _outcome(self, job: LiveJob, attempt: Attempt) -> Ending | _Lost:
        """Run an attempt on the stages and say how that went."""
        if ending := self._refusal(job, attempt):
            return ending
        outputs: list[Output] = []
        try:
            lost = await job.unless_cancelled(lambda: self._generate(job, attempt, outputs))
            return lost or Ending("succeeded", tuple(output.end() for output in outputs))
        except CancelledJobError:
            return _cut_short(attempt, outputs)
        except PipelineError as error:
            if isinstance(error, StateError):
                raise
            num_tokens = max(len(attempt.tokens), _num_tokens(outputs))
            suspects = frozenset(job.vision_tried)
            return _Lost(error.to_failure(), True, num_tokens, suspects, in_preparation=True)
        except Exception as bug:
            # A bug met by one job must not take down the others; it is the job's end, and logged whole.
            log.exception("job_crashed", job=job.job_id)
            return Ending.failed(PipelineError(f"running the job crashed: {bug!r}"))

    def _refusal(self, job: LiveJob, attempt: Attempt) -> Ending | None:
        """Return the end of a job that no stage is to see."""
        if attempt.is_cancelled:
            return _cut_short(attempt)
        if job.delivery.num_deliveries > self.limits.max_deliveries:
            return Ending.failed(RetriesExhaustedError(f"delivered {job.delivery.num_deliveries} times without an end"))
        if attempt.has_foreign_tokens:
            return Ending.failed(_model_changed(attempt, self.builder.model.facts.fingerprint))
        return None

    async def _generate(self, job: LiveJob, attempt: Attempt, outputs: list[Output]) -> _Lost | None:
        """Compute one output after the other; each is in `outputs` from its beginning on."""
        while len(outputs) < job.spec.sampling.num_outputs:
            generation = await self.builder.build(job, attempt, outputs)
            outputs.append(generation.output)
            if not generation.is_finished and (lost := await self._compute(job, generation)):
                return _Lost(lost.failure, lost.is_blamed, _num_tokens(outputs), lost.suspects)
        return None

    async def _compute(self, job: LiveJob, generation: Generation) -> Lost | None:
        """Have the stages compute an output, however often it is preempted; returns why it was lost."""
        while True:
            job.phase = "computing"
            self.generations.start(generation)
            lost = await generation.ended()
            if lost is None or not lost.is_preempted:
                return lost
            log.info("resumed", job=job.job_id, num_tokens=len(generation.output.token_ids))
            job.phase = "recovering"
            generation = await self.builder.resume(job, generation, lost.session)

    async def _after(self, job: LiveJob, lost: _Lost) -> Retry | Ending:
        workers, policy = self.builder.workers, job.preparing if lost.in_preparation else job.retries
        has_other = workers.vision.has_other if lost.in_preparation else workers.has_route_without
        if lost.is_blamed and lost.suspects and may_be_the_workers(lost.failure):
            known = policy.failed_on.union(lost.suspects)
            # after a tenure's begin, or an outage: who else could try it
            await workers.expected_are_there(lambda: has_other(known))
        verdict = policy.after(
            lost.failure,
            is_blamed=lost.is_blamed,
            num_tokens=lost.num_tokens,
            suspects=lost.suspects,
            has_other=has_other,
        )
        log.info(
            "attempt_lost",
            job=job.job_id,
            code=lost.failure.code,
            reason=lost.failure.message,
            is_blamed=lost.is_blamed,
            num_tokens=lost.num_tokens,
            ends=isinstance(verdict, Failure),
        )
        if isinstance(verdict, Failure):
            return Ending("failed", error=named(verdict, workers.names(lost.suspects)))
        return verdict

    async def _leave_to_others(self, job: LiveJob, lost: _Lost) -> bool:
        """Put a job that failed for good on this share's stages back for another share, if one is to try it."""
        is_by_stages = lost.is_blamed and not lost.in_preparation
        if not is_by_stages or not self.others.should_try(job.job_id, lost.failure):
            return False
        log.warning("job_left_to_other_shares", job=job.job_id)
        self.generations.stop(job.job_id)
        await self.committer.flushed(job.job_id)
        await self.requeue(job, _OTHERS_FIRST_S)
        return True

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self, job: LiveJob, attempt: Attempt, ending: Ending) -> bool:
        job.phase = "finishing"
        self.generations.stop(job.job_id)
        return await self.ends.write(job, attempt, ending)


def _said(outcome: Ending | _Lost) -> str:
    return outcome.failure.code if isinstance(outcome, _Lost) else outcome.status


def _num_tokens(outputs: Sequence[Output]) -> int:
    return sum(len(output.token_ids) for output in outputs)


def _cut_short(attempt: Attempt, outputs: Sequence[Output] = ()) -> Ending:
    """End with what the outputs have said, and what earlier attempts have of those that are not there yet."""
    rest = map(committed_choice, tokens_by_choice(attempt.tokens)[len(outputs) :])
    return Ending("cancelled", (*(output.end() for output in outputs), *rest))


def _model_changed(attempt: Attempt, fingerprint: str) -> ModelChangedError:
    return ModelChangedError(
        f"its {len(attempt.tokens)} tokens are of another model ({attempt.other_model or 'unknown'}) than is served "
        f"now ({fingerprint}); sent again (`broker-pipeline failed retry`), it begins with this one from token 0"
    )
