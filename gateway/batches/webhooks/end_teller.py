"""Tells webhooks of batches that have ended: at least once, whichever gateway dies.

    finish ──► untold ──take──► tell ──► no longer untold
                 ▲                └─ not heard, or the gateway died: due again after as long as it has been untold
                 └────────────────────┘  (15 s to an hour), for three days

Who takes one says when the next try is, so that nothing has to be written of a failure. Any number of gateways do
this side by side.
"""

from __future__ import annotations

import asyncio
import time

import structlog

from broker_pipeline.errors import BatchNotFoundError, StateError
from broker_pipeline.process.outage_log import OutageLog
from gateway.batches.batch_store import BatchStore
from gateway.batches.webhooks.webhook import Webhooks

_LOOK_S = 1.0
GIVE_UP_S = 3 * 24 * 3600

log = structlog.get_logger()


class EndTeller:
    """Tells of one batch after the other."""

    def __init__(self, batches: BatchStore, webhooks: Webhooks, give_up_s: float = GIVE_UP_S) -> None:
        """Try for `give_up_s` seconds from a batch's end on."""
        self._batches = batches
        self._webhooks = webhooks
        self._give_up_s = give_up_s

    async def run(self) -> None:
        """Tell until cancelled; an outage is waited out."""
        outages = OutageLog("webhook_not_looked_for", StateError)
        while True:
            with outages.outlasting():
                while (batch_id := await self._batches.take_untold()) is not None:
                    await self._tell(batch_id)
            await asyncio.sleep(_LOOK_S)

    async def _tell(self, batch_id: str) -> None:
        try:
            batch = await self._batches.get(batch_id)
        except BatchNotFoundError:
            await self._batches.set_told(batch_id)
            return
        webhook = self._webhooks.of(batch.tenant)
        problem = await webhook.tell(batch) if webhook is not None else None
        gives_up = problem is not None and time.time() - (batch.ended_at or 0) >= self._give_up_s
        if problem is not None:
            log.warning("webhook_failed", batch=batch_id, reason=problem, gives_up=gives_up)
        if problem is None or gives_up:
            await self._batches.set_told(batch_id)
