"""Has one request of a batch answered by a job, and writes down what came of it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from broker_pipeline.errors import (
    Failure,
    JobNotFoundError,
    PipelineError,
    QueueFullError,
    StateError,
    TransportError,
)
from broker_pipeline.messages.jobs import FINAL_STATUSES, JobRecord
from broker_pipeline.state.job_store import JobStore
from gateway.batches.checks import request_line
from gateway.batches.endpoint import Endpoint
from gateway.batches.line_room import LineRoom
from gateway.batches.lines import Line
from gateway.batches.outbox import Answer, as_line
from gateway.batches.picture_retries import PictureRetries
from gateway.batches.records import Batch
from gateway.intake.current_limits import CurrentLimits
from gateway.intake.job_draft import JobDraft, Submission
from gateway.intake.request_reader import parsed
from gateway.jobs.retries import JobRetries
from gateway.jobs.service import JobService
from gateway.jobs.watch import JobWatch
from gateway.settings import Limits

_WAIT_S = 60.0
_PAUSE_S = 1.0
_GIVEN_UP = {
    "expired": Failure("batch_expired", "the batch's completion window ended before this request was answered"),
    "cancelled": Failure("batch_cancelled", "the batch was cancelled before this request was answered"),
}
_JOB_CANCELLED = Failure("job_cancelled", "somebody cancelled the job of this request")

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that has a job, or was refused."""

    number: int
    key: str
    tenant: str
    custom_id: str
    endpoint: Endpoint
    job_id: str | None = None
    refused: Failure | None = None


