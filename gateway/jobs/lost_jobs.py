"""Enqueues what was lost with the job queue: where somebody deleted its stream, or its server's disk is gone.

Jobs that are older than the stream cannot be in it, unless they were enqueued again. The queue drops the second message
of a job, and conductors the second run, so that any number of gateways may do this.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from broker_pipeline.errors import GarbledStateError, JobNotFoundError
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.storage.publishing import JobPublisher

_CLOCKS_S = 30.0
"""By how much the clocks of a gateway and of NATS may differ; well below the time in which the queue drops repeats."""
_UNFINISHED: tuple[Literal["queued", "running"], ...] = ("queued", "running")
_PAGE = 100


@dataclass(slots=True)
class LostJobs:
    """The jobs of one namespace that may have lost their place in the queue."""

    store: JobStore
    publisher: JobPublisher
    _seen: datetime | None = None

    async def publish(self) -> int:
        """Enqueue unfinished jobs that are older than the stream, once for each stream; return how many."""
        made_at = await self.publisher.queue.made_at()
        if made_at == self._seen:
            return 0
        num_jobs = 0
        async for record in self._unfinished(made_at.timestamp() + _CLOCKS_S):
            with contextlib.suppress(JobNotFoundError, GarbledStateError):  # forgotten meanwhile; or no job
                await self.publisher.publish(await self.store.spec(record.job_id))
                num_jobs += 1
        self._seen = made_at
        return num_jobs

    async def _unfinished(self, created_before: float) -> AsyncIterator[JobRecord]:
        for status in _UNFINISHED:
            after: str | None = None
            while True:
                page = await self.store.list(after, _PAGE, status)
                for record in page.records:
                    if record.created_at < created_before:
                        yield record
                if (after := page.next) is None:
                    break
