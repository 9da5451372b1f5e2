"""Stops jobs that somebody wants to stop: told by NATS at once, found in Redis where the message was lost."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from broker_pipeline.conductor.jobs.live_job import LiveJobs
from broker_pipeline.errors import SlowConsumerError, StateError
from broker_pipeline.messages.control import CancelRequest
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_SWEEP_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Cancels:
    """Cancellations of the jobs that this conductor holds."""

    transport: Transport
    subject: str
    store: JobStore
    live: LiveJobs

    async def run(self) -> None:
        """Listen and look until cancelled."""
        requests = self.transport.subscribe(self.subject, CancelRequest, on_dropped=_log_drop)
        async with requests as messages, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep(), name="cancel flags")
            async for message in messages:
                if job := self.live.get(message.body.job_id):
                    log.info("job_cancelled", job=job.job_id)
                    job.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            try:
                for job_id in await self.store.cancelled([job.job_id for job in self.live]):
                    if job := self.live.get(job_id):
                        job.cancel()
            except StateError as error:
                log.info("cancel_flags_unread", reason=error.message)


def _log_drop(error: SlowConsumerError, _: CancelRequest | None) -> None:
    log.warning("cancel_dropped", reason=error.message, found_within_s=_SWEEP_S)