class Answers:
    """Answers requests of batches."""

    def __init__(
        self,
        *,
        jobs: JobService,
        store: JobStore,
        retries: JobRetries,
        watch: JobWatch,
        room: LineRoom,
        pictures: PictureRetries,
        limits: CurrentLimits,
        endpoints: Mapping[str, Endpoint],
    ) -> None:
        """Know each endpoint that a batch may be for by its path."""
        self._jobs = jobs
        self._store = store
        self._retries = retries
        self._watch = watch
        self._room = room
        self._pictures = pictures
        self._limits = limits
        self._endpoints = endpoints

    async def model(self) -> str | None:
        """Return the name of the model that answers; None: nobody knows."""
        return (await self._limits.get()).model

    async def ask(self, batch: Batch, number: int, line: Line) -> Asked:
        """Make a job of a request, or find the one that was made of it before.

        Waits while there is no room for it. Raises `StateError` or `TransportError`.
        """
        asked = self._named(batch, number, line)
        try:
            job_id = await _when_there_is_room(partial(self._jobs.find, asked.key, asked.tenant))
            if job_id is None:
                job_id = await self._submitted(asked, line)
        except (StateError, TransportError):
            raise
        except PipelineError as error:
            return replace(asked, refused=error.to_failure())
        return replace(asked, job_id=job_id)

    async def answered(self, asked: Asked) -> Answer | None:
        """Wait for the answer; None when somebody has deleted the job. Raises `StateError` or `TransportError`."""
        if asked.refused is not None or asked.job_id is None:
            return _refusal(asked, asked.refused or _JOB_CANCELLED)
        try:
            return await self._written(asked, await self._end(asked.job_id))
        except JobNotFoundError:
            log.warning("batch_job_lost", job=asked.job_id, request=asked.key)
            return None

    async def give_up(self, batch: Batch, requests: Sequence[tuple[int, Line]], status: str) -> list[Answer]:
        """Stop requests; return the answers of those that have one, and of the others what says why there is none."""

        def unanswered() -> list[tuple[Asked, Answer]]:
            asked = [self._named(batch, number, line) for number, line in requests]
            return [(one, _unanswered(one, _GIVEN_UP[status])) for one in asked]

        given_up = await asyncio.to_thread(unanswered)
        job_ids = await self._store.jobs_of([asked.key for asked, _ in given_up], batch.tenant)
        return [
            (await self._last_answer(replace(asked, job_id=job_id)) if job_id else None) or otherwise
            for (asked, otherwise), job_id in zip(given_up, job_ids, strict=True)
        ]

    async def _last_answer(self, asked: Asked) -> Answer | None:
        """Stop the job of a request; return its answer, where it has one already."""
        try:
            record = await self._jobs.cancel(asked.job_id or "")
        except JobNotFoundError:
            log.info("batch_job_lost", job=asked.job_id, request=asked.key)
            return None
        return await self._written(asked, record) if record.status in ("succeeded", "failed") else None

    async def forget(self, answers: Sequence[Answer]) -> None:
        """Forget the jobs of answers that are kept elsewhere now."""
        for answer in answers:
            if answer.job_failed and answer.job_id is not None:
                await self._discard(answer.job_id)
        await self._store.forget_ended([answer.job_id for answer in answers if answer.job_id is not None])

    async def _discard(self, job_id: str) -> None:
        try:
            await self._retries.discard(job_id)  # with its pictures, which failed jobs keep
        except JobNotFoundError:
            log.info("batch_job_forgotten_before", job=job_id)

    def _named(self, batch: Batch, number: int, line: Line) -> Asked:
        custom_id = request_line(line.content or b"").custom_id
        return Asked(number, f"{batch.id}:{number}", batch.tenant, custom_id, self._endpoints[batch.endpoint])

    async def _end(self, job_id: str) -> JobRecord:
        while True:
            record = await self._watch.finished(job_id, _WAIT_S)
            if record.status in FINAL_STATUSES:
                return record
            await asyncio.sleep(_PAUSE_S)  # the gateway is about to stop, or this takes long

    async def _submitted(self, asked: Asked, line: Line) -> str:
        limits = await self._limits.get()

        def parse(content: bytes) -> JobDraft:
            return asked.endpoint.parse(bytes(request_line(content).body), limits)

        draft = await parsed(line.content or b"", parse)
        return await self._pictures.get(draft, partial(self._with_pictures, asked, draft, limits), asked.key)

    async def _with_pictures(self, asked: Asked, draft: JobDraft, limits: Limits) -> str:
        async with self._room.pictures(draft, limits) as contents:
            submission = Submission(replace(draft, priority="batch"), contents, asked.key, asked.tenant)
            return (await _when_there_is_room(partial(self._jobs.submit, submission))).record.job_id

    async def _written(self, asked: Asked, record: JobRecord) -> Answer:
        if record.status == "cancelled":
            return replace(_unanswered(asked, _JOB_CANCELLED), job_id=record.job_id)
        if record.error is not None or record.result is None:
            failure = record.error or Failure("internal", "the job ended without a result")
            return replace(_refusal(asked, failure), job_id=record.job_id, job_failed=True)
        spec = await self._store.spec(record.job_id)
        tokens = await self._store.tokens(record.job_id) if spec.sampling.logprobs is not None else []
        usage = record.result.usage
        return Answer(
            asked.number,
            _line(asked, 200, asked.endpoint.answer(spec, record, tokens)),
            is_error=False,
            job_id=record.job_id,
            usage=(usage.num_prompt_tokens, usage.num_output_tokens, usage.num_reasoning_tokens),
        )


async def _when_there_is_room(call: Callable[[], Awaitable[T]]) -> T:
    while True:
        try:
            return await call()
        except QueueFullError as error:
            await asyncio.sleep(error.retry_after_s)


def _refusal(asked: Asked, failure: Failure) -> Answer:
    """Return what an HTTP client would have been told."""
    return Answer(asked.number, _line(asked, *asked.endpoint.refusal(failure)), is_error=True)


def _unanswered(asked: Asked, failure: Failure) -> Answer:
    said = {"code": failure.code, "message": failure.message}
    line = {"id": _request_id(asked), "custom_id": asked.custom_id, "response": None, "error": said}
    return Answer(asked.number, as_line(line), is_error=True)


def _line(asked: Asked, status: int, body: msgspec.Struct) -> bytes:
    request_id = asked.job_id or _request_id(asked)
    response = {"status_code": status, "request_id": request_id, "body": body}
    return as_line({"id": _request_id(asked), "custom_id": asked.custom_id, "response": response, "error": None})


def _request_id(asked: Asked) -> str:
    return f"batch_req_{hashlib.sha256(asked.key.encode()).hexdigest()[:24]}"
