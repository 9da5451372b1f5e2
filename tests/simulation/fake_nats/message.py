"""A delivered job, and how a process speaks to JetStream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar

import nats.errors
from nats.errors import MsgAlreadyAckdError
from nats.js.errors import NotFoundError

if TYPE_CHECKING:
    from tests.simulation.fake_nats.link import FakeLink
    from tests.simulation.fake_nats.stream import FakeStream

T = TypeVar("T")
ACK = "$JS.ACK"


class FakeMsg:
    """What `JobQueue` uses of nats-py's `Msg`."""

    def __init__(
        self,
        subject: str,
        data: bytes,
        headers: dict[str, str],
        link: FakeLink | None,
        number: int | None,
        num: int,
        consumer: str = "",
    ) -> None:
        self.subject, self.data, self.headers = subject, data, headers
        self.metadata = SimpleNamespace(num_delivered=num, consumer=consumer)
        self._link, self._number = link, number
        self.reply = f"{ACK}.jobs.{consumer}.{num}.{number}.1.0.0"
        self._is_ended = False

    async def ack(self) -> None:
        self._end(self._stream.ack)

    async def ack_sync(self, timeout: float) -> None:  # noqa: ASYNC109 - nats-py's signature
        self._check_ended()
        assert self._link is not None
        await call_server(self._link, timeout, lambda: self._stream.ack(self._as_int))
        self._is_ended = True

    async def in_progress(self) -> None:
        self._send(self._stream.prolong)

    async def nak(self, delay: float = 0.0) -> None:
        self._end(self._stream.nak, delay)

    async def term(self) -> None:
        self._end(self._stream.ack)

    def _end(self, call: Callable[..., None], *args: float) -> None:
        self._check_ended()
        self._send(call, *args)
        self._is_ended = True

    def _check_ended(self) -> None:
        if self._is_ended:
            raise MsgAlreadyAckdError(self)

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
