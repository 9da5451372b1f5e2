"""Which workers there are: records in Redis, heartbeats on NATS, hellos; and what becomes of those that fall silent.

    record appears ──► fits? ──► hello (fences, proves the subscription) ──► used
                         │                                                    │ silent for heartbeat_timeout_s,
                         └──► refused, with the reason                        ▼ or a deadline passed on its route
                                                        used ◄── answers ── suspended ──► gone: its name is another
                                                                 a probe                  instance's, or it had left

A suspended worker is probed while it gives signs of life. Since a probe passes through its computing thread, one that
hangs there stays suspended, and one that was merely out of reach comes back with its KV accounted for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.workers.vision_pool import VisionPool
from broker_pipeline.errors import (
    ContractError,
    LeaseLostError,
    StageError,
    StaleEpochError,
    StateError,
    TransportError,
)
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.status import RefusedWorker
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.scheduling.policies.liveness import Liveness
from broker_pipeline.scheduling.routes import PipelineIdentity, StageInfo, refusal_of
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_STANDSTILL_S = 0.5


@dataclass(frozen=True, slots=True)
class RosterTimes:
    """All in seconds."""

    poll_s: float = 0.5
    watch_s: float = 0.1
    probe_s: float = 0.5
    hello_timeout_s: float = 2.0
    heartbeat_timeout_s: float = 2.5
    forget_s: float = 600.0
    """How long a silent worker whose record is gone may come back with its sessions."""
    settle_s: float = 0.1
    """How long after a reconnect others get to reconnect as well."""


class Roster:
    """The workers of one pipeline in one epoch."""

    def __init__(
        self,
        transport: Transport,
        registry: WorkerRegistry,
        dispatcher: Dispatcher,
        pool: VisionPool,
        identity: PipelineIdentity,
        heartbeat_subject: str,
        epoch: int,
        times: RosterTimes,
    ) -> None:
        """An `identity` without dtype takes on that of the stage that was started first."""
        self._transport = transport
        self._registry = registry
        self._dispatcher = dispatcher
        self._pool = pool
        self._identity = identity
        self._heartbeat_subject = heartbeat_subject
        self._epoch = epoch
        self._times = times
        self._liveness = Liveness(times.heartbeat_timeout_s)
        self._known: dict[str, WorkerRecord] = {}
        self._in_handshake: set[str] = set()
        self._absent_since: dict[str, float] = {}
        self._probed_at: dict[str, float] = {}
        self._reconnected = asyncio.Event()
        self._is_registry_away = False
        self.refused: dict[str, RefusedWorker] = {}
        self.heartbeats: dict[str, Heartbeat] = {}

    @property
    def known(self) -> tuple[WorkerRecord, ...]:
        """Records of the workers that answered a handshake and are not gone."""
        return tuple(self._known.values())

    def on_reconnect(self) -> None:
        """Note that the broker was away; to be called by the transport."""
        self._dispatcher.is_paused = True
        self._reconnected.set()

    async def run(self) -> None:
        """Keep the roster until cancelled. Raises `LeaseLostError` (in a group) when a worker obeys a newer epoch."""
        beats = self._transport.subscribe(self._heartbeat_subject, Heartbeat, on_dropped=lambda *_: None)
        async with beats as heartbeats, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(tasks), name="registry")
            tasks.create_task(self._watch(), name="liveness")
            tasks.create_task(self._follow_reconnects(), name="reconnects")
            async for message in heartbeats:
                self._heard(message.body)

    # --- who is there -----------------------------------------------------------------------------------------------

    async def _poll(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            records = await self._read_registry()
            if records is not None:
                self._look_for_gone(records)
                for record in self._accepted(records):
                    if record.instance not in self._known and record.instance not in self._in_handshake:
                        self._in_handshake.add(record.instance)
                        tasks.create_task(self._handshake(record), name=f"handshake {record.worker}")
                    elif record.instance in self._known:
                        self._update(record)
            await asyncio.sleep(self._times.poll_s)

    async def _read_registry(self) -> list[WorkerRecord] | None:
        try:
            records = await self._registry.workers()
        except StateError as error:
            if not self._is_registry_away:
                log.warning("registry_unreachable", reason=error.message)
            self._is_registry_away = True
            return None
        if self._is_registry_away:
            log.info("registry_reachable")
        self._is_registry_away = False
        return [record for record in records if record.role in ("stage", "vision")]

    def _accepted(self, records: Iterable[WorkerRecord]) -> list[WorkerRecord]:
        """Keep the workers that fit, and say of each of the others why not."""
        identity = self._with_dtype(records)
        accepted, refused = [], {}
        for record in records:
            reason = refusal_of(record, identity)
            if reason is None:
                accepted.append(record)
                continue
            refused[record.instance] = RefusedWorker(worker=record.worker, instance=record.instance, reason=reason)
            if record.instance not in self.refused:
                log.warning("worker_refused", worker=record.worker, instance=record.instance, reason=reason)
        self.refused = refused
        return accepted

    def _with_dtype(self, records: Iterable[WorkerRecord]) -> PipelineIdentity:
        if self._identity.dtype:
            return self._identity
        in_use = [record for record in self._known.values() if record.role == "stage"]
        fitting = [
            record
            for record in sorted(records, key=lambda record: record.started_at)
            if record.role == "stage" and refusal_of(record, replace(self._identity, dtype=record.dtype)) is None
        ]
        return replace(self._identity, dtype=next((record.dtype for record in (*in_use, *fitting)), ""))

    async def _handshake(self, record: WorkerRecord) -> None:
        """Shake hands; a worker that does not answer gets another after the next look at the registry."""
        hello = Hello(pipeline=self._identity.pipeline, epoch=self._epoch)
        timeout_s = self._times.hello_timeout_s
        try:
            await self._transport.request(
                subjects.control(record.subject), hello, reply_type=HelloReply, timeout_s=timeout_s
            )
        except StaleEpochError as error:
            raise LeaseLostError(f"{record.worker} obeys another conductor: {error.message}") from error
        except (TransportError, StageError) as error:
            log.info("worker_silent", worker=record.worker, instance=record.instance, reason=error.message)
            await asyncio.sleep(self._times.poll_s)
        except ContractError as error:
            reason = f"refuses this conductor: {error.message}"
            self.refused[record.instance] = RefusedWorker(worker=record.worker, instance=record.instance, reason=reason)
            log.warning("worker_refuses", worker=record.worker, instance=record.instance, reason=error.message)
            await asyncio.sleep(self._times.hello_timeout_s)
        else:
            self._join(record)
        finally:
            self._in_handshake.discard(record.instance)

    def _join(self, record: WorkerRecord) -> None:
        self._leave_predecessor(record)
        self._known[record.instance] = record
        self._liveness.heard(record.instance, time.monotonic())
        log.info("worker_joined", worker=record.worker, instance=record.instance, role=record.role)
        if record.role == "stage":
            self._dispatcher.join(StageInfo.from_record(record))
            if record.state == "draining":
                self._dispatcher.drain(record.instance)
        else:
            self._pool.update(record)

    def _update(self, record: WorkerRecord) -> None:
        if self._known[record.instance].state == record.state:
            return
        self._known[record.instance] = record
        log.info("worker_state", worker=record.worker, instance=record.instance, state=record.state)
        if record.role == "vision":
            self._pool.update(record)
        elif record.state == "draining":
            self._dispatcher.drain(record.instance)

    # --- who is gone ------------------------------------------------------------------------------------------------

    def _look_for_gone(self, records: Iterable[WorkerRecord]) -> None:
        now = time.monotonic()
        present = {record.instance for record in records}
        holders = {record.worker: record.instance for record in records}
        for key, record in list(self._known.items()):
            if key in present:
                self._absent_since.pop(key, None)
                continue
            absent_s = now - self._absent_since.setdefault(key, now)
            is_replaced = record.worker in holders
            is_silent = not self._liveness.is_alive(key, now)
            if is_replaced or (is_silent and (record.state == "draining" or absent_s > self._times.forget_s)):
                self._leave(record, "another instance has its name" if is_replaced else "it has left")

    def _leave_predecessor(self, record: WorkerRecord) -> None:
        for known in list(self._known.values()):
            if known.worker == record.worker and known.instance != record.instance:
                self._leave(known, "it was started again")

    def _leave(self, record: WorkerRecord, reason: str) -> None:
        key = record.instance
        log.info("worker_left", worker=record.worker, instance=key, reason=reason)
        del self._known[key]
        self._liveness.forget(key)
        for table in (self._absent_since, self._probed_at, self.heartbeats):
            table.pop(key, None)
        if record.role == "stage":
            self._dispatcher.leave(key, StageError(f"{record.worker} is gone: {reason}").to_failure())
        else:
            self._pool.leave(key)

    # --- who is alive -----------------------------------------------------------------------------------------------

    def _heard(self, heartbeat: Heartbeat) -> None:
        if record := self._known.get(heartbeat.instance):
            self._liveness.heard(heartbeat.instance, time.monotonic())
            self.heartbeats[heartbeat.instance] = heartbeat
            if record.role == "vision":
                self._pool.set_alive(heartbeat.instance, is_alive=True)

    async def _watch(self) -> None:
        before = time.monotonic()
        while True:
            await asyncio.sleep(self._times.watch_s)
            now = time.monotonic()
            # Had we stood still ourselves, heartbeats would wait to be read: that is no silence.
            has_stood_still = now - before > self._times.watch_s + _STANDSTILL_S
            self._liveness.set_connected(self._transport.is_connected and not has_stood_still, now)
            before = now
            for key, record in list(self._known.items()):
                if not self._liveness.is_alive(key, now):
                    self._silent(record)
            self._probe_suspended(now)

    def _silent(self, record: WorkerRecord) -> None:
        if record.role == "vision":
            self._pool.set_alive(record.instance, is_alive=False)
        elif any(worker.key == record.instance for worker in self._dispatcher.scheduler.routes.usable):
            timeout_s = self._times.heartbeat_timeout_s
            error = StageError(f"{record.worker} has given no sign of life for {timeout_s:g} s")
            self._dispatcher.suspend(record.instance, error.to_failure())

    def _probe_suspended(self, now: float) -> None:
        if self._dispatcher.is_paused or not self._transport.is_connected:
            return
        for worker in self._dispatcher.scheduler.routes.suspended:
            is_due = now - self._probed_at.get(worker.key, float("-inf")) >= self._times.probe_s
            if is_due and self._liveness.is_alive(worker.key, now):
                self._probed_at[worker.key] = now
                self._dispatcher.probe(worker.key)

    async def _follow_reconnects(self) -> None:
        """After the broker was away: all that was in flight may be gone, so every stage has to answer first."""
        while True:
            await self._reconnected.wait()
            await asyncio.sleep(self._times.settle_s)
            self._reconnected.clear()
            if not self._transport.is_connected:
                continue  # the other connection is still away, and its return will be told as well
            log.warning("broker_was_away")
            self._dispatcher.suspend_all(TransportError("the broker was away; messages may be lost").to_failure())
            self._pool.lose_requests()
            self._probed_at.clear()
            self._dispatcher.is_paused = False
            self._dispatcher.wake()
