"""A process's view of JetStream, as `JobQueue` and `MediaStore` use it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from nats.js.errors import NotFoundError

from tests.simulation.fake_nats.message import ACK, FakeMsg, call_server, send
from tests.simulation.fake_nats.stream import FakeStream, Request

if TYPE_CHECKING:
    from tests.simulation.fake_nats.link import FakeLink

T = TypeVar("T")
_MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)


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

    async def publish(self, subject: str, request: bytes, reply: str = "") -> None:
        if subject.startswith(ACK):
            assert request == b"-NAK"
            send(self._link, self._link.broker.stream.nak, int(subject.rpartition(".")[2]), 0.0)
            return
        assert subject.startswith("$JS.API.CONSUMER.MSG.NEXT.")
        assert self._take is not None
        asked = msgspec.json.decode(request)
        ask = Request(self._link, reply, self._take, asked["batch"], asked["no_wait"])
        send(self._link, self._link.broker.stream.ask, ask, asked["expires"] / 1e9)
