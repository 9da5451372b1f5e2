"""A JetStream work queue with one consumer, and a process's view of it, as `JobQueue` uses them.

publish ──► waiting ──► delivered ── ack ──► gone
              ▲            │ nak, ack_wait passed, server killed before that was on its disk
              └────────────┘
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import nats.errors
from nats.js.errors import NotFoundError

if TYPE_CHECKING:
    from tests.simulation.fake_broker import FakeBroker, FakeLink

T = TypeVar("T")
_MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False)
class _Stored:
    number: int
    data: bytes
    headers: dict[str, str]
    num_delivered: int = 0
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False)
class _Request:
    link: FakeLink
    reply: str
    give: Callable[[FakeMsg], None]
    timer: asyncio.TimerHandle | None = field(default=None)


class FakeStream:
    """What the server keeps."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._numbers = itertools.count(1)
        self._stored: dict[int, _Stored] = {}
        self._waiting: deque[_Stored] = deque()
        self._requests: deque[_Request] = deque()
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

    def ask(self, request: _Request, expires_s: float) -> None:
        """Answer a request for one message now, when one comes, or with the word that none came."""
        self._requests.append(request)
        request.timer = self._broker.call_later(expires_s, self._expire, request)
        self._serve()

    def _expire(self, request: _Request) -> None:
        if request in self._requests:
            self._requests.remove(request)
            self._give(request, FakeMsg(request.reply, b"", {"Status": "408"}, None, None, 0))

    def _serve(self) -> None:
        while self._waiting and self._requests and self._broker.is_up:
            stored, request = self._waiting.popleft(), self._requests.popleft()
            assert request.timer is not None
            request.timer.cancel()
            stored.num_delivered += 1
            self._await_ack(stored)
            msg = FakeMsg("jobs", stored.data, stored.headers, request.link, stored.number, stored.num_delivered)
            self._give(request, msg)

    def _give(self, request: _Request, msg: FakeMsg) -> None:
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
            assert request.timer is not None
            request.timer.cancel()
            self._requests.remove(request)

    def forget_deliveries(self) -> None:
        """Deliver again what is out: the server was killed before that was on its disk."""
        for stored in list(self._stored.values()):
            if stored.timer is not None:
                stored.num_delivered -= 1
                self._wait(stored)

    def lose_connections(self) -> None:
        for link in list(self._broker.links.values()):
            self.forget_requests(link)


class FakeMsg:
    """What `JobQueue` uses of nats-py's `Msg`."""

    def __init__(
        self, subject: str, data: bytes, headers: dict[str, str], link: FakeLink | None, number: int | None, num: int
    ) -> None:
        self.subject, self.data, self.headers = subject, data, headers
        self.metadata = SimpleNamespace(num_delivered=num)
        self._link, self._number = link, number

    async def ack_sync(self, timeout: float) -> None:  # noqa: ASYNC109 - nats-py's signature
        assert self._link is not None
        await call_server(self._link, timeout, lambda: self._stream.ack(self._as_int))

    async def in_progress(self) -> None:
        self._send(self._stream.prolong)

    async def nak(self, delay: float = 0.0) -> None:
        self._send(self._stream.nak, delay)

    async def term(self) -> None:
        self._send(self._stream.ack)

    @property
    def _stream(self) -> FakeStream:
        assert self._link is not None
        return self._link.broker.stream

    @property
    def _as_int(self) -> int:
        assert self._number is not None
        return self._number

    def _send(self, call: Callable[..., None], *args: float) -> None:
        assert self._link is not None
        send(self._link, call, self._as_int, *args)


def send(link: FakeLink, call: Callable[..., object], *args: object) -> None:
    """Publish something to JetStream; nobody says whether it arrived."""
    if not link.is_connected:
        raise nats.errors.OutboundBufferLimitError
    if not link.process.is_dead:
        link.to_server("small", call, *args)


async def call_server(link: FakeLink, timeout_s: float, call: Callable[[], T]) -> T:
    """Ask JetStream for something; where request or answer is lost, wait for nothing."""
    answer: asyncio.Future[tuple[T | None, Exception | None]] = link.broker.loop.create_future()

    def take(result: T | None, error: Exception | None) -> None:
        if not answer.done():
            answer.set_result((result, error))

    def at_server() -> None:
        try:
            link.deliver("small", take, call(), None)
        except NotFoundError as error:
            link.deliver("small", take, None, error)

    send(link, at_server)
    try:
        async with asyncio.timeout(timeout_s):
            result, error = await answer
    except TimeoutError:
        raise nats.errors.TimeoutError from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


class FakeJetStream:
    """What storage uses of `JetStream`."""

    max_message_bytes = 2**20

    def __init__(self, link: FakeLink, timeout_s: float) -> None:
        self._link, self._timeout_s = link, timeout_s
        self.client = _Client(link)

    @property
    def _stream(self) -> FakeStream:
        return self._link.broker.stream

    def _call(self, call: Callable[[], T]) -> Awaitable[T]:
        return call_server(self._link, self._timeout_s, call)

    async def stream_info(self, name: str) -> SimpleNamespace:
        return await self._call(lambda: self._info(name))

    def _info(self, name: str) -> SimpleNamespace:
        if name not in self._stream.names:
            raise NotFoundError
        return SimpleNamespace(created=_MADE_AT, state=SimpleNamespace(bytes=0))

    async def add_stream(self, config: Any) -> SimpleNamespace:
        await self._call(lambda: self._stream.names.add(config.name))
        return self._info(config.name)

    async def consumers_info(self, _: str) -> list[SimpleNamespace]:
        return await self._call(lambda: [SimpleNamespace(name=name) for name in self._stream.consumers])

    async def consumer_info(self, _: str, consumer: str) -> SimpleNamespace:
        return await self._call(lambda: self._consumer_info(consumer))

    def _consumer_info(self, consumer: str) -> SimpleNamespace:
        if consumer not in self._stream.consumers:
            raise NotFoundError
        num_waiting = self._stream.num_waiting
        return SimpleNamespace(num_pending=num_waiting, num_ack_pending=len(self._stream) - num_waiting)

    async def add_consumer(self, _: str, config: Any) -> None:
        await self._call(lambda: self._stream.consumers.update({config.durable_name: config.ack_wait}))

    async def publish(self, _: str, data: bytes, *, stream: str, headers: dict[str, str]) -> SimpleNamespace:
        assert stream in self._stream.names
        return SimpleNamespace(duplicate=await self._call(lambda: self._stream.add(data, headers)))


class _Client:
    """What `PullSubscription` uses of nats-py's client."""

    def __init__(self, link: FakeLink) -> None:
        self._link = link
        self._take: Callable[[FakeMsg], None] | None = None

    def new_inbox(self) -> str:
        return f"pull.{self._link.process.name}"

    async def subscribe(self, _: str, cb: Callable[[FakeMsg], Awaitable[None]]) -> SimpleNamespace:
        def take(msg: FakeMsg) -> None:
            if self._take is take:
                with suppress(StopIteration):
                    cb(msg).send(None)  # type: ignore[attr-defined]  # waits for nothing

        async def unsubscribe() -> None:
            self._take = None

        self._take = take
        return SimpleNamespace(unsubscribe=unsubscribe)

    async def publish(self, subject: str, request: bytes, reply: str) -> None:
        assert subject.startswith("$JS.API.CONSUMER.MSG.NEXT.")
        assert self._take is not None
        expires_s = msgspec.json.decode(request)["expires"] / 1e9
        send(self._link, self._link.broker.stream.ask, _Request(self._link, reply, self._take), expires_s)
