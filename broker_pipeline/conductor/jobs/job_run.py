"""The life of one job in a conductor, attempt by attempt.

    begin_attempt ─► route ─► prepare ─► stages ─┬─► complete ──► commits flushed ─► finish ─► media ─► ack
         ▲                                       │
         └──────── retry policy ◄── lost ────────┘   the tokens so far come back from Redis with the next attempt

Whatever was lost, wherever, this is how a job goes on; there is no other way of recovery.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.jobs.job_end import Ending, JobEnds, Stores
from broker_pipeline.conductor.jobs.live_job import LiveJob, LiveJobs
from broker_pipeline.conductor.output.committer import Committer
from broker_pipeline.conductor.output.generation import Generation
from broker_pipeline.conductor.output.output import Output
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.workers.preparer import Preparer
from broker_pipeline.errors import (
    CancelledJobError,
    Failure,
    PipelineError,
    RetriesExhaustedError,
    StateError,
    TransportError,
)
from broker_pipeline.messages.jobs import JobEvent, TokenEntry
from broker_pipeline.messages.vision import PrepareRequest
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.policies.admission import Admission
from broker_pipeline.scheduling.policies.prompt_limits import PromptLimits
from broker_pipeline.scheduling.policies.retries import Retry
from broker_pipeline.scheduling.policies.sampling import resolve_sampling
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import PreparedPrompt, SessionState
from broker_pipeline.state.job_store import Attempt
from broker_pipeline.state.persistence import persist

log = structlog.get_logger()

_LEASE_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why an attempt came to nothing."""

    failure: Failure
    is_blamed: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What holds for every job of a tenure."""

    pipeline: str
    epoch: int
    prepare_timeout_s: float
    max_deliveries: int
    lease_held: Callable[[], bool]
    """Whether nobody else can conduct at this moment."""


class JobRunner:
    """Runs jobs to their end, any number at the same time."""

    def __init__(
        self,
        live: LiveJobs,
        stores: Stores,
        model: TextModel,
        dispatcher: Dispatcher,
        preparer: Preparer,
        committer: Committer,
        admission: Admission,
        settings: RunSettings,
    ) -> None:
        self._live = live
        self._stores = stores
        self._model = model
        self._dispatcher = dispatcher
        self._preparer = preparer
        self._committer = committer
        self._admission = admission
        self._settings = settings
        self._ends = JobEnds(live, stores, committer)
        self._wire_attempts = itertools.count(1)

    async def run(self, job: LiveJob) -> None:
        """Run one job until it has ended and is acknowledged, or is another conductor's."""
        try:
            while not await self._attempt(job):
                job.phase = "recovering"
        except StateError as error:
            log.warning("job_requeued", job=job.job_id, reason=error.message)
            await self.requeue(job, delay_s=5.0)
        finally:
            self._dispatcher.stop(job.job_id)
            self._live.remove(job)

    async def requeue(self, job: LiveJob, delay_s: float = 0.0) -> None:
        """Leave a job to whoever pulls next."""
        try:
            await job.delivery.retry(delay_s)
        except TransportError as error:
            log.warning("job_not_requeued", job=job.job_id, reason=error.message)

    # --- an attempt -------------------------------------------------------------------------------------------------

    async def _attempt(self, job: LiveJob) -> bool:
        """Begin an attempt; True when the job has ended with it."""
        await self._until_lease_held()
        attempt = await persist(lambda: self._stores.jobs.begin_attempt(job.spec))
        if attempt.is_finished:
            log.info("job_was_finished", job=job.job_id)
            await self._ends.acknowledge(job, has_failed=attempt.has_failed)
            return True
        await self._announce(job, attempt)
        outcome = await self._outcome(job, attempt)
        verdict = self._after(job, outcome) if isinstance(outcome, _Lost) else outcome
        if isinstance(verdict, Ending):
            return await self._finish(job, attempt, verdict)
        job.is_alone = verdict.is_alone
        job.phase = "recovering"
        await self._committer.flushed(job.job_id)  # the next attempt goes on from what Redis holds
        await asyncio.sleep(verdict.delay_s)
        return False

    async def _until_lease_held(self) -> None:
        """Begin no attempt without the lease: after a standstill, that would void an attempt of the new holder's.

        A lease that was not renewed in time either still is, or this task ends.
        """
        while not self._settings.lease_held():  # noqa: ASYNC110 - for a moment at most, see above
            await asyncio.sleep(_LEASE_POLL_S)

    async def _announce(self, job: LiveJob, attempt: Attempt) -> None:
        job.num_attempts += 1
        self._live.num_replays += job.num_attempts > 1
        log.info(
            "attempt_begun",
            job=job.job_id,
            attempt=attempt.number,
            num_tokens=len(attempt.tokens),
            num_deliveries=job.delivery.num_deliveries,
        )
        if job.num_attempts == 1 and self._stores.events.is_watched(job.job_id):
            record = await persist(lambda: self._stores.jobs.get(job.job_id))
            await self._stores.events.say(JobEvent(job_id=job.job_id, kind="started", record=record))

    async def _outcome(self, job: LiveJob, attempt: Attempt) -> Ending | _Lost:
        """Run an attempt on the stages and say how that went."""
        if attempt.is_cancelled:
            return Ending.cut_short("".join(entry.text for entry in attempt.tokens), len(attempt.tokens))
        if job.delivery.num_deliveries > self._settings.max_deliveries:
            return Ending.failed(RetriesExhaustedError(f"delivered {job.delivery.num_deliveries} times without an end"))
        generation: Generation | None = None
        try:
            generation = await job.unless_cancelled(self._ready(job, attempt))
            return await job.unless_cancelled(self._generate(job, generation))
        except CancelledJobError:
            return self._cancelled(job, generation, attempt)
        except PipelineError as error:
            if isinstance(error, StateError):
                raise
            return _Lost(error.to_failure(), is_blamed=True, num_tokens=len(attempt.tokens))
        except Exception as bug:
            # A bug met by one job must not take down the others; it is the job's end, and logged whole.
            log.exception("job_crashed", job=job.job_id)
            return Ending.failed(PipelineError(f"running the job crashed: {bug!r}"))

    async def _generate(self, job: LiveJob, generation: Generation) -> Ending | _Lost:
        output = generation.output
        if not generation.is_finished:
            job.phase = "computing"
            self._dispatcher.start(generation)
            if lost := await generation.ended():
                return _Lost(lost.failure, lost.is_blamed, len(output.token_ids))
        assert output.finish_reason is not None
        return Ending("succeeded", output.text, output.finish_reason, len(output.token_ids))

    def _cancelled(self, job: LiveJob, generation: Generation | None, attempt: Attempt) -> Ending:
        self._dispatcher.stop(job.job_id)
        if generation is None:
            return Ending.cut_short("".join(entry.text for entry in attempt.tokens), len(attempt.tokens))
        return Ending.cut_short(generation.output.cut_short(), len(generation.output.token_ids))

    def _after(self, job: LiveJob, lost: _Lost) -> Retry | Ending:
        verdict = job.retries.after(
            lost.failure, is_blamed=lost.is_blamed, was_alone=job.is_alone, num_tokens=lost.num_tokens
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
        return Ending("failed", error=verdict) if isinstance(verdict, Failure) else verdict

    # --- before the stages ------------------------------------------------------------------------------------------

    async def _ready(self, job: LiveJob, attempt: Attempt) -> Generation:
        """Get a route and a prompt whose rows are at that route's stages."""
        while True:
            route = await self._route(job)
            wire_attempt = next(self._wire_attempts)
            prompt = await self._prompt(job, wire_attempt, route)
            if not job.num_kv_tokens:
                max_tokens = self._limits(job).max_tokens(prompt.num_tokens)
                job.num_kv_tokens = prompt.num_tokens + max_tokens
                self._admission.learn(job.num_kv_tokens)
            if job.num_kv_tokens <= route.kv_capacity_tokens:
                break
        max_tokens = job.num_kv_tokens - prompt.num_tokens
        output = self._output(job, max_tokens, attempt.tokens)
        session = SessionState(
            key=SessionKey(job.job_id, wire_attempt),
            order=job.order,
            route=route,
            prompt=prompt,
            sampling=resolve_sampling(job.spec.sampling, self._model.facts.generation, job.job_id),
            num_kv_tokens=job.num_kv_tokens,
            generated=list(output.token_ids),
            is_alone=job.is_alone,
        )
        return Generation(session, attempt.number, output, self._committer)

    async def _route(self, job: LiveJob) -> Route:
        """Wait for a route, one that can hold the job."""
        scheduler = self._dispatcher.scheduler
        while True:
            if longest := scheduler.longest_session():
                num_tokens = job.num_kv_tokens or min(self._admission.expected_tokens, longest)
                if route := scheduler.assign(job.job_id, num_tokens):
                    return route
            await self._dispatcher.changed.wait()

    def _limits(self, job: LiveJob) -> PromptLimits:
        """Return what the model and the largest route allow; raises `PromptTooLongError` when that is too little.

        A route that is away counts as well: a job that it can hold waits for it rather than fails.
        """
        return self._model.limits(job.spec.sampling.max_tokens, self._dispatcher.longest_session)

    async def _prompt(self, job: LiveJob, wire_attempt: int, route: Route) -> PreparedPrompt:
        if job.prompt is not None and not job.prompt.visual:
            return job.prompt
        facts, settings = self._model.facts, self._settings
        request = PrepareRequest(
            pipeline=settings.pipeline,
            fingerprint=facts.fingerprint,
            epoch=settings.epoch,
            session=job.job_id,
            attempt=wire_attempt,
            messages=job.spec.messages,
            targets=route.row_targets(facts.num_deepstack_levels),
            max_prompt_tokens=self._limits(job).max_prompt_tokens,
            budget_s=settings.prepare_timeout_s,
        )
        job.prompt = await self._preparer.prepare(request, route)
        return job.prompt

    def _output(self, job: LiveJob, max_tokens: int, tokens: Sequence[TokenEntry]) -> Output:
        asked = job.spec.sampling
        output = Output(
            self._model.vocabulary,
            eos_token_ids=() if asked.ignore_eos else self._model.facts.eos_token_ids,
            max_tokens=max_tokens,
            stop=asked.stop,
        )
        output.replay([entry.token_id for entry in tokens])
        return output

    # --- the end ----------------------------------------------------------------------------------------------------

    async def _finish(self, job: LiveJob, attempt: Attempt, ending: Ending) -> bool:
        job.phase = "finishing"
        self._dispatcher.stop(job.job_id)
        return await self._ends.write(job, attempt, ending)
