"""Keeps the roster up to date: records in Redis, heartbeats and handshakes on NATS, the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.workers.roster import Roster, RosterTimes
from broker_pipeline.errors import (
    ContractError,
    LeaseLostError,
    NoResponderError,
    PipelineError,
    RequestTimeoutError,
    StageError,
    StaleEpochError,
    StateError,
    TransportError,
)
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.edges import PeerLost
from broker_pipeline.messages.workers import Heartbeat, WorkerRecord
from broker_pipeline.state.registry import Registered, WorkerRegistry
from broker_pipeline.wire.transport import Received, Transport

log = structlog.get_logger()

_DOUBT_S = (0.1, 0.3, 0.6)
"""How long the first answers of a worker in doubt are waited for, before it is asked again; then it is mute."""


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
    lost_peers_subject: str
    times: RosterTimes
    _is_registry_away: bool = field(default=False, init=False)
    _in_doubt: set[str] = field(default_factory=set, init=False)

    async def run(self) -> None:
        """Keep the roster until cancelled. Raises `LeaseLostError` (in a group) when a worker obeys a newer epoch."""
        beats = self.transport.subscribe(self.heartbeat_subject, Heartbeat, on_dropped=lambda *_: None)
        # of one that is dropped, heartbeats tell
        losses = self.transport.subscribe(self.lost_peers_subject, PeerLost, on_dropped=lambda *_: None)
        async with beats as heartbeats, losses as lost_peers, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._poll(tasks), name="registry")
            tasks.create_task(self._watch(tasks), name="liveness")
            tasks.create_task(self._look_after(lost_peers, tasks), name="lost peers")
            async for message in heartbeats:
                self.roster.heard(message.body, subjects.heartbeat_root(message.subject))

    async def _poll(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            if (found := await self._read_registry()) is not None:
                records = [
                    record
                    for record in found.records
                    if record.role == "vision" or (record.role == "stage" and record.share == self.share)
                ]
                for record in self.roster.look(records, found.unreadable):
                    tasks.create_task(self.shake_hands(record), name=f"handshake {record.worker}")
            await asyncio.sleep(self.times.poll_s)

    async def _watch(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            await asyncio.sleep(self.times.watch_s)
            self.roster.watch(is_connected=self.transport.is_connected)
            for record in self.roster.overdue():
                self._doubt(record, tasks)

    async def _look_after(self, lost_peers: AsyncIterator[Received[PeerLost]], tasks: asyncio.TaskGroup) -> None:
        """Ask each worker whose edge ended whether it is there."""
        async for message in lost_peers:
            if record := self.roster.find(message.body.root):
                self._doubt(record, tasks)

    def _doubt(self, record: WorkerRecord, tasks: asyncio.TaskGroup) -> None:
        """Ask a worker whether it is there; not twice at a time."""
        if record.instance not in self._in_doubt:
            self._in_doubt.add(record.instance)
            tasks.create_task(self._ask_after(record), name=f"is {record.worker} there")

    async def _ask_after(self, record: WorkerRecord) -> None:
        """Note a worker on whose subject nobody listens: of a dead process, NATS knows that at once, or in a moment.

        Any other answer, and in the end none, is for heartbeats and deadlines to judge: an edge may end between two
        workers that are well. But what one does that answers nothing at all is no load, so that others may do it.
        """
        try:
            for timeout_s in _DOUBT_S:
                with suppress(RequestTimeoutError):  # asked when NATS had not noticed the death yet, or it hangs
                    await self._say_hello(record, timeout_s)
                    self.roster.note_there(record, is_there=True)
                    return
            self.roster.note_there(record, is_there=False)
            with suppress(RequestTimeoutError):
                await self._say_hello(record, self.times.hello_timeout_s)
                self.roster.note_there(record, is_there=True)
        except NoResponderError:
            self.roster.note_unreachable(record)
        except PipelineError as error:
            log.info("lost_peer_unclear", worker=record.worker, reason=error.message)
        finally:
            self._in_doubt.discard(record.instance)

    async def _read_registry(self) -> Registered | None:
        try:
            found = await self.registry.registered()
        except StateError as error:
            if not self._is_registry_away:
                log.warning("registry_unreachable", reason=error.message)
            self._is_registry_away = True
            return None
        if self._is_registry_away:
            log.info("registry_reachable")
        self._is_registry_away = False
        return found

    async def shake_hands(self, record: WorkerRecord) -> None:
        """Prove that a worker listens, fence it, and tell the roster.

        Raises `LeaseLostError` when the worker obeys a newer epoch.
        """
        try:
            await self._say_hello(record, self.times.hello_timeout_s)
        except StaleEpochError as error:
            raise LeaseLostError(f"{record.worker} obeys another conductor: {error.message}") from error
        except (TransportError, StageError) as error:
            self.roster.note_unanswered(record, error)
        except ContractError as error:
            self.roster.note_refusing(record, error)
        else:
            self.roster.join(record)

    async def _say_hello(self, record: WorkerRecord, timeout_s: float) -> None:
        subject = subjects.control(record.subject)
        await self.transport.request(subject, self.hello, reply_type=HelloReply, timeout_s=timeout_s)
