"""Whose fault failed computations were, and which workers are left out for it. Pure: the clock is passed in.

    a microbatch fails on a          its sessions x, y are repeated elsewhere              verdict
    ───────────────────────────────  ────────────────────────────────────────────────────  ─────────────────────
    incident: workers {a}            both compute there                                     a is blamed, once
    pending {x, y}                   one of them fails for good, or ends in another way     nobody: x or y may be why

While an incident is open, its workers are spared: new sessions go elsewhere where they can. Blames go to the worker's
`CircuitBreaker`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import structlog

from broker_pipeline.scheduling.policies.circuit_breaker import BreakerLimits, CircuitBreaker, State

log = structlog.get_logger()

_NONE_FAILED: tuple[frozenset[str], str] = frozenset(), ""
_DECIDE_S = 30.0  # an incident that nobody's repeat has decided by then is forgotten


@dataclass(slots=True, eq=False)
class _Incident:
    workers: set[str]
    pending: set[str]
    reason: str
    weight: int
    since: float


class WorkerHealth:
    """The incidents and breakers of one kind of workers, by instance; sessions by job."""

    def __init__(self, limits: BreakerLimits | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits or BreakerLimits()
        self._clock = clock
        self._incidents: list[_Incident] = []
        self._breakers: dict[str, CircuitBreaker] = {}
        self._alone: dict[str, tuple[frozenset[str], str]] = {}
        """Of workers that nobody can stand in for: sessions that failed since the last that did not, and why."""
        self.on_trial: frozenset[str] = frozenset()
        """Workers whose breakers are half-open."""

    @property
    def spared(self) -> frozenset[str]:
        """Workers that may have been the cause of a failure, as long as that is open."""
        if not self._incidents:
            return frozenset()
        since = self._clock() - _DECIDE_S
        self._incidents = [each for each in self._incidents if each.since > since]
        return frozenset(key for each in self._incidents for key in each.workers)

    def state(self, key: str) -> State:
        """Return the state of a worker's breaker."""
        breaker = self._breakers.get(key)
        return breaker.state if breaker else "closed"

    def reason(self, key: str) -> str:
        """Return why a worker is or was left out, or fails everybody and cannot be; empty where nothing is wrong."""
        breaker = self._breakers.get(key)
        if breaker and breaker.reason:
            return breaker.reason
        sessions, reason = self._alone.get(key, _NONE_FAILED)
        return f"its computations fail: {reason}" if len(sessions) >= self._limits.num_blames else ""

    @property
    def awaits_success(self) -> bool:
        """Whether `succeed` would change anything."""
        return bool(self.on_trial or self._alone)

    def may_try(self, key: str) -> bool:
        """Whether a worker may be asked for something."""
        breaker = self._breakers.get(key)
        return breaker is None or breaker.may_try(self._clock())

    # --- failures ---------------------------------------------------------------------------------------------------

    def fail(
        self, workers: Collection[str], sessions: Iterable[str], reason: str, *, is_timeout: bool = False
    ) -> list[str]:
        """Note that sessions failed on workers, any of which may be why; return those on trial: they have failed it.

        A time-out counts in full, shared by the workers: each costs its sessions many seconds.
        """
        now = self._clock()
        failed = [key for key in self.on_trial.intersection(workers) if self._breakers[key].blame(reason, now)]
        self.on_trial = self.on_trial.difference(failed)
        if rest := set(workers).difference(failed):
            weight = -(-self._limits.num_blames // len(rest)) if is_timeout else 1
            self._incidents.append(_Incident(rest, set(sessions), reason, weight, now))
        return failed

    def fail_alone(self, workers: Collection[str], sessions: Iterable[str], reason: str) -> None:
        """Note that sessions failed on workers that are used all the same, since there are no others.

        One may have been the cause itself; of several without a success between them, the worker is said to be.
        """
        for key in workers:
            known, _ = self._alone.get(key, _NONE_FAILED)
            more = sessions if len(known) < self._limits.num_blames else ()
            self._alone[key] = known.union(more), reason

    def prove(self, session: str, workers: Collection[str]) -> list[str]:
        """Note that a session has computed on `workers`, whatever it met before; return workers that are now left out.

        Where that was the last of an incident's sessions, the workers there are to blame, but for those also here.
        """
        opened = []
        for incident in [each for each in self._incidents if session in each.pending]:
            incident.workers.difference_update(workers)
            incident.pending.discard(session)
            if not incident.pending or not incident.workers:
                self._incidents.remove(incident)
                opened += self._blame(incident)
        return opened

    def dismiss(self, session: str) -> None:
        """Blame nobody for what this session was in: it ended, and may have been why."""
        if self._incidents:
            self._incidents = [each for each in self._incidents if session not in each.pending]

    def _blame(self, incident: _Incident) -> list[str]:
        opened = []
        for key in incident.workers:
            breaker = self._breakers.setdefault(key, CircuitBreaker(self._limits))
            log.warning("worker_blamed", instance=key, reason=incident.reason)
            if breaker.blame(incident.reason, self._clock(), incident.weight):
                opened.append(key)
        self.on_trial = self.on_trial.difference(opened)
        return opened

    # --- trials -----------------------------------------------------------------------------------------------------

    def begin_trial(self, key: str) -> None:
        """Let a worker that was left out show what it can do; nothing for any other."""
        if self.state(key) == "open":
            self._breakers[key].begin_trial()
            self.on_trial |= {key}
            log.info("worker_on_trial", instance=key, reason=self.reason(key))

    def succeed(self, workers: Collection[str]) -> None:
        """Note a computation without a failure."""
        for key in workers:
            self._alone.pop(key, None)
        for key in self.on_trial.intersection(workers):
            if self._breakers[key].succeed(self._clock()):
                self.on_trial -= {key}
                log.info("worker_is_well", instance=key)

    def leave(self, key: str) -> None:
        """Forget a worker that is gone."""
        self._breakers.pop(key, None)
        self._alone.pop(key, None)
        self.on_trial -= {key}
        for incident in self._incidents:
            incident.workers.discard(key)
