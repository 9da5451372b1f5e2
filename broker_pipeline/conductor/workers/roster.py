"""Which workers there are, and what becomes of those that fall silent. No I/O: records and signs of life come in.

    record appears ──► fits? ──► handshake (fences, proves the subscription) ──► used
                         │                                                        │ silent for heartbeat_timeout_s,
                         └──► refused, with the reason                            ▼ or a deadline passed on its route
                                                        used ◄── answers ── suspended ──► gone: its name is another
                                                                 a probe                  instance's, or it had left

A suspended worker is probed while it gives signs of life. Since a probe passes through its computing thread, one that
hangs there stays suspended, and one that was merely out of reach comes back with its KV accounted for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

import structlog

from broker_pipeline.conductor.patience import Patience
from broker_pipeline.conductor.workers.refusals import Refusals
from broker_pipeline.conductor.workers.workers import Workers
from broker_pipeline.errors import PipelineError, RequestTimeoutError, StageError, TransportError
from broker_pipeline.messages.status import RefusedWorker
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.routes import PipelineIdentity

log = structlog.get_logger()

_ANYBODY = ""  # in place of the instance of one that is expected and not known yet


@dataclass(frozen=True, slots=True)
class RosterTimes:
    """All in seconds."""

    poll_s: float = 0.5
    watch_s: float = 0.05
    standstill_s: float = 0.5
    """How much later than `watch_s` the clock may be looked at before we count as having stood still ourselves."""
    probe_s: float = 0.5
    hello_timeout_s: float = 2.0
    heartbeat_timeout_s: float = 2.5
    """The longest silence of a worker that there is no spare for, or whose heartbeats came late before."""
    least_silence_s: float = 0.75
    """The shortest silence by which a stage with a spare is missed."""
    deaf_s: float = 0.5
    """When no worker was heard for so long, NATS may be why: none is missed before its time."""
    forget_s: float = 600.0
    """How long a silent worker whose record is gone may come back with its sessions."""
    settle_s: float = 0.1
    """How long after a reconnect others get to reconnect as well."""

    @property
    def longest_silence_s(self) -> float:
        """How long it takes to know a worker as silent, however late we look without having stood still ourselves."""
        return self.heartbeat_timeout_s + self.watch_s + self.standstill_s


@dataclass(slots=True)
class Member:
    """A worker that answered a handshake and is not gone."""

    record: WorkerRecord
    patience: Patience
    is_unreachable: bool = False
    """Whether nobody listens where it did, since it was heard of last."""
    heartbeat: Heartbeat | None = None
    absent_since: float | None = None
    """Since when the registry has had no record of it."""
    beat_at: float = -math.inf
    """When its last heartbeat came."""
    asked_at: float = -math.inf
    """When it was last asked whether it still computes."""


class Roster:
    """The workers of one pipeline in one epoch."""

    def __init__(
        self,
        workers: Workers,
        identity: PipelineIdentity,
        times: RosterTimes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Tell `workers` what becomes of each; take the dtype of the first stage where `identity` has none."""
        self._workers = workers
        self._times = times
        self._clock = clock
        self._refusals = Refusals(identity)
        self._members: dict[str, Member] = {}
        self._in_handshake: set[str] = set()
        self._has_looked = False
        self._is_deaf = False
        self._watched_at = self._heard_at = clock()
        self._reconnected_at: float | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """All workers that are not gone."""
        return tuple(self._members.values())

    @property
    def refused(self) -> tuple[RefusedWorker, ...]:
        """Workers that announce themselves and are not used."""
        return self._refusals.refused

    # --- who is there -----------------------------------------------------------------------------------------------

    def look(self, records: Collection[WorkerRecord], unreadable: Collection[RefusedWorker] = ()) -> list[WorkerRecord]:
        """Take in the registry's records; return those to shake hands with, each of which is then answered for.

        That is by `join`, `note_unanswered` or `note_refusing`. Those that are `unreadable` are shown as refused.
        """
        if not self._has_looked:  # a Redis that lost power has lost records, until workers renew them
            self._has_looked = True
            self._workers.expect(_ANYBODY)
        self._look_for_gone(records)
        newcomers = []
        in_use = [member.record for member in self.members]
        for record in self._refusals.fitting(records, in_use, unreadable):
            if member := self._members.get(record.instance):
                self._update(member, record)
            elif record.instance not in self._in_handshake:
                self._in_handshake.add(record.instance)
                if not self._refusals.has_refused(record):
                    self._workers.expect(record.instance)
                newcomers.append(record)
        return newcomers

    def join(self, record: WorkerRecord) -> None:
        """Use a worker that answered a handshake, in place of whatever had its name."""
        self._refusals.clear(record)
        for member in self.members:
            if member.record.worker == record.worker:
                self._leave(member.record, "it was started again")
        patience = Patience(self._clock(), self._times.least_silence_s, self._times.heartbeat_timeout_s)
        self._members[record.instance] = Member(record, patience)
        log.info("worker_joined", worker=record.worker, instance=record.instance, role=record.role)
        self._workers.join(record)
        self._end_handshake(record)

    def note_unanswered(self, record: WorkerRecord, error: PipelineError) -> None:
        """Have another handshake at the next look, and show until then that this one was not answered.

        A worker on whose subject nobody listens stays expected: NATS may be back before it is.
        """
        self._refusals.note_refusing(record, f"does not answer the handshake: {error.message}")
        self._in_handshake.discard(record.instance)
        if isinstance(error, RequestTimeoutError):
            self._workers.expect_no_more(record.instance)

    def note_refusing(self, record: WorkerRecord, error: PipelineError) -> None:
        """Have another handshake at the next look, and show until then that the worker refuses this conductor."""
        self._refusals.note_refusing(record, f"refuses this conductor: {error.message}")
        self._end_handshake(record)

    def _end_handshake(self, record: WorkerRecord) -> None:
        self._in_handshake.discard(record.instance)
        self._workers.expect_no_more(record.instance)

    def _update(self, member: Member, record: WorkerRecord) -> None:
        is_changed, member.record = member.record.state != record.state, record
        if is_changed:
            log.info("worker_state", worker=record.worker, instance=record.instance, state=record.state)
            self._workers.update(record)

    # --- who is gone ------------------------------------------------------------------------------------------------

    def _look_for_gone(self, records: Collection[WorkerRecord]) -> None:
        now = self._clock()
        present, names = {record.instance for record in records}, {record.worker for record in records}
        for member in self.members:
            record = member.record
            if record.instance in present:
                member.absent_since = None
            elif record.worker in names:
                self._leave(record, "another instance has its name")
            elif self._is_gone(member, now):
                self._leave(record, "it has left")

    def _is_gone(self, member: Member, now: float) -> bool:
        """Say whether a worker without a record is gone: a silent one that drained at once, any other in the end."""
        if member.absent_since is None:
            member.absent_since = now
        is_overdue = now - member.absent_since > self._times.forget_s
        return self._is_silent(member, now) and (member.record.state == "draining" or is_overdue)

    def _leave(self, record: WorkerRecord, reason: str) -> None:
        log.info("worker_left", worker=record.worker, instance=record.instance, reason=reason)
        del self._members[record.instance]
        self._workers.leave(record, reason)

    # --- who is alive -----------------------------------------------------------------------------------------------

    def heard(self, heartbeat: Heartbeat, root: str) -> None:
        """Take in a sign of life from the worker with this root of subjects, which no other host can send there."""
        if member := self._members.get(heartbeat.instance):
            if member.record.subject != root:
                log.warning("heartbeat_refused", worker=member.record.worker, sent_by=root)
                return
            if self._is_deaf:  # the clock has not been looked at since the broker came back
                member.patience.excuse(self._clock())
            member.patience.hear(self._clock())
            self._note_beat(member)
            member.heartbeat, member.is_unreachable = heartbeat, False
            self._workers.note_alive(member.record, heartbeat)

    def _note_beat(self, member: Member) -> None:
        """Ask one again whose heartbeats were interrupted: what it was asked meanwhile has not reached it."""
        if self._clock() - member.beat_at > self._times.probe_s:
            member.asked_at = -math.inf
        member.beat_at = self._clock()

    def find(self, root: str) -> WorkerRecord | None:
        """Return the record of the worker with this root of subjects."""
        return next((member.record for member in self.members if member.record.subject == root), None)

    def note_unreachable(self, record: WorkerRecord) -> None:
        """Note that nobody listens where a worker did: it is silent from now on, until it is heard of again."""
        member = self._members.get(record.instance)
        if member is not None and not self._is_deaf and not self._workers.is_paused:
            member.is_unreachable = True
            self._workers.note_silent(record, StageError(f"{record.worker} listens no more, and its edges have ended"))

    def overdue(self) -> list[WorkerRecord]:
        """Return the workers that are to be asked whether they are there, since their requests wait."""
        return [] if self._is_deaf or self._workers.is_paused else self._workers.vision.overdue()

    def note_there(self, record: WorkerRecord, *, is_there: bool) -> None:
        """Note whether a worker answers when it is asked whether it is there."""
        self._workers.vision.note_there(record.instance, is_there=is_there or self._is_deaf)

    def heartbeat(self, instance: str) -> Heartbeat | None:
        """Return a worker's last sign of life."""
        member = self._members.get(instance)
        return member.heartbeat if member else None

    def on_reconnect(self) -> None:
        """Note that the broker was away; to be called by the transport."""
        self._workers.pause()
        self._reconnected_at = self._clock()

    def watch(self, *, is_connected: bool) -> None:
        """Look at the clock, every `watch_s`: who is silent, who is to be asked, whether the broker is settled."""
        now = self._clock()
        # Had we stood still ourselves, heartbeats would wait to be read: that is no silence.
        has_stood_still = now - self._watched_at > self._times.watch_s + self._times.standstill_s
        self._watched_at = now
        self._listen(now, can_hear=is_connected and not has_stood_still)
        self._settle(now, is_connected=is_connected)
        self._heard_at = max((member.patience.heard_at for member in self.members), default=now)
        for member in self.members:
            if self._is_silent(member, now):
                self._workers.note_silent(member.record, self._silence(member, now))
        if is_connected and not self._workers.is_paused:
            self._ask_suspended(now)

    def _listen(self, now: float, *, can_hear: bool) -> None:
        """Note whether anybody could be heard; after an interruption everyone has the full time again."""
        if self._is_deaf and can_hear:
            for member in self.members:
                member.patience.excuse(now)
                member.is_unreachable = False
        self._is_deaf = not can_hear

    def _is_silent(self, member: Member, now: float) -> bool:
        silent_s = now - member.patience.heard_at
        return not self._is_deaf and (member.is_unreachable or silent_s >= self._patience_s(member))

    def _patience_s(self, member: Member) -> float:
        """Return how long a worker may be silent: to miss it early is of use where another can take its sessions."""
        has_spare = member.record.role == "stage" and self._workers.has_route_without([member.record.instance])
        hears_others = self._clock() - self._heard_at < self._times.deaf_s
        return member.patience.limit_s if has_spare and hears_others else self._times.heartbeat_timeout_s

    def _silence(self, member: Member, now: float) -> StageError:
        silent_s = now - member.patience.heard_at
        return StageError(f"{member.record.worker} has given no sign of life for {silent_s:.2f} s")

    def _ask_suspended(self, now: float) -> None:
        for worker in self._workers.suspended:
            member = self._members[worker.key]
            if now - member.asked_at >= self._times.probe_s and not self._is_silent(member, now):
                member.asked_at = now
                self._workers.ask(worker.key)

    def _settle(self, now: float, *, is_connected: bool) -> None:
        """Go on once the broker is back for long enough: all that was in flight may be gone."""
        if self._reconnected_at is None or now - self._reconnected_at < self._times.settle_s:
            return
        back_since, self._reconnected_at = self._reconnected_at, None
        if is_connected:  # else the other connection is still away, and its return will be told as well
            log.warning("broker_was_away")
            for member in self.members:
                member.asked_at = -math.inf
            self._workers.resume(TransportError("the broker was away; messages may be lost"), back_since)
