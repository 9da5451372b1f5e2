"""What the queue holds that is no job: its job fails, for all to see, instead of waiting for ever.

A job that is delivered too often is the other kind of dead letter; its conductor fails it (`job_run`).
"""

from __future__ import annotations

import structlog

from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.errors import MalformedEnvelopeError
from broker_pipeline.messages.jobs import JobEvent
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.persistence import persist
from broker_pipeline.storage.media import MediaStore

log = structlog.get_logger()


class DeadLetters:
    """Ends jobs whose message cannot be read."""

    def __init__(self, failed: FailedJobs, store: JobStore, media: MediaStore, events: JobEvents) -> None:
        self._failed = failed
        self._store = store
        self._media = media
        self._events = events

    async def fail(self, job_id: str, error: MalformedEnvelopeError) -> None:
        """Fail the job with this id, where there is one that waits. What was submitted is kept, to be sent again."""
        spec = await persist(lambda: self._failed.fail_unreadable(job_id, error.to_failure()))
        if spec is None:
            log.warning("dead_letter_of_no_job", job=job_id)
            return
        log.error("job_failed_unread", job=job_id, reason=error.message)
        await persist(lambda: self._media.keep(spec))
        record = await persist(lambda: self._store.get(job_id))
        await self._events.say(JobEvent(job_id=job_id, kind="finished", record=record))
