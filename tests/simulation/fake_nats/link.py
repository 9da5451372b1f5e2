"""A process's link to NATS: in NATS's order, and lost with its connection.

link ── lane: small ──► server ──► lane: small ── link      in order within a lane of one link, none between lanes
     └─ lane: bulk ───►        ──► lane: bulk ──┘

cut for less than `detect_s`     what is under way is late, as TCP repeats it
cut for longer, server killed    it is gone; publishing fails until the link is back, and listeners are told
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from broker_pipeline.errors import PipelineError, TransportError, error_from_failure
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.link import BARRIER_TIMEOUT_S, Message, Receiver
from tests.simulation.fake_nats.broker import FakeBroker
from tests.simulation.fake_nats.jetstream import FakeJetStream
from tests.simulation.processes import Process

_BULK_BYTES = 1200
"""Far fewer than in NATS's link, so that short prompts take the other lane."""
_RECONNECT_S = (0.05, 0.3)


class FakeLink:
    """What `Transport` uses of `NatsLink`."""

    max_message_bytes = 256 * 2**20
    local_host = "127.0.0.1"

    def __init__(self, broker: FakeBroker, process: Process) -> None:
        self.broker, self.process = broker, process
        self.is_connected = True
        self.generation = 0
        """Changes when the connection is lost: what belongs to an older one does not arrive."""
        self.num_reconnects = 0
        self.is_cut = False
        self.leak = 0.0
        """Share of all messages, in either direction, that vanish."""
        self._late: list[Callable[[], None]] = []
        self._arrivals: dict[str, float] = {}
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._numbers = itertools.count()
        self._on_reconnected: list[Callable[[], None]] = []
        broker.links[process.name] = self
        process.on_death.append(self._die)

    @property
    def is_known(self) -> bool:
        """Whether the server has this link's connection."""
        return self.is_connected and not self.process.is_dead

    # --- sending ---

    async def publish(self, subject: str, frame: Frame, reply: str = "") -> None:
        payload = b"".join(frame.pieces)
        num_bytes = len(frame.metadata) + len(payload)
        message = Message(memoryview(frame.metadata), memoryview(payload), reply, num_bytes, subject=subject)
        self._send("bulk" if num_bytes > _BULK_BYTES else "small", subject, message)

    def refuse(self, reply: str, error: PipelineError) -> None:
        self._send("small", reply, error_from_failure(error.to_failure()))

    def _send(self, lane: str, subject: str, message: Message | PipelineError) -> None:
        if not self.is_connected:
            raise TransportError(f"{self.process.name} is reconnecting; nothing was sent to {subject}")
        if not self.process.is_dead:
            self.to_server(lane, self.broker.route, subject, message, lane, self)

    def to_server(self, lane: str, call: Callable[..., object], *args: object) -> None:
        """Have something happen at the server, in the order of a lane, if the connection lasts so long."""
        if self._leaks():
            return
        when = self._arrival(f"{lane} out")
        self.broker.loop.call_at(when, self._arrive, self.generation, call, args, context=self.broker.context)

    def deliver(self, lane: str, call: Callable[..., object], *args: object) -> None:
        """Have something happen in this link's process, in the order of a lane, if there is a connection, and lasts."""
        if not self.is_known or self._leaks():
            return
        self.process.call_at(self._arrival(f"{lane} in"), self._arrive, self.generation, call, args)

    def _leaks(self) -> bool:
        return self.leak > 0 and self.broker.chance.random() < self.leak

    def _arrival(self, lane: str) -> float:
        when = max(self._arrivals.get(lane, 0.0), self.broker.loop.time() + self.broker.delay_s())
        self._arrivals[lane] = when
        return when

    def _arrive(self, generation: int, call: Callable[..., object], args: tuple[object, ...]) -> None:
        if generation != self.generation or self.process.is_dead:
            return
        if self.is_cut or self._late:
            self._late.append(lambda: self._arrive(generation, call, args))
        else:
            call(*args)

    # --- requests ---

    @contextmanager
    def expect(self, _: Frame) -> Iterator[tuple[str, asyncio.Future[Message]]]:
        subject = f"_INBOX.{self.process.name}.{next(self._numbers)}"
        future = self._answers[subject] = self.broker.loop.create_future()
        try:
            yield subject, future
        finally:
            del self._answers[subject]
            if future.done() and not future.cancelled():
                future.exception()

    def take_answer(self, subject: str, message: Message | PipelineError) -> None:
        future = self._answers.get(subject)
        if future is None or future.done():
            return
        if isinstance(message, Message):
            future.set_result(message)
        else:
            future.set_exception(message)

    # --- receiving ---

    @asynccontextmanager
    async def listen(self, subject: str, receiver: Receiver) -> AsyncIterator[None]:
        entry = (self, receiver)
        self.broker.listeners.setdefault(subject, []).append(entry)
        try:
            yield
        finally:
            self.broker.listeners[subject].remove(entry)

    async def barrier(self, timeout_s: float = BARRIER_TIMEOUT_S) -> None:  # noqa: ARG002 - it always comes
        await asyncio.sleep(0.001)
        while not self.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    def jetstream(self, *, for_bulk: bool, timeout_s: float) -> FakeJetStream:  # noqa: ARG002 - one connection
        return FakeJetStream(self, timeout_s)

    # --- life ---

    def on_lost(self, listener: Callable[[TransportError], None]) -> None: ...

    def on_reconnected(self, listener: Callable[[], None]) -> None:
        self._on_reconnected.append(listener)

    def cut(self, detect_s: float) -> None:
        """Let nothing through from now on; after `detect_s`, both ends give the connection up."""
        self.is_cut = True
        self.broker.call_later(detect_s, self._detect, self.generation)

    def heal(self) -> None:
        self.is_cut = False
        if not self.is_connected:
            self.reconnect()
            return
        late, self._late = self._late, []
        for arrive in late:
            arrive()

    def _detect(self, generation: int) -> None:
        if self.is_cut and generation == self.generation:
            self.disconnect()

    def disconnect(self) -> None:
        if self.is_connected:
            self.is_connected = False
            self.generation += 1
            self._late.clear()

    def reconnect(self) -> None:
        delay_s = self.broker.chance.uniform(*_RECONNECT_S)
        self.process.call_at(self.broker.loop.time() + delay_s, self._come_back)

    def _come_back(self) -> None:
        if self.is_connected or self.is_cut or not self.broker.is_up or self.process.is_dead:
            return
        self.is_connected = True
        self.num_reconnects += 1
        for listener in self._on_reconnected:
            listener()

    def _die(self) -> None:
        self.broker.links.pop(self.process.name, None)

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the simulated link has no {name}")
