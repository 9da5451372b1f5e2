"""What the queue holds that is no job: its job fails, for all to see, instead of waiting for ever.

A job that is delivered too often is the other kind of dead letter; its conductor fails it (`job_run`).
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from broker_pipeline.conductor.jobs.job_end import Stores
from broker_pipeline.errors import GarbledStateError, MalformedEnvelopeError
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.state.persistence import persist

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetters:
    """Ends jobs whose message cannot be read."""

    stores: Stores

    async def fail(self, job_id: str, error: MalformedEnvelopeError) -> None:
        """Fail the job with this id, where there is one that waits. What was submitted is kept, to be sent again."""
        try:
            spec = await persist(lambda: self.stores.failed.fail_unreadable(job_id, error.to_failure()))
        except GarbledStateError as garbled:
            log.warning("dead_letter_of_garbled_job", job=job_id, reason=garbled.message)
            await persist(lambda: self.stores.failed.fail_garbled(job_id, None, error.to_failure()))
            spec = None
        if spec is None:
            log.warning("dead_letter_of_no_job", job=job_id)
            return
        log.error("job_failed_unread", job=job_id, reason=error.message)
        await persist(lambda: self.stores.media.keep(spec))
        record = await persist(lambda: self.stores.jobs.get(job_id))
        await self.stores.events.say(JobEvent(job_id=job_id, kind="finished", record=record))
