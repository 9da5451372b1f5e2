"""A NATS server: what comes to it goes to whoever listens, for as long as it is up."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from broker_pipeline.errors import ContractError, NoResponderError, PipelineError, SlowConsumerError
from broker_pipeline.wire.link import Message, Receiver
from tests.simulation.fake_nats.message import FakeMsg
from tests.simulation.fake_nats.stream import FakeStream

if TYPE_CHECKING:
    from tests.simulation.fake_nats.link import FakeLink

_SLOW = 0.02
_LEAST_S, _SPREAD_S, _SLOW_SPREAD_S = 0.0001, 0.0005, 0.0199
"""How long a message is under way: at least, and how much longer at most; and of the `_SLOW` share that is slow."""


class FakeBroker:
    def __init__(self, loop: asyncio.AbstractEventLoop, chance: random.Random) -> None:
        self.loop, self.chance = loop, chance
        self.is_up = True
        self.slowness = 1.0
        self.stream = FakeStream(self)
        self.links: dict[str, FakeLink] = {}
        self.listeners: dict[str, list[tuple[FakeLink, Receiver]]] = {}
        self.callers: dict[Callable[[FakeMsg], None], FakeLink] = {}
        """Whoever wants to hear that there is a job, in the order in which they said so."""
        self.context = contextvars.Context()

    def call_later(self, delay_s: float, call: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        """Have something happen at the server, whatever becomes of whoever asked for it."""
        return self.loop.call_at(self.loop.time() + delay_s, call, *args, context=self.context)

    def delay_s(self) -> float:
        chance = self.chance.random
        spread_s = _SLOW_SPREAD_S if chance() < _SLOW else _SPREAD_S
        return self.slowness * (_LEAST_S + spread_s * chance())

    def route(self, subject: str, message: Message | PipelineError, lane: str, sender: FakeLink | None) -> None:
        """Give a message to whoever listens; a request that nobody hears is answered with that."""
        if subject.startswith("_INBOX."):
            name = subject.split(".", 2)[1]
            if link := self.links.get(name):
                link.deliver(lane, link.take_answer, subject, message)
            return
        listeners = [entry for name in _names(subject) for entry in self.listeners.get(name, ()) if entry[0].is_known]
        for link, receiver in listeners:
            link.deliver(lane, _hand_over, receiver, message)
        if not listeners and isinstance(message, Message) and message.reply and sender is not None:
            sender.deliver("small", sender.take_answer, message.reply, NoResponderError("nobody listens there"))

    def call_pullers(self, subject: str) -> None:
        """Tell whoever waits for a job that there is one."""
        for take, link in self.callers.items():
            link.deliver("small", take, FakeMsg(subject, b"", {}, None, None, 0))

    def kill(self) -> None:
        self.is_up = False
        for link in self.links.values():
            link.disconnect()

    def start(self, *, forgets: bool) -> None:
        """Be there again, without the memory of what was delivered if it `forgets`."""
        self.is_up = True
        if forgets:
            self.stream.forget_deliveries()
        for link in self.links.values():
            link.reconnect()


@lru_cache(1024)
def _names(subject: str) -> tuple[str, ...]:
    """Return the subjects by which it is listened to."""
    root, _, what = subject.rpartition(".")
    return subject, f"{root}.*", f"{'.'.join(root.split('.')[:2])}.*.*.*.*.{what}"


def _hand_over(receiver: Receiver, message: Message) -> None:
    try:
        receiver.room.take(message.num_bytes)
        receiver.on_message(msgspec.structs.replace(message))
    except SlowConsumerError as error:
        receiver.on_dropped(error, message.metadata, message.num_bytes, message.reply)
    except ContractError as error:
        receiver.room.free(message.num_bytes)
        receiver.on_malformed(error, message.reply)
