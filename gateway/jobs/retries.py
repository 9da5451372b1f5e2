"""Retries jobs that have failed or were cancelled, and discards failures. Knows nothing of HTTP.

media.reclaim ──► failed.retry ──► media.hold ──► publisher.publish ──► earlier media released
      │                │
      └── release ◄────┘ refused      from here on the job will run: what a gateway that dies leaves undone, the
                                      active conductor does, as does the same request sent again
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import structlog

from broker_pipeline.errors import JobNotFoundError, JobStateError, MediaMissingError
from broker_pipeline.messages.jobs import JobRecord, JobSpec
from broker_pipeline.state.failed_jobs import FailedJobs, not_retryable
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.storage.publishing import JobPublisher

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JobRetries:
    """The jobs of one namespace that have failed or were cancelled."""

    store: JobStore
    failed: FailedJobs
    media: MediaStore
    publisher: JobPublisher

    async def retry(self, job_id: str) -> JobRecord:
        """Requeue a job under its id, with all attempts to come; its end so far goes into its `failures`.

        A job that is being retried and still waits is enqueued again, which the queue drops where it has it.

        Raises:
            JobNotFoundError: no such job (any more).
            JobStateError: it has neither failed nor been cancelled.
            MediaMissingError: its media are gone.
            QueueFullError, StateError, TransportError: to be tried again; the job may be on its way already.
        """
        record, spec = await self.store.get(job_id), await self.store.spec(job_id)
        if record.status == "queued" and record.num_retries:
            await self._publish(spec)
            return record
        if record.status not in ("failed", "cancelled"):
            raise not_retryable(record)
        again = await self._reclaim(msgspec.structs.replace(spec, num_retries=record.num_retries + 1))
        try:
            record = await self.failed.retry(again)
        except (JobNotFoundError, JobStateError):
            await self.media.release(again, again.media_holder)
            raise
        await self._publish(again)
        await self.media.release(spec, spec.media_holder)
        log.info("job_retried", job=job_id, num_retries=again.num_retries)
        return record

    async def discard(self, job_id: str) -> JobRecord:
        """Forget a failed job and its media; return what it was. Raises `JobNotFoundError` or `JobStateError`."""
        record, spec = await self.failed.discard(job_id)
        await self.media.release(spec, spec.media_holder)
        log.info("job_discarded", job=job_id)
        return record

    async def _reclaim(self, spec: JobSpec) -> JobSpec:
        try:
            return await self.media.reclaim(spec)
        except MediaMissingError as error:
            raise MediaMissingError(
                f"job {spec.job_id} cannot be retried, its pictures are gone: submit them anew ({error.message})"
            ) from error

    async def _publish(self, spec: JobSpec) -> None:
        await self.media.hold(spec)
        await self.publisher.publish(spec)
