"""Which of the other conductors are gone: said by NATS at once, or seen by their silence.

    hello ──► another conductor ──► its record                   it is well
          └─► NATS: nobody listens there, three times in a row   its process is dead, or has no connection
          └─► nothing, for longer than `Patience` allows         it hangs, or is cut off
          └─► itself: no answer, or a late one                   NATS is away, or this process was: nobody is missed

Silent can only be who has answered before. The lease of one that is gone is free for the others at once; their epoch
fences it, should it live after all.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.patience import Patience
from broker_pipeline.errors import NoResponderError, PipelineError
from broker_pipeline.messages.control import Hello, HelloReply
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.wire.transport import Received, Transport

log = structlog.get_logger()

_ASK_S = 0.15
_NUM_REFUSALS = 3
_LEAST_S, _MOST_S = 0.75, 2.5
"""Bounds of how long a conductor may be silent."""
_DEAF_S = 0.4
"""Who has not heard itself for so long hears nobody."""
_SETTLE_S = 1.0
"""After a reconnect, others get as long to reconnect as well."""


@dataclass(slots=True, eq=False)
class Peer:
    """Another conductor."""

    record: WorkerRecord
    patience: Patience | None = None
    """From its first answer on."""
    num_refusals: int = 0
    """How often in a row NATS has said that nobody listens."""

    def hear(self, now: float) -> None:
        """Note an answer."""
        self.patience = self.patience or Patience(now, _LEAST_S, _MOST_S)
        self.patience.hear(now)
        self.num_refusals = 0

    def excuse(self, now: float) -> None:
        """Begin anew: nothing could be heard."""
        if self.patience is not None:
            self.patience.excuse(now)
        self.num_refusals = 0

    def why_gone(self, now: float) -> str | None:
        """Say why it counts as gone; None while it does not."""
        if self.num_refusals >= _NUM_REFUSALS:
            return "nobody listens where it did"
        if self.patience is None or now - self.patience.heard_at <= self.patience.limit_s:
            return None
        return f"it has not answered for {now - self.patience.heard_at:.2f} s"


@dataclass(slots=True, kw_only=True, eq=False)
class PeerWatch:
    """This conductor among the others: it answers their hellos, and says hello to them."""

    transport: Transport
    record: WorkerRecord
    """Its own."""
    clock: Callable[[], float] = time.monotonic
    gone: frozenset[str] = frozenset()
    """Instances that are gone, until they answer again."""
    _peers: dict[str, Peer] = field(default_factory=dict, init=False)
    _quiet_until: float = field(default=0.0, init=False)
    _heard_itself_at: float = field(default=-math.inf, init=False)
    _is_deaf: bool = field(default=True, init=False)
    _found: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def run(self) -> None:
        """Answer and ask until cancelled."""
        control = subjects.control(self.record.subject)
        subscription = self.transport.subscribe(control, Hello, on_dropped=lambda *_: None)  # who asks will ask again
        async with subscription as hellos, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ask_all(tasks), name="peers")
            await self._answer(hellos)

    def meet(self, records: Collection[WorkerRecord]) -> None:
        """Ask these from now on, and no others."""
        others = [each for each in records if each.answers_hellos and each.instance != self.record.instance]
        self._peers = {each.instance: self._peers.get(each.instance, Peer(each)) for each in others}
        self.gone = self.gone & self._peers.keys()

    async def found_gone(self, timeout_s: float) -> None:
        """Return once another conductor was found to be gone, or after `timeout_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._found.wait()
        self._found.clear()

    def doubt_all(self) -> None:
        """Miss nobody before it has answered again: another may live although it is not heard here."""
        for peer in self._peers.values():
            peer.patience, peer.num_refusals = None, 0
        self.gone = frozenset()

    def on_reconnect(self) -> None:
        """Note that the broker was away."""
        self._quiet_until = self.clock() + _SETTLE_S

    async def _answer(self, hellos: AsyncIterator[Received[Hello]]) -> None:
        async for message in hellos:
            with suppress(PipelineError):  # who asked has gone, or the broker has: nobody waits then
                await message.respond(HelloReply(record=self.record))

    async def _ask_all(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            if self._peers:
                tasks.create_task(self._hear_itself(), name="is NATS there")
            for peer in self._peers.values():
                tasks.create_task(self._ask(peer), name=f"is {peer.record.worker} there")
            await asyncio.sleep(_ASK_S)
            now = self.clock()
            self._is_deaf = now < self._quiet_until or now - self._heard_itself_at > _DEAF_S
            if self._is_deaf:
                for peer in self._peers.values():
                    peer.excuse(now)
            else:
                self._look(now)

    async def _hear_itself(self) -> None:
        with suppress(PipelineError):
            await self._say_hello(self.record)
            self._heard_itself_at = self.clock()

    async def _ask(self, peer: Peer) -> None:
        try:
            await self._say_hello(peer.record)
        except NoResponderError:
            peer.num_refusals += 1
        except PipelineError:
            return  # its silence says the rest
        else:
            if self._is_deaf:
                peer.excuse(self.clock())
            peer.hear(self.clock())
            if peer.record.instance in self.gone:
                log.info("conductor_answers_again", conductor=peer.record.worker)
                self.gone -= {peer.record.instance}

    async def _say_hello(self, record: WorkerRecord) -> None:
        subject, hello = subjects.control(record.subject), Hello(pipeline=record.pipeline)
        await self.transport.request(subject, hello, reply_type=HelloReply, timeout_s=_LEAST_S)

    def _look(self, now: float) -> None:
        for instance, peer in self._peers.items():
            if instance not in self.gone and (reason := peer.why_gone(now)):
                log.warning("conductor_gone", conductor=peer.record.worker, reason=reason)
                self.gone |= {instance}
                self._found.set()
