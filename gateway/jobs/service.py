"""Takes jobs, tells of them, stops them. Knows nothing of HTTP, so that every API in front of it shares it.

    media ──put──► store.create ──► publisher.publish ──► accepted
      │                │                  │
      └── release ◄────┴──── discard ◄────┘  on any failure: nothing stays behind

A gateway that dies between `create` and `publish` leaves a record that is not in the queue. Its client got no answer
and asks again with the same idempotency key; a repeat whose job is still queued therefore puts it into the queue
again, and so does the active conductor after a while. The queue drops the second message of a job, and conductors the
second run.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import structlog

from broker_pipeline import subjects
from broker_pipeline.errors import IdempotencyConflictError, JobNotFoundError, StateError, TransportError
from broker_pipeline.identity import new_job_id
from broker_pipeline.messages.control import CancelRequest
from broker_pipeline.messages.jobs import FINAL_STATUSES, ChatMessage, JobEvent, JobRecord, JobSpec, MediaRef
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.storage.publishing import JobPublisher
from broker_pipeline.tracing.activities import CREATE_JOB, QUEUE_JOB, STORE_MEDIA
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.transport import Transport
from gateway.intake.job_draft import JobDraft, Link, Submission, fill

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Accepted:
    """An accepted submission; `is_repeat` when an earlier one with the same key was found."""

    record: JobRecord
    is_repeat: bool


class JobService:
    """The jobs of one namespace, for whoever submits them."""

    def __init__(
        self, transport: Transport, store: JobStore, media: MediaStore, publisher: JobPublisher, namespace: str
    ) -> None:
        self._transport = transport
        self._store = store
        self._media = media
        self._publisher = publisher
        self._namespace = namespace
        self._not_stored: tuple[float, TransportError] | None = None

    def not_stored(self, within_s: float) -> TransportError | None:
        """Return why NATS did not store the latest submission, if that was within the last seconds."""
        if self._not_stored is None or time.monotonic() - self._not_stored[0] > within_s:
            return None
        return self._not_stored[1]

    async def submit(self, submission: Submission[JobDraft]) -> Accepted:
        """Make a job of a submission. Either the job is queued when this returns, or nothing of it remains.

        Raises `QueueFullError`, `IdempotencyConflictError`, `StateError` or `TransportError`.
        """
        job_id = new_job_id()
        refs: list[MediaRef] = []
        try:
            for content in submission.contents:
                if isinstance(content, MediaRef):
                    refs.append(content)
                    continue
                with tracer.measure(STORE_MEDIA, session=job_id, num_bytes=len(content)):
                    refs.append(await self._media.put(content, job_id))
            spec = _spec(job_id, submission.draft, refs, submission.tenant)
            with tracer.measure(CREATE_JOB, session=job_id):
                record, is_new = await self._store.create(spec, submission.idempotency_key)
            if is_new:
                with tracer.measure(QUEUE_JOB, session=job_id):
                    await self._publisher.publish(spec)
                self._not_stored = None
                log.info("job_accepted", job=job_id, num_images=len(refs))
                return Accepted(record, is_repeat=False)
        except BaseException as error:
            if isinstance(error, TransportError):
                self._not_stored = time.monotonic(), error
            await asyncio.shield(self._undo(job_id, refs))
            raise
        await self._media.release(refs, job_id)
        return await self._repeat(record, submission)

    async def find(self, idempotency_key: str, tenant: str = "") -> str | None:
        """Return the id of the job that a tenant submitted with this key, and see that it is in the queue if it waits.

        Raises `QueueFullError`, `StateError` or `TransportError`.
        """
        (job_id,) = await self._store.jobs_of([idempotency_key], tenant)
        if job_id is None:
            return None
        try:
            record, spec = await self._store.get(job_id), await self._store.spec(job_id)
        except JobNotFoundError:
            return None
        if record.status == "queued":
            await self._publisher.publish(spec)
        return job_id

    async def get(self, job_id: str) -> JobRecord:
        """Return a job; raises `JobNotFoundError`."""
        return await self._store.get(job_id)

    async def cancel(self, job_id: str) -> JobRecord:
        """Ask for a job's end; a job that has not begun ends now. Raises `JobNotFoundError`."""
        record = await self._store.request_cancel(job_id)
        if record.status not in FINAL_STATUSES:
            await self._transport.publish(subjects.cancel(self._namespace), CancelRequest(job_id=job_id))
        elif record.status == "cancelled" and record.started_at is None:
            await self._after_cancel_in_queue(record)
        log.info("job_cancel_requested", job=job_id, status=record.status)
        return record

    async def _after_cancel_in_queue(self, record: JobRecord) -> None:
        """Do what the conductor does at the end of a job that it ran."""
        spec = await self._store.spec(record.job_id)
        await self._media.release(spec, spec.media_holder)
        event = JobEvent(job_id=record.job_id, kind="finished", record=record)
        await self._transport.publish(subjects.job_events(self._namespace, record.job_id, event.kind), event)

    async def _repeat(self, record: JobRecord, submission: Submission[JobDraft]) -> Accepted:
        spec = await self._store.spec(record.job_id)
        if not is_same_request(spec, submission):
            raise IdempotencyConflictError(
                f"this key belongs to job {record.job_id}, which was another request", field="Idempotency-Key"
            )
        if record.status == "queued":
            await self._publisher.publish(spec)
        log.info("job_repeated", job=record.job_id, status=record.status)
        return Accepted(record, is_repeat=True)

    async def _undo(self, job_id: str, refs: Sequence[MediaRef]) -> None:
        """Forget a job that was not accepted; what cannot be forgotten now, the stores' own sweeps will find."""
        try:
            await self._store.discard(job_id)
            await self._media.release(refs, job_id)
        except (TransportError, StateError) as error:
            log.warning("job_undo_failed", job=job_id, code=error.code, message=error.message)


def is_same_request(spec: JobSpec, submission: Submission[JobDraft]) -> bool:
    """Say whether a submission asks for what `spec` asked for.

    What a link leads to may change between two tries, so there only the places are compared, not the bytes.
    """
    again = _spec(spec.job_id, submission.draft, [_named(content) for content in submission.contents])
    links = {index for index, source in enumerate(submission.draft.sources) if isinstance(source, Link)}
    return _comparable(spec, links) == _comparable(again, links)


def _comparable(spec: JobSpec, ignored: set[int]) -> tuple[object, ...]:
    hashes = [None if index in ignored else ref.sha256 for index, ref in enumerate(spec.media())]
    return _without_media(spec.messages), spec.template, spec.sampling, spec.metadata, hashes


def _without_media(messages: tuple[ChatMessage, ...]) -> object:
    def blank(part: object) -> object:
        if not isinstance(part, dict):
            return part
        if "media" in part:
            return part | {"media": None}
        return part | {"frames": len(part["frames"])} if "frames" in part else part

    turns = msgspec.to_builtins(messages)
    return [turn | {"content": [blank(part) for part in turn["content"]]} for turn in turns]


def _named(content: bytes | MediaRef) -> MediaRef:
    if isinstance(content, MediaRef):
        return content
    return MediaRef(sha256=hashlib.sha256(content).hexdigest(), object_name="unstored", num_bytes=len(content))


def _spec(job_id: str, draft: JobDraft, refs: Sequence[MediaRef], tenant: str = "") -> JobSpec:
    return JobSpec(
        job_id=job_id,
        created_at=time.time(),
        messages=fill(draft, refs),
        template=draft.template,
        response=draft.response,
        sampling=draft.sampling,
        metadata=draft.metadata,
        tenant=tenant,
        sent_as=draft.sent_as,
        priority=draft.priority,
    )
