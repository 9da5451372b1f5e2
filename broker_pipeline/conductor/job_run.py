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
from typing import Literal

import structlog

from broker_pipeline.conductor.committer import Committer
from broker_pipeline.conductor.dispatcher import Dispatcher
from broker_pipeline.conductor.generation import Generation
from broker_pipeline.conductor.job_events import JobEvents
from broker_pipeline.conductor.live_job import LiveJob, LiveJobs
from broker_pipeline.conductor.prepare import Preparer
from broker_pipeline.conductor.text_model import TextModel
from broker_pipeline.errors import (
    CancelledJobError,
    Failure,
    PipelineError,
    RetriesExhaustedError,
    StateError,
    TransportError,
)
from broker_pipeline.messages import FinishReason, JobEvent, JobResult, PrepareRequest, TokenEntry, Usage
from broker_pipeline.scheduling.admission import Admission
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.prompt_limits import PromptLimits
from broker_pipeline.scheduling.retries import Retry
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.sampling import resolve_sampling
from broker_pipeline.scheduling.session_state import Prompt, SessionState
from broker_pipeline.scheduling.stopping import Output
from broker_pipeline.state.job_store import Attempt, JobStore
from broker_pipeline.state.persistence import persist
from broker_pipeline.storage.media import MediaStore

log = structlog.get_logger()

_OFFICE_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ends: with a result (whole, or cut short), or with an error."""

    status: Literal["succeeded", "failed", "cancelled"]
    text: str = ""
    finish_reason: FinishReason = "error"
    num_output_tokens: int = 0
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class _Lost:
    """Why an attempt came to nothing."""

    failure: Failure
    is_blamed: bool
    num_tokens: int


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What holds for every job of a term."""

    pipeline: str
    epoch: int
    prepare_timeout_s: float
    max_deliveries: int
    is_in_office: Callable[[], bool]
    """Whether nobody else can conduct at this moment."""


@dataclass(frozen=True, slots=True)
class Stores:
    """Where jobs are kept."""

    jobs: JobStore
    media: MediaStore
    events: JobEvents


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
        self._wire_attempts = itertools.count(1)

    async def run(self, job: LiveJob) -> None:
        """Run one job until it has ended and is acknowledged, or is another conductor's."""
        try:
            while not await self._attempt(job):
                job.phase = "recovering"
        except StateError as error:
            log.warning("job_put_back", job=job.job_id, reason=error.message)
            await self.put_back(job, delay_s=5.0)
        finally:
            self._dispatcher.stop(job.job_id)
            self._live.remove(job)

    async def put_back(self, job: LiveJob, delay_s: float = 0.0) -> None:
        """Leave a job to whoever pulls next."""
        try:
            await job.delivery.retry(delay_s)
        except TransportError as error:
            log.warning("job_not_put_back", job=job.job_id, reason=error.message)

    # --- an attempt -------------------------------------------------------------------------------------------------

    async def _attempt(self, job: LiveJob) -> bool:
        """Begin an attempt; True when the job has ended with it."""
        await self._in_office()
        attempt = await persist(lambda: self._stores.jobs.begin_attempt(job.spec))
        if attempt.is_finished:
            log.info("job_was_finished", job=job.job_id)
            await self._acknowledge(job, has_failed=attempt.has_failed)
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

    async def _in_office(self) -> None:
        """Begin no attempt without the lease: after a standstill, that would void an attempt of the new holder's.

        A lease that was not renewed in time either still is, or this task ends.
        """
        while not self._settings.is_in_office():  # noqa: ASYNC110 - for a moment at most, see above
            await asyncio.sleep(_OFFICE_POLL_S)

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
            return _cut_short("".join(entry.text for entry in attempt.tokens), len(attempt.tokens))
        if job.delivery.num_deliveries > self._settings.max_deliveries:
            return _failed(RetriesExhaustedError(f"delivered {job.delivery.num_deliveries} times without an end"))
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
            return _failed(PipelineError(f"running the job crashed: {bug!r}"))

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
            return _cut_short("".join(entry.text for entry in attempt.tokens), len(attempt.tokens))
        return _cut_short(generation.output.cut_short(), len(generation.output.token_ids))

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

    async def _prompt(self, job: LiveJob, wire_attempt: int, route: Route) -> Prompt:
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
        """Write the end; False when it is not this attempt's to write, so that another has to look again."""
        job.phase = "finishing"
        self._dispatcher.stop(job.job_id)
        tokens = await self._committer.last(job.job_id, attempt.number)
        result = self._result(job, attempt, ending) if ending.status != "failed" else None
        is_written = await persist(
            lambda: self._stores.jobs.finish(job.job_id, attempt.number, ending.status, result, ending.error, tokens)
        )
        if not is_written:
            log.warning("end_refused", job=job.job_id, attempt=attempt.number)
            return False
        self._live.num_finished[ending.status] += 1
        log.info(
            "job_finished",
            job=job.job_id,
            status=ending.status,
            attempt=attempt.number,
            num_tokens=ending.num_output_tokens,
            code=ending.error.code if ending.error else None,
            reason=ending.error.message if ending.error else ending.finish_reason,
        )
        await self._tell_end(job)
        await self._acknowledge(job, has_failed=ending.status == "failed")
        return True

    async def _tell_end(self, job: LiveJob) -> None:
        """Tell who waits for the end that it has come: always, since that takes no reading where nobody watches."""
        is_watched = self._stores.events.is_watched(job.job_id)
        record = await persist(lambda: self._stores.jobs.get(job.job_id)) if is_watched else None
        await self._stores.events.say(JobEvent(job_id=job.job_id, kind="finished", record=record))

    def _result(self, job: LiveJob, attempt: Attempt, ending: Ending) -> JobResult:
        prompt = job.prompt
        usage = Usage(
            num_prompt_tokens=prompt.num_tokens if prompt else 0,
            num_visual_tokens=prompt.num_visual_tokens if prompt else 0,
            num_output_tokens=ending.num_output_tokens,
        )
        return JobResult(text=ending.text, finish_reason=ending.finish_reason, usage=usage, num_attempts=attempt.number)

    async def _acknowledge(self, job: LiveJob, *, has_failed: bool) -> None:
        """Give up the job's media and take it out of the queue, in this order: what is left undone is done again.

        A job that has failed keeps its media for a while: it may be sent again.
        """
        media, spec = self._stores.media, job.spec
        await persist(lambda: media.keep(spec) if has_failed else media.release(spec, spec.media_holder))
        try:
            await job.delivery.ack()
        except TransportError as error:
            log.warning("ack_lost", job=job.job_id, reason=error.message)


def _cut_short(text: str, num_tokens: int) -> Ending:
    return Ending("cancelled", text, "cancelled", num_tokens)


def _failed(error: PipelineError) -> Ending:
    return Ending("failed", error=error.to_failure())
