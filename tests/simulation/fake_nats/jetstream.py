"""A process's view of JetStream, as `JobQueue` and `MediaStore` use it."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from nats.js.errors import NotFoundError

from tests.simulation.fake_nats.message import ACK, FakeMsg, call_server, send
from tests.simulation.fake_nats.stream import FakeStream

if TYPE_CHECKING:
    from tests.simulation.fake_nats.link import FakeLink

T = TypeVar("T")
CALLS = ".queue.calls"
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

    async def stream_info(self, name: str, subjects_filter: str = "") -> SimpleNamespace:
        assert subjects_filter in ("", ">")
        return await self._call(lambda: self._info(name))

    def _info(self, name: str) -> SimpleNamespace:
        if name not in self._stream.names:
            raise NotFoundError
        return SimpleNamespace(created=_MADE_AT, state=SimpleNamespace(bytes=0, subjects=self._stream.subjects))

    async def add_stream(self, config: Any) -> SimpleNamespace:
        await self._call(lambda: self._stream.names.add(config.name))
        return self._info(config.name)

    async def consumers_info(self, _: str, offset: int = 0) -> list[SimpleNamespace]:
        return await self._call(lambda: [self._consumer_info(name) for name in list(self._stream.consumers)[offset:]])

    async def consumer_info(self, _: str, consumer: str) -> SimpleNamespace:
        return await self._call(lambda: self._consumer_info(consumer))

    def _consumer_info(self, consumer: str) -> SimpleNamespace:
        if consumer not in self._stream.consumers:
            raise NotFoundError
        return SimpleNamespace(
            name=consumer,
            num_ack_pending=self._stream.num_in_progress(consumer),
            ack_floor=SimpleNamespace(stream_seq=0),
            delivered=SimpleNamespace(stream_seq=self._stream.last_number, consumer_seq=1),
        )

    async def add_consumer(self, _: str, config: Any) -> None:
        filtered = {config.durable_name: (config.filter_subject, config.ack_wait)}
        await self._call(lambda: self._stream.consumers.update(filtered))

    async def publish(self, subject: str, data: bytes, *, stream: str, headers: dict[str, str]) -> SimpleNamespace:
        assert stream in self._stream.names
        return SimpleNamespace(duplicate=await self._call(lambda: self._stream.add(subject, data, headers)))


class _Client:
    """What `PullSubscription` uses of nats-py's client."""

    def __init__(self, link: FakeLink) -> None:
        self._link = link
        self._takes: dict[str, Callable[[FakeMsg], None]] = {}
        self._numbers = itertools.count()

    def new_inbox(self) -> str:
        return f"pull.{self._link.process.name}.{next(self._numbers)}"

    async def subscribe(self, subject: str, cb: Callable[[FakeMsg], Awaitable[None]]) -> SimpleNamespace:
        callers = self._link.broker.callers

        def take(msg: FakeMsg) -> None:
            if self._takes.get(subject) is take:
                with suppress(StopIteration):
                    cb(msg).send(None)  # type: ignore[attr-defined]  # waits for nothing

        async def unsubscribe() -> None:
            del self._takes[subject]
            callers.pop(take, None)

        self._takes[subject] = take
        if subject.endswith(CALLS):
            callers[take] = self._link
        return SimpleNamespace(unsubscribe=unsubscribe)

    async def publish(self, subject: str, request: bytes = b"", reply: str = "") -> None:
        if subject.endswith(CALLS):
            send(self._link, self._link.broker.call_pullers, subject)
            return
        if subject.startswith(ACK):
            assert request == b"-NAK"
            send(self._link, self._link.broker.stream.nak, int(subject.split(".")[5]), 0.0)
            return
        assert subject.startswith("$JS.API.CONSUMER.MSG.NEXT.")
        asked = msgspec.json.decode(request)
        assert asked["no_wait"]
        take = self._takes[f"{reply.rpartition('.')[0]}.*"]
        send(
            self._link,
            self._link.broker.stream.ask,
            subject.rpartition(".")[2],
            self._link,
            reply,
            take,
            asked["batch"],
        )
