"""Removes what nobody needs any more: images of jobs that have ended, and jobs whose results were kept long enough.
Enqueues jobs whose retry was asked for at a gateway that died before it had enqueued them, and those of a lost queue.

Every gateway does this, as often as it likes: the stores' sweeps may run side by side, and one that dies half-way
leaves its work to the next.
"""

from __future__ import annotations

import asyncio

import structlog
from prometheus_client import Counter

from broker_pipeline.errors import JobNotFoundError, QueueFullError, StateError, TransportError
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.storage.media import MediaStore
from gateway.jobs.lost_jobs import LostJobs
from gateway.jobs.retries import JobRetries

INTERVAL_S = 30.0

log = structlog.get_logger()


async def keep_house(
    store: JobStore,
    media: MediaStore,
    retries: JobRetries,
    lost: LostJobs,
    swept: Counter,
    interval_s: float = INTERVAL_S,
) -> None:
    """Sweep until cancelled; an outage is waited out. `swept` counts what came of it."""
    sweeps = {"media": media.sweep, "jobs": store.sweep, "queued": retries.publish_left, "lost": lost.publish}
    while True:
        await asyncio.sleep(interval_s)
        try:
            counts = {}
            for what, sweep in sweeps.items():
                counts[what] = await sweep()
                swept.labels(what).inc(counts[what])
        except (JobNotFoundError, QueueFullError, StateError, TransportError) as error:
            log.warning("sweep_failed", code=error.code, message=error.message)
        else:
            if any(counts.values()):
                log.info("swept", **{f"num_{what}": count for what, count in counts.items()})
