"""Puts jobs that are recorded in Redis into the queue, and takes the note away that they may not be there yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import structlog

from broker_pipeline.errors import RequestTimeoutError, StateError
from broker_pipeline.messages.jobs import JobSpec
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.unpublished_jobs import UnpublishedJobs
from broker_pipeline.storage.jobs import JobQueue

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class JobPublisher:
    """The queue of one namespace, and the notes of jobs that may not be in it."""

    queue: JobQueue
    notes: UnpublishedJobs

    @classmethod
    def open(cls, queue: JobQueue, redis: RedisClient, namespace: str) -> Self:
        """Return the publisher of a queue whose jobs are recorded in this Redis and namespace."""
        return cls(queue, UnpublishedJobs(redis, namespace))

    async def publish(self, spec: JobSpec) -> None:
        """Queue a job; asks once more where it is unknown whether the first message arrived. The queue keeps one.

        Raises what `JobQueue.publish` raises.
        """
        occasion = f"retry-{spec.num_retries}" if spec.num_retries else ""
        try:
            await self.queue.publish(spec, occasion=occasion)
        except RequestTimeoutError:
            await self.queue.publish(spec, occasion=occasion)
        try:
            await self.notes.mark(spec)
        except StateError as error:  # the note stays, and the job is queued once more, which changes nothing
            log.info("job_note_left", job=spec.job_id, reason=error.message)
