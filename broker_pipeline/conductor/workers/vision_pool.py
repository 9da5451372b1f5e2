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
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

from broker_pipeline.conductor.workers.device_loads import DeviceLoads
from broker_pipeline.conductor.workers.vision_info import VisionInfo
from broker_pipeline.conductor.workers.worker_health import WorkerHealth
from broker_pipeline.errors import PipelineError, RequestTimeoutError
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.process.broadcast_event import BroadcastEvent
from broker_pipeline.scheduling.policies.circuit_breaker import BreakerLimits
from broker_pipeline.scheduling.policies.hedging import Hedging
from broker_pipeline.scheduling.policies.retries import may_be_the_workers

_LEAST_ROOM = 0.05  # of a device that stages keep busy all the time
_LEAST_REQUEST_S = 1e-4  # where all pictures are known already, or there are none
_LIMITS = BreakerLimits(num_trials=3)
_NEVER_ANSWERED = "(overtaken)"  # in place of the session, which is well
_AWAY = 2.0  # how much longer work may take on the device of the route's first stage, so that rows need not travel
_QUIET_S = 0.5  # without a sign of life, a worker that has requests is asked whether it is there


class VisionPool:
    """The vision workers of one pipeline, by instance."""

    def __init__(self, changed: BroadcastEvent, clock: Callable[[], float] = time.monotonic) -> None:
        """Fire `changed` whenever a worker comes or goes."""
        self.clock = clock
        self.health = WorkerHealth(_LIMITS, clock)
        self.hedging = Hedging()
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

    @property
    def away(self) -> list[str]:
        """Instances that were not heard since the broker was away, and may be at any moment."""
        return [key for key, worker in self._workers.items() if not worker.is_back and worker.record.state == "ready"]

    def update(self, record: WorkerRecord) -> None:
        """Use a worker, or note its new state."""
        known = self._workers.setdefault(record.instance, VisionInfo(record, heard_at=self.clock()))
        known.record = record
        self._changed.fire()

    def hear(self, record: WorkerRecord, heartbeat: Heartbeat) -> None:
        """Learn how busy a stage keeps its device, or how long the tower of a vision worker needs."""
        now = self.clock()
        if record.role == "stage":
            self._loads.hear(record.instance, record.device_id, record.device_slots, heartbeat.busy_s, now)
        elif worker := self._workers.get(record.instance):
            self._note_heard(worker)
            worker.tower_s.observe(heartbeat.busy_s, worker.num_answered)
            if not heartbeat.num_sessions:
                worker.answer_due_at = None  # it has answered everything
            elif worker.answer_due_at is not None and now > worker.answer_due_at:
                self._note_never_answered(worker)

    def set_alive(self, key: str, is_alive: bool) -> bool:
        """Note whether a worker gives signs of life, and return whether that is news."""
        worker = self._workers.get(key)
        if worker is None or worker.is_alive == is_alive:
            return False
        worker.is_alive = is_alive
        worker.has_suspect &= not is_alive
        worker.num_deaths += not is_alive
        self._changed.fire()
        return True

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

    # --- late ones --------------------------------------------------------------------------------------------------

    def overdue(self) -> list[WorkerRecord]:
        """Return the workers that have requests in hand and have given no sign of life for a while."""
        quiet_since = self.clock() - _QUIET_S
        return [each.record for each in self._workers.values() if each.num_requests and each.heard_at < quiet_since]

    def note_there(self, key: str, *, is_there: bool) -> None:
        """Note whether a worker answered when it was asked whether it is there."""
        if worker := self._workers.get(key):
            worker.is_mute = not is_there
            if is_there:
                self._note_heard(worker)

    def second(self, late: VisionInfo, avoid: Collection[str], near: str) -> VisionInfo | None:
        """Return who is to be asked as well what a late worker has not answered, where there is somebody and may be."""
        others = [each for each in self._workers.values() if each is not late and self._is_beyond_doubt(each, avoid)]
        other = self._soonest(others, (), near)
        return other if other and self.hedging.spend(is_free=late.is_mute or not late.is_alive) else None

    def _is_beyond_doubt(self, worker: VisionInfo, avoid: Collection[str]) -> bool:
        key = worker.record.instance
        is_free = worker.is_usable and not worker.has_suspect and not worker.is_mute
        return is_free and key not in avoid and self.health.state(key) == "closed"

    def _note_never_answered(self, worker: VisionInfo) -> None:
        """Blame a worker for a request that another has answered and it has not, in all the time that it had."""
        worker.answer_due_at, key = None, worker.record.instance
        reason = f"{worker.record.worker} has not answered in time what others have"
        self.health.fail([key], [_NEVER_ANSWERED], reason, is_timeout=True)
        self.health.prove(_NEVER_ANSWERED, ())

    # --- outcomes ---------------------------------------------------------------------------------------------------

    def note_failed(self, worker: VisionInfo, session: str, error: PipelineError) -> None:
        """Note that a worker has failed with a session; it is to blame if another does not."""
        is_timeout = isinstance(error, RequestTimeoutError)
        key = worker.record.instance
        if is_timeout or may_be_the_workers(error.to_failure()):
            if self.has_other([key]):
                self.health.fail([key], [session], error.message, is_timeout=is_timeout)
            else:
                self.health.fail_alone([key], [session], error.message)

    def note_prepared(self, worker: VisionInfo, session: str) -> None:
        """Note that a worker has prepared a session."""
        self.health.prove(session, [worker.record.instance])
        self.health.succeed([worker.record.instance])

    def lose_requests(self, back_since: float) -> None:
        """Ask everything again: the broker was away until `back_since`, so that requests and answers may be gone.

        Workers that have not been heard since are asked nothing yet: the broker may still have their last connections.
        """
        for worker in self._workers.values():
            worker.num_outages += 1
            worker.is_back = worker.heard_at >= back_since
        self._changed.fire()

    def _note_heard(self, worker: VisionInfo) -> None:
        worker.note_heard(self.clock())
        if not worker.is_back:
            worker.is_back = True
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
        unreached: Collection[str] = (),
        *,
        near: str = "",
        is_alone: bool = False,
    ) -> AsyncIterator[VisionInfo]:
        """Take the usable worker that would be done soonest for a device `near`.

        Those in `avoid` come last, and those in `unreached` before them. Where there is none, or `is_alone` and it has
        other requests, `wait` for a change. It may be gone by then.
        """
        while (worker := self._choose(avoid, unreached, near)) is None:
            await wait()
        with self.lend(worker, is_alone=is_alone):
            while is_alone and worker.is_usable and worker.num_requests > 1:
                await wait()
            yield worker

    @contextmanager
    def lend(self, worker: VisionInfo, *, is_alone: bool = False) -> Iterator[None]:
        """Count a request to a worker while the context is open."""
        worker.num_requests += 1
        self.health.begin_trial(worker.record.instance)
        worker.has_suspect = is_alone
        try:
            yield
            worker.num_answered += 1
            worker.answered_at = self.clock()
        finally:
            worker.num_requests -= 1
            if worker.has_suspect:
                worker.has_suspect = not (is_alone and worker.is_alive)
                self._changed.fire()

    def _is_well(self, worker: VisionInfo) -> bool:
        """Whether nothing speaks against a worker; one on trial gets one request at a time."""
        key, health = worker.record.instance, self.health
        is_on_trial = worker.num_requests and health.state(key) != "closed"
        return health.may_try(key) and not is_on_trial and not worker.is_mute

    def _choose(self, avoid: Collection[str], unreached: Collection[str], near: str) -> VisionInfo | None:
        usable = [worker for worker in self._workers.values() if worker.is_usable]
        # One that may do better is waited for: else whoever failed on a sick worker meets it again and again.
        better = [each for each in usable if (key := each.record.instance) not in avoid and self.health.may_try(key)]
        free = [worker for worker in better or usable if not worker.has_suspect]
        free = [worker for worker in free if self._is_well(worker)] or free
        # A trial comes first, or who was left out never has a turn while others are quick; if late, it is hedged.
        return self._soonest([each for each in free if self._is_due(each, avoid)] or free, avoid, near, unreached)

    def _is_due(self, worker: VisionInfo, avoid: Collection[str]) -> bool:
        key = worker.record.instance
        return key not in avoid and self.health.state(key) != "closed" and self._is_well(worker)

    def _soonest(
        self, free: Collection[VisionInfo], avoid: Collection[str], near: str, unreached: Collection[str] = ()
    ) -> VisionInfo | None:
        now = self.clock()
        known = {worker.record.instance: worker.request_s(now) for worker in free}
        fastest_s = min((request_s for request_s in known.values() if request_s is not None), default=1.0)
        shares = self._loads.shares(now)

        def order(worker: VisionInfo) -> tuple[bool, bool, float, str]:
            key = worker.record.instance
            known_s = known[key]
            request_s = fastest_s if known_s is None else known_s  # one that has answered nothing yet gets a try
            done_s = done_after_s(worker.num_requests, request_s, shares.get(worker.record.device_id, 0.0))
            done_s *= worker.slowness * (1.0 if worker.record.device_id == near else _AWAY)
            return key in avoid, key in unreached, done_s, worker.record.worker

        return min(free, key=order, default=None)


def done_after_s(num_in_hand: int, request_s: float, stages_share: float) -> float:
    """Return when one more request will be done, where stages take a share of the device from the tower."""
    return (num_in_hand + 1) * max(request_s, _LEAST_REQUEST_S) / max(_LEAST_ROOM, 1 - stages_share)
