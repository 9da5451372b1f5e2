"""Whose tokens somebody watches as they come, so that those of all other jobs need not be published.

    gateway: a stream opens ──► WatchRequest(job, for some seconds) ──► every conductor      repeated while it is open

A request that is lost costs no token: whoever watches looks into Redis when nothing comes, and asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from broker_pipeline.errors import SlowConsumerError
from broker_pipeline.messages.control import WatchRequest
from broker_pipeline.process.broadcast_event import BroadcastEvent
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_MAX_JOBS = 65_536
_RETURN_S = 10.0
"""After an outage, in which nobody could ask again."""


class Watchers:
    """The jobs of one namespace that are watched, whether or not they are here yet."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}
        self._all_until = 0.0
        self.watched_anew = BroadcastEvent()
        """Fires when somebody watches what nobody watched."""

    def is_watched(self, job_id: str) -> bool:
        """Whether somebody wants to hear of a job's tokens."""
        if not self._until and not self._all_until:
            return False
        return max(self._until.get(job_id, 0.0), self._all_until) > self._clock()

    def take(self, request: WatchRequest) -> None:
        """Note who is watched, and for how long."""
        now = self._clock()
        until = now + request.for_s
        is_new = request.is_for_all and self._all_until <= now  # most requests renew what is watched
        is_new = is_new or not all(map(self.is_watched, request.job_ids))
        if request.is_for_all:
            self._all_until = until
        if len(self._until) + len(request.job_ids) > _MAX_JOBS:
            self._forget_past()
        if len(self._until) + len(request.job_ids) > _MAX_JOBS:
            log.warning("watch_refused", num_jobs=len(request.job_ids), num_watched=len(self._until))
            return
        self._until |= dict.fromkeys(request.job_ids, until)
        if is_new:
            self.watched_anew.fire()

    def on_reconnect(self) -> None:
        """Note that the broker was away: who was watched then is watched for a while longer."""
        until = self._clock() + _RETURN_S
        self._until = dict.fromkeys(self._until, until)
        self._all_until = until if self._all_until else 0.0

    async def listen(self, transport: Transport, subject: str) -> None:
        """Take requests until cancelled."""
        transport.add_reconnect_listener(self.on_reconnect)
        async with transport.subscribe(subject, WatchRequest, on_dropped=_log_drop) as messages:
            async for message in messages:
                self.take(message.body)
                if len(self._until) > len(message.body.job_ids):
                    self._forget_past()

    def _forget_past(self) -> None:
        now = self._clock()
        self._until = {job_id: until for job_id, until in self._until.items() if until > now}


def _log_drop(error: SlowConsumerError, _: WatchRequest | None) -> None:
    log.info("watch_dropped", reason=error.message)
