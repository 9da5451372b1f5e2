"""The limits that requests are held to at this moment: the gateway's own, and those of the pipeline behind it."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from broker_pipeline.pictures.rule import strictest
from broker_pipeline.state.registry import WorkerRegistry
from gateway.settings import Limits

FRESH_S = 5.0
"""For so long it is not asked again who is there: as long as a worker's record outlives the worker."""
ABSENT_S = 0.5
"""For so long where no conductor is: it may not be found only because Redis has just lost the records of workers."""


class CurrentLimits:
    """The gateway's limits, with what the pipeline's conductor says of how long a job may be, and of its tokens.

    They are stricter about pictures where a live vision worker is: any of them may get the next job.
    """

    def __init__(self, own: Limits, registry: WorkerRegistry, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self.own = self._current = own
        self._registry = registry
        self._clock = clock
        self._ask_at = float("-inf")

    async def get(self) -> Limits:
        """Return the limits, no older than `FRESH_S`, or `ABSENT_S`. Raises `StateError`."""
        now = self._clock()
        if now >= self._ask_at:
            self._ask_at = now + FRESH_S  # whoever comes meanwhile does not ask too
            workers, conductor = await self._registry.workers(), await self._registry.conductor_status()
            self._ask_at = now + (FRESH_S if conductor else ABSENT_S)
            announced = [worker.pictures for worker in workers if worker.state == "ready" and worker.pictures]
            pictures = strictest([self.own.pictures, *announced])
            shown = conductor.limits if conductor else None
            self._current = msgspec.structs.replace(
                self.own,
                pictures=pictures,
                max_tokens_in_all=shown.max_tokens_in_all if shown else None,
                default_max_tokens=shown.default_max_tokens if shown else 0,
                longest_token_bytes=shown.longest_token_bytes if shown else 0,
                model=(conductor.model or None) if conductor else None,
                vocab_size=conductor.vocab_size if conductor else None,
            )
        return self._current
