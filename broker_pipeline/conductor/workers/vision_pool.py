"""Vision workers and how busy each is: a request goes where it is done soonest, and comes back if that worker vanishes.

    worker   in hand   the tower needs, a request   stages take of its device   would be done after
    a        3         2 ms                         35 %                        4 * 2 / 0.65 = 12 ms   ◄── asked next
    b        2         2 ms                         70 %                        3 * 2 / 0.30 = 20 ms

Both come from heartbeats. How long requests take from question to answer says nothing of that: a worker does several
at a time, and the one that is asked most would seem the fastest. One that has nothing in hand is taken for faster by
and by, until it is tried again. A worker on another device than the route's first stage has to send its rows, 6 MB for
a picture of 448x448 of 8B, which takes time of both processes: it is asked where it would be done in half the time.

A session that was in preparation at two deaths is suspected of having caused them. It gets a worker to itself: what is
there is finished, nothing else is asked of that worker until the session is prepared, and should the worker die of it,
nobody else was there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from broker_pipeline.conductor.broadcast_event import BroadcastEvent
from broker_pipeline.conductor.workers.device_loads import DeviceLoads, RecentRatio
from broker_pipeline.conductor.workers.worker_health import WorkerHealth
from broker_pipeline.errors import PipelineError, RequestTimeoutError
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.policies.circuit_breaker import BreakerLimits
from broker_pipeline.scheduling.policies.retries import may_be_the_workers

_LEAST_ROOM = 0.05  # of a device that stages keep busy all the time
_LEAST_REQUEST_S = 1e-4  # where all pictures are known already, or there are none
_LIMITS = BreakerLimits(num_trials=3)
_AWAY = 2.0  # how much longer work may take on the device of the route's first stage, so that rows need not travel
_HALF_S = 5.0  # idle for so long, a worker is taken for twice as fast


@dataclass(slots=True, eq=False)
class VisionInfo:
    """One instance."""

    record: WorkerRecord
    is_alive: bool = True
    num_requests: int = field(default=0)
    num_deaths: int = field(default=0)
    """Rises when it dies or falls silent: what it had in hand is lost, and may be the cause."""
    num_outages: int = field(default=0)
    """Rises when the broker was away: what it was asked may be lost, and nobody is the cause."""
    has_suspect: bool = field(default=False)
    """Whether it is, or was when it died, one suspected session's alone."""
    num_answered: int = field(default=0)
    answered_at: float = field(default=0.0)
    tower_s: RecentRatio = field(default_factory=RecentRatio)
    """Seconds that the tower is busy for a request."""

    def request_s(self, now: float) -> float | None:
        """Return the seconds of the tower that the next request will take, as far as is known."""
        known_s = self.tower_s.value
        if known_s is None or self.num_requests:
            return known_s
        return float(known_s * 0.5 ** ((now - self.answered_at) / _HALF_S))

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests."""
        return self.is_alive and self.record.state == "ready"


class VisionPool:
    """The vision workers of one pipeline, by instance."""

    def __init__(self, changed: BroadcastEvent, clock: Callable[[], float] = time.monotonic) -> None:
        """Fire `changed` whenever a worker comes or goes."""
        self._clock = clock
        self.health = WorkerHealth(_LIMITS, clock)
        self._workers: dict[str, VisionInfo] = {}
        self._changed = changed
        self._loads = DeviceLoads()

    @property
    def workers(self) -> tuple[VisionInfo, ...]:
        """All of them, usable or not."""
        return tuple(self._workers.values())

    @property
    def num_usable(self) -> int:
        """Workers that take requests."""
        return sum(worker.is_usable for worker in self._workers.values())

    def update(self, record: WorkerRecord) -> None:
        """Use a worker, or note its new state."""
        known = self._workers.setdefault(record.instance, VisionInfo(record))
        known.record = record
        self._changed.fire()

    def hear(self, record: WorkerRecord, heartbeat: Heartbeat) -> None:
        """Learn how busy a stage keeps its device, or how long the tower of a vision worker needs."""
        now = self._clock()
        if record.role == "stage":
            self._loads.hear(record.instance, record.device_id, record.device_slots, heartbeat.busy_s, now)
        elif worker := self._workers.get(record.instance):
            worker.tower_s.observe(heartbeat.busy_s, worker.num_answered)

    def set_alive(self, key: str, is_alive: bool) -> None:
        """Note whether a worker gives signs of life."""
        worker = self._workers.get(key)
        if worker is not None and worker.is_alive != is_alive:
            worker.is_alive = is_alive
            worker.has_suspect &= not is_alive
            worker.num_deaths += not is_alive
            self._changed.fire()

    def leave(self, key: str) -> None:
        """Forget a worker; what it was asked is asked again elsewhere."""
        if worker := self._workers.pop(key, None):
            worker.is_alive = False
            worker.num_deaths += 1
            self.health.leave(key)
            self._changed.fire()

    def state(self, worker: VisionInfo) -> str:
        """Return what a worker is used for, in a word."""
        breaker = self.health.state(worker.record.instance)
        if not worker.is_alive or (breaker == "open" and self.has_other([worker.record.instance])):
            return "suspended"
        return worker.record.state if breaker == "closed" else "trial"

    def has_other(self, keys: Collection[str]) -> bool:
        """Whether some worker that is not one of these takes requests."""
        return any(worker.is_usable and key not in keys for key, worker in self._workers.items())

    def note_failed(self, worker: VisionInfo, session: str, error: PipelineError) -> None:
        """Note that a worker has failed with a session; it is to blame if another does not."""
        is_timeout = isinstance(error, RequestTimeoutError)
        key = worker.record.instance
        if (is_timeout or may_be_the_workers(error.to_failure())) and self.has_other([key]):
            self.health.fail([key], [session], error.message, is_timeout=is_timeout)

    def note_prepared(self, worker: VisionInfo, session: str) -> None:
        """Note that a worker has prepared a session."""
        self.health.prove(session, [worker.record.instance])
        self.health.succeed([worker.record.instance])

    def lose_requests(self) -> None:
        """Ask everything again: the broker was away, so that requests and answers may be gone."""
        for worker in self._workers.values():
            worker.num_outages += 1
        self._changed.fire()

    def had_suspect(self, record: WorkerRecord) -> bool:
        """Whether a suspected session was in preparation in a worker's process, by another worker that shares it."""
        process = record.host, record.pid
        return record.pid != 0 and any(
            worker.has_suspect and (worker.record.host, worker.record.pid) == process
            for worker in self._workers.values()
        )

    @asynccontextmanager
    async def borrow(
        self,
        wait: Callable[[], Awaitable[None]],
        avoid: Collection[str] = (),
        *,
        near: str = "",
        is_alone: bool = False,
    ) -> AsyncIterator[VisionInfo]:
        """Take the usable worker that would be done soonest, one not in `avoid` if there is one, for a device `near`.

        Where there is none, or `is_alone` and it has other requests, `wait` for a change. It may be gone by then.
        """
        while (worker := self._choose(avoid, near)) is None:
            await wait()
        worker.num_requests += 1
        self.health.begin_trial(worker.record.instance)
        worker.has_suspect = is_alone
        try:
            while is_alone and worker.is_usable and worker.num_requests > 1:
                await wait()
            yield worker
            worker.num_answered += 1
            worker.answered_at = self._clock()
        finally:
            worker.num_requests -= 1
            if worker.has_suspect:
                worker.has_suspect = not (is_alone and worker.is_alive)
                self._changed.fire()

    def _is_well(self, worker: VisionInfo) -> bool:
        """Whether nothing speaks against a worker; one on trial gets one request at a time."""
        key, health = worker.record.instance, self.health
        return health.may_try(key) and not (worker.num_requests and health.state(key) != "closed")

    def _choose(self, avoid: Collection[str], near: str) -> VisionInfo | None:
        now = self._clock()
        usable = [worker for worker in self._workers.values() if worker.is_usable]
        # One that may do better is waited for: else whoever failed on a sick worker meets it again and again.
        better = [each for each in usable if (key := each.record.instance) not in avoid and self.health.may_try(key)]
        free = [worker for worker in better or usable if not worker.has_suspect]
        free = [worker for worker in free if self._is_well(worker)] or free
        known = {worker.record.instance: worker.request_s(now) for worker in free}
        fastest_s = min((request_s for request_s in known.values() if request_s is not None), default=1.0)
        shares = self._loads.shares(now)

        def order(worker: VisionInfo) -> tuple[bool, float, str]:
            known_s = known[worker.record.instance]
            request_s = fastest_s if known_s is None else known_s  # one that has answered nothing yet gets a try
            done_s = done_after_s(worker.num_requests, request_s, shares.get(worker.record.device_id, 0.0))
            done_s *= 1.0 if worker.record.device_id == near else _AWAY
            return worker.record.instance in avoid, done_s, worker.record.worker

        return min(free, key=order, default=None)


def done_after_s(num_in_hand: int, request_s: float, stages_share: float) -> float:
    """Return when one more request will be done, where stages take a share of the device from the tower."""
    return (num_in_hand + 1) * max(request_s, _LEAST_REQUEST_S) / max(_LEAST_ROOM, 1 - stages_share)
