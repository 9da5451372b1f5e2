"""A JetStream work queue with one consumer, as the server keeps it.

publish ──► waiting ──► delivered ── ack ──► gone
              ▲            │ nak, ack_wait passed, server killed before that was on its disk
              └────────────┘
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.fake_nats.message import FakeMsg

if TYPE_CHECKING:
    from tests.simulation.fake_nats.broker import FakeBroker
    from tests.simulation.fake_nats.link import FakeLink


@dataclass(eq=False)
class _Stored:
    number: int
    data: bytes
    headers: dict[str, str]
    num_delivered: int = 0
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False)
class Request:
    link: FakeLink
    reply: str
    give: Callable[[FakeMsg], None]
    num_wanted: int
    no_wait: bool
    """Whether it ends when it has brought some and there is none at the moment."""
    num_given: int = 0
    timer: asyncio.TimerHandle | None = field(default=None)


class FakeStream:
    """What the server keeps."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._numbers = itertools.count(1)
        self._stored: dict[int, _Stored] = {}
        self._waiting: deque[_Stored] = deque()
        self._requests: deque[Request] = deque()
        self._message_ids: set[str] = set()
        self.names: set[str] = set()
        """Streams that there are."""
        self.consumers: dict[str, float] = {}
        """Seconds that a delivery may take, by consumer."""

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, data: bytes, headers: dict[str, str]) -> bool:
        """Store a message; True when it is a duplicate."""
        if headers["Nats-Msg-Id"] in self._message_ids:
            return True
        self._message_ids.add(headers["Nats-Msg-Id"])
        stored = _Stored(next(self._numbers), data, headers)
        self._stored[stored.number] = stored
        self._wait(stored)
        return False

    def _wait(self, stored: _Stored) -> None:
        if stored.timer is not None:
            stored.timer.cancel()
            stored.timer = None
        if stored.number in self._stored and stored not in self._waiting:
            self._waiting.append(stored)
            self._serve()

    def ask(self, request: Request, expires_s: float) -> None:
        """Answer a request with messages that are there or come, one each in turn, or with the word that it is over."""
        self._requests.append(request)
        request.timer = self._broker.call_later(expires_s, self._expire, request)
        self._serve()

    def _expire(self, request: Request) -> None:
        if request in self._requests:
            self._drop(request)
            self._give(request, FakeMsg(request.reply, b"", {"Status": "408"}, None, None, 0))

    def _drop(self, request: Request) -> None:
        assert request.timer is not None
        request.timer.cancel()
        self._requests.remove(request)

    def _serve(self) -> None:
        while self._waiting and self._requests and self._broker.is_up:
            stored, request = self._waiting.popleft(), self._requests[0]
            self._requests.rotate(-1)
            stored.num_delivered += 1
            self._await_ack(stored)
            msg = FakeMsg("jobs", stored.data, stored.headers, request.link, stored.number, stored.num_delivered)
            self._give(request, msg)
            request.num_given += 1
            if request.num_given == request.num_wanted:
                self._drop(request)
        if not self._waiting:
            for request in [each for each in self._requests if each.no_wait and each.num_given]:
                self._expire(request)

    def _give(self, request: Request, msg: FakeMsg) -> None:
        request.link.deliver("small", request.give, msg)

    def _await_ack(self, stored: _Stored) -> None:
        if stored.timer is not None:
            stored.timer.cancel()
        (ack_wait_s,) = self.consumers.values()
        stored.timer = self._broker.call_later(ack_wait_s, self._overdue, stored)

    def _overdue(self, stored: _Stored) -> None:
        stored.timer = None
        self._wait(stored)

    def ack(self, number: int) -> None:
        if (stored := self._stored.pop(number, None)) is not None:
            if stored.timer is not None:
                stored.timer.cancel()
            if stored in self._waiting:
                self._waiting.remove(stored)

    def nak(self, number: int, delay_s: float) -> None:
        if (stored := self._stored.get(number)) is not None and stored.timer is not None:
            stored.timer.cancel()
            stored.timer = self._broker.call_later(delay_s, self._overdue, stored)

    def prolong(self, number: int) -> None:
        if (stored := self._stored.get(number)) is not None and stored.timer is not None:
            self._await_ack(stored)

    def forget_requests(self, link: FakeLink) -> None:
        """A connection is gone, and with it what it asked for."""
        for request in [each for each in self._requests if each.link is link]:
            self._drop(request)

    def forget_deliveries(self) -> None:
        """Deliver again what is out: the server was killed before that was on its disk."""
        for stored in list(self._stored.values()):
            if stored.timer is not None:
                stored.num_delivered -= 1
                self._wait(stored)
