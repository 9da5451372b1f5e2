"""Removes what nobody needs any more: images of jobs that have ended, and jobs, files and batches whose time has come.
Enqueues the jobs of a lost queue.

Every gateway does this, as often as it likes: the stores' sweeps may run side by side, and one that dies half-way
leaves its work to the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from prometheus_client import Counter

from broker_pipeline.errors import JobNotFoundError, QueueFullError, StateError, TransportError
from broker_pipeline.process.outage_log import OutageLog

INTERVAL_S = 30.0
_PASSING = JobNotFoundError, QueueFullError, StateError, TransportError

log = structlog.get_logger()


async def keep_house(
    sweeps: Mapping[str, Callable[[], Awaitable[int]]], swept: Counter, interval_s: float = INTERVAL_S
) -> None:
    """Sweep until cancelled; an outage is waited out. `swept` counts what came of it."""
    outages = {what: OutageLog("sweep_failed", *_PASSING, what=what) for what in sweeps}
    while True:
        await asyncio.sleep(interval_s)
        counts = {}
        for what, sweep in sweeps.items():
            with outages[what].outlasting():
                counts[what] = await sweep()
                swept.labels(what).inc(counts[what])
        if any(counts.values()):
            log.info("swept", **{f"num_{what}": count for what, count in counts.items()})
