"""Hands back to the queue what nobody has who was given it: it is delivered again at once.

    delivered ──► held by a tenure of this share that is over   handed back
             ├──► held by another                               left alone
             └──► held by nobody, `_BEGIN_S` later              handed back: whoever it went to died before it could
                                                                begin the job, or it was lost on its way, or its end was

A tenure does so first, and after each outage of NATS. Without that such jobs come back once their time to be
acknowledged has passed (`ack_wait_s`), as they do where Redis cannot say whose they were.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import structlog

from broker_pipeline.errors import PipelineError
from broker_pipeline.state.held_jobs import HeldJobs, Hold
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_PAUSE_S = 0.1
_BEGIN_S = 0.3
"""So long it may take to begin a job that was delivered; one that is begun later is delivered twice, and runs once."""


@dataclass(frozen=True, slots=True)
class LeftDeliveries:
    """What a tenure hands back."""

    transport: Transport
    held: HeldJobs
    queue: JobQueue
    share: str
    epoch: int
    taken: Callable[[], Iterable[str]] = tuple
    """Names the deliveries that are in this conductor's hands, begun or not."""
    _is_due: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def run(self) -> None:
        """Hand back now, and after each outage, until cancelled."""
        await self.hand_back_in_time()
        while True:
            await self._is_due.wait()
            await asyncio.sleep(_PAUSE_S)  # a conductor has more connections than one
            await self.hand_back_in_time(self._begin_s())

    def on_reconnect(self) -> None:
        """Note that the broker was away: what it delivered just before may have been lost."""
        self._is_due.set()

    def _begin_s(self) -> float:
        """Have tenures look one after the other: what one hands back may be another's before the third one looks."""
        return _BEGIN_S * (1 + self.epoch * 0.618034 % 1)

    async def hand_back_in_time(self, begin_s: float = _BEGIN_S) -> None:
        """Hand everything back, trying again through outages until it comes back by itself."""
        reason = "NATS did not answer"
        try:
            async with asyncio.timeout(self.queue.ack_wait_s):
                while True:
                    try:
                        if await self.hand_back(begin_s):
                            return
                    except PipelineError as error:
                        reason = error.message
                    await asyncio.sleep(_PAUSE_S)
        except TimeoutError:
            log.warning("deliveries_not_handed_back", reason=reason)

    async def hand_back(self, begin_s: float = _BEGIN_S) -> bool:
        """Hand everything back once; False when NATS was lost meanwhile, and some of it may be as well.

        A job that was requeued with a delay comes back at once as well.
        """
        self._is_due.clear()
        num_reconnects = self.transport.link.num_reconnects
        outstanding = await self.queue.outstanding()
        holds = await self.held.all()
        left = [hold for hold in holds if self._is_left(hold)]
        for hold in left:
            await self.queue.hand_back(hold.delivery)
        if left:
            await self.transport.link.barrier()
            log.info("deliveries_handed_back", num_jobs=len(left))
        await asyncio.sleep(begin_s)
        holds += await self.held.all()
        in_hands = [hold.delivery for hold in holds if not self._is_left(hold)] + list(self.taken())
        await self.queue.hand_back_unheld(outstanding, in_hands)
        await self.transport.link.barrier()
        return self.transport.link.num_reconnects == num_reconnects

    def _is_left(self, hold: Hold) -> bool:
        return hold.share == self.share and hold.epoch < self.epoch
