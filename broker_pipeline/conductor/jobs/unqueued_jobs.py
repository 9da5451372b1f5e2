"""Queues jobs that are recorded and not in the queue: whoever recorded them died before it had put them there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from broker_pipeline.conductor.jobs.job_end import Stores
from broker_pipeline.errors import GarbledStateError, JobNotFoundError
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.process.outage_log import OutageLog
from broker_pipeline.storage.publishing import JobPublisher

log = structlog.get_logger()

UNPUBLISHED_S = 30.0
"""After so long nobody is about to queue a job that is recorded."""
_EVERY_S = 10.0


@dataclass(slots=True, eq=False)
class UnqueuedJobs:
    """The sweep of the active conductor."""

    stores: Stores
    publisher: JobPublisher
    since_s: float = UNPUBLISHED_S
    every_s: float = _EVERY_S

    async def run(self) -> None:
        """Sweep until cancelled; an outage is waited out."""
        outages = OutageLog("unqueued_jobs_not_swept")
        while True:
            await asyncio.sleep(self.every_s)
            with outages.outlasting():
                await self.sweep()

    async def sweep(self) -> int:
        """Queue what was recorded some time ago and is not in the queue; return how many jobs that were."""
        job_ids = await self.publisher.notes.left(self.since_s)
        for job_id in job_ids:
            try:
                spec = await self.stores.jobs.spec(job_id)
            except JobNotFoundError:
                continue  # discarded since it was listed; the next look drops its note
            except GarbledStateError as error:
                await self._end(job_id, error)
                continue
            await self.stores.media.hold(spec)
            await self.publisher.publish(spec)
            log.warning("unqueued_job_queued", job=job_id)
        return len(job_ids)

    async def _end(self, job_id: str, error: GarbledStateError) -> None:
        """End a job of which nobody can say what was asked for."""
        log.error("unqueued_job_garbled", job=job_id, reason=error.message)
        await self.stores.failed.fail_garbled(job_id, None, error.to_failure())
        await self.stores.events.say(JobEvent(job_id=job_id, kind="finished"))
