"""Keeps the roster up to date: records in Redis, heartbeats and handshakes on NATS, the clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.workers.roster import Roster, RosterTimes
from broker_pipeline.errors import (
    ContractError,
    LeaseLostError,
    StageError,
    StaleEpochError,
    StateError,
    TransportError,
)
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()


@dataclass(slots=True, kw_only=True, eq=False)
class RosterWatch:
    """The loops around a roster."""

    roster: Roster
    transport: Transport
    registry: WorkerRegistry
    share: str
    """Whose stages are watched, beside all vision workers."""
    hello: Hello
    """What every newcomer is asked."""
    heartbeat_subject: str
    times: RosterTimes
    _is_registry_away: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Keep the roster until cancelled. Raises `LeaseLostError` (in a group) when a worker obeys a newer epoch."""
        beats = self.transport.subscribe(self.heartbeat_subject, Heartbeat, on_dropped=lambda *_: None)
        async with beats as heartbeats, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(tasks), name="registry")
            tasks.create_task(self._watch(), name="liveness")
            async for message in heartbeats:
                self.roster.heard(message.body)

    async def _poll(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            if (records := await self._read_registry()) is not None:
                for record in self.roster.look(records):
                    tasks.create_task(self.shake_hands(record), name=f"handshake {record.worker}")
            await asyncio.sleep(self.times.poll_s)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.times.watch_s)
            self.roster.watch(is_connected=self.transport.is_connected)

    async def _read_registry(self) -> list[WorkerRecord] | None:
        try:
            records = await self.registry.workers()
        except StateError as error:
            if not self._is_registry_away:
                log.warning("registry_unreachable", reason=error.message)
            self._is_registry_away = True
            return None
        if self._is_registry_away:
            log.info("registry_reachable")
        self._is_registry_away = False
        return [record for record in records if record.role == "vision" or record.share == self.share]

    async def shake_hands(self, record: WorkerRecord) -> None:
        """Prove that a worker listens, fence it, and tell the roster.

        Raises `LeaseLostError` when the worker obeys a newer epoch.
        """
        subject, timeout_s = subjects.control(record.subject), self.times.hello_timeout_s
        try:
            await self.transport.request(subject, self.hello, reply_type=HelloReply, timeout_s=timeout_s)
        except StaleEpochError as error:
            raise LeaseLostError(f"{record.worker} obeys another conductor: {error.message}") from error
        except (TransportError, StageError) as error:
            self.roster.note_unanswered(record, error)
        except ContractError as error:
            self.roster.note_refusing(record, error)
        else:
            self.roster.join(record)
