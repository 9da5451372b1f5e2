"""A JetStream work queue with a consumer for each subject, as the server keeps it.

publish ──► waiting ──► delivered ── ack ──► gone
              ▲            │ nak, ack_wait passed, server killed before that was on its disk
              └────────────┘
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.simulation.fake_nats.message import FakeMsg

if TYPE_CHECKING:
    from tests.simulation.fake_nats.broker import FakeBroker
    from tests.simulation.fake_nats.link import FakeLink


@dataclass(eq=False)
class _Stored:
    number: int
    subject: str
    data: bytes
    headers: dict[str, str]
    num_delivered: int = 0
    timer: asyncio.TimerHandle | None = None


class FakeStream:
    """What the server keeps."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._numbers = itertools.count(1)
        self._stored: dict[int, _Stored] = {}
        self._waiting: deque[_Stored] = deque()
        self._message_ids: set[str] = set()
        self.names: set[str] = set()
        """Streams that there are."""
        self.consumers: dict[str, tuple[str, float]] = {}
        """The subject of each, and the seconds that a delivery may take."""

    def __len__(self) -> int:
        return len(self._stored)

    @property
    def subjects(self) -> dict[str, int]:
        """How many messages there are of each, delivered or not."""
        return dict(Counter(stored.subject for stored in self._stored.values()))

    @property
    def last_number(self) -> int:
        """Of the messages there are, the newest one's."""
        return max(self._stored, default=0)

    def num_in_progress(self, consumer: str) -> int:
        subject, _ = self.consumers[consumer]
        waiting = [stored for stored in self._waiting if stored.subject == subject]
        return self.subjects.get(subject, 0) - len(waiting)

    def add(self, subject: str, data: bytes, headers: dict[str, str]) -> bool:
        """Store a message; True when it is a duplicate."""
        if headers["Nats-Msg-Id"] in self._message_ids:
            return True
        self._message_ids.add(headers["Nats-Msg-Id"])
        stored = _Stored(next(self._numbers), subject, data, headers)
        self._stored[stored.number] = stored
        self._wait(stored)
        return False

    def _wait(self, stored: _Stored) -> None:
        if stored.timer is not None:
            stored.timer.cancel()
            stored.timer = None
        if stored.number in self._stored and stored not in self._waiting:
            self._waiting.append(stored)

    def ask(self, consumer: str, link: FakeLink, reply: str, give: Callable[[FakeMsg], None], num_wanted: int) -> None:
        """Answer a request with messages that are there, and with the word that there are no more."""
        if not self._broker.is_up:
            return
        if consumer not in self.consumers:
            link.deliver("small", give, FakeMsg(reply, b"", {"Status": "503"}, None, None, 0))
            return
        subject, ack_wait_s = self.consumers[consumer]
        found = [stored for stored in self._waiting if stored.subject == subject][:num_wanted]
        for stored in found:
            self._waiting.remove(stored)
            stored.num_delivered += 1
            self._await_ack(stored, ack_wait_s)
            link.deliver(
                "small",
                give,
                FakeMsg(subject, stored.data, stored.headers, link, stored.number, stored.num_delivered, consumer),
            )
        if len(found) < num_wanted:
            link.deliver("small", give, FakeMsg(reply, b"", {"Status": "404"}, None, None, 0))

    def _await_ack(self, stored: _Stored, ack_wait_s: float) -> None:
        if stored.timer is not None:
            stored.timer.cancel()
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
            self._await_ack(
                stored, next(wait_s for subject, wait_s in self.consumers.values() if subject == stored.subject)
            )

    def forget_deliveries(self) -> None:
        """Deliver again what is out: the server was killed before that was on its disk."""
        for stored in list(self._stored.values()):
            if stored.timer is not None:
                stored.num_delivered -= 1
                self._wait(stored)
