"""Pulls messages of JetStream consumers, and loses none when whoever pulls is cancelled.

nats-py's own pull subscription is not used: a cancelled `fetch` may take a message with it (it comes back after
`ack_wait`), and a `fetch` for several stalls although messages wait (its issue 986).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from broker_pipeline.errors import TransportError
from broker_pipeline.storage.jetstream import is_missing, jetstream_errors
from broker_pipeline.wire.nats.jetstream import JetStream

log = structlog.get_logger()

_ANSWER_S = 0.5
"""How long an answer may take. A server that restarts meanwhile never answers; nor does one before 2.10 for a consumer
that is gone."""
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class _Arrived:
    msg: Msg
    at: float


@dataclass(slots=True)
class _Request:
    """What a consumer was asked for: so many messages that are there."""

    reply: str
    num_left: int
    end: Msg | None = None
    """The server's word that there are no more."""

    @property
    def is_answered(self) -> bool:
        return self.end is not None or self.num_left <= 0


@dataclass(slots=True)
class PullSubscription:
    """One inbox, and requests for messages that are there, which are answered there at once."""

    jetstream: JetStream
    stream: str
    ack_wait_s: float
    _inbox: str = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _arrived: asyncio.Queue[_Arrived] = field(default_factory=asyncio.Queue)
    _subscription: Subscription | None = None
    _open: dict[str, _Request] = field(default_factory=dict)
    """The last ones, by consumer, also when their `fetch` was cancelled; the end of an earlier one says nothing."""
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._inbox = self.jetstream.client.new_inbox()

    async def open(self) -> None:
        """Subscribe to the inbox; requests take the same connection, so that their answers come behind that."""
        with jetstream_errors("the job queue"):
            self._subscription = await self.jetstream.client.subscribe(f"{self._inbox}.*", cb=self._on_message)

    @property
    def has_arrived(self) -> bool:
        """Whether messages have arrived that nobody took yet."""
        return not self._arrived.empty()

    def take_arrived(self, now: float) -> Msg | None:
        """Return the next message that has arrived, if there is one."""
        while not self._arrived.empty():
            arrived = self._arrived.get_nowait()
            # What has lain here for longer than `ack_wait_s`, the server gives to somebody else by now.
            if now - arrived.at < self.ack_wait_s:
                return arrived.msg
        return None

    async def fetch(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Ask consumers for so many messages each that are there; return how many have come of which.

        No request stays open: what is handed back from a conductor that hangs would be given to it once more. Raises
        `TransportError` where a consumer is gone.
        """
        if self._subscription is None:
            raise TransportError("pulling needs `async with queue:` around it")
        self._answered.clear()
        self._open = {name: _Request(f"{self._inbox}.{next(self._numbers)}", num) for name, num in wanted.items()}
        asked = self._open
        for consumer, request in asked.items():
            await self._ask(consumer, request)
        await self._until_answered()
        for consumer, request in asked.items():
            if not request.is_answered and await is_missing(self.jetstream, self.stream, consumer):
                raise TransportError("the job queue is gone: its stream or its consumer was deleted")
        ends = [_is_hasty(request.end) for request in asked.values() if request.end is not None]
        if any(ends):
            await asyncio.sleep(_PAUSE_S)
        return {consumer: wanted[consumer] - max(0, request.num_left) for consumer, request in asked.items()}

    async def _until_answered(self) -> None:
        if not all(request.is_answered for request in self._open.values()):
            with suppress(TimeoutError):
                async with asyncio.timeout(_ANSWER_S):
                    await self._answered.wait()

    async def _ask(self, consumer: str, request: _Request) -> None:
        with jetstream_errors("the job queue"):
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}"
            content = msgspec.json.encode({"batch": request.num_left, "no_wait": True})
            await self.jetstream.client.publish(subject, content, request.reply)

    async def close(self) -> None:
        """Unsubscribe, and requeue what has arrived but was taken by nobody.

        A request that is under way is waited for: what it brings would come back after `ack_wait_s` only.
        """
        if self._subscription is not None:
            await self._until_answered()
            with suppress(nats.errors.Error):  # a connection that is gone asks for nothing anyway
                await self._subscription.unsubscribe()
            self._subscription = None
        while msg := self.take_arrived(asyncio.get_running_loop().time()):
            try:
                await msg.nak()
            except nats.errors.Error as error:
                log.warning("job_not_requeued", reason=str(error), comes_back_after_s=self.ack_wait_s)

    async def _on_message(self, msg: Msg) -> None:
        if msg.subject.startswith(f"{self._inbox}."):  # messages keep the subject that they were published to
            for request in self._open.values():
                if request.reply == msg.subject:
                    request.end = msg
        else:
            self._arrived.put_nowait(_Arrived(msg, asyncio.get_running_loop().time()))
            if asked := self._open.get(msg.metadata.consumer):
                asked.num_left -= 1
        if all(request.is_answered for request in self._open.values()):
            self._answered.set()


def _is_hasty(end: Msg) -> bool:
    """Look at the server's word that a request has ended; whether the next one had better wait.

    Raises `TransportError` when asking again is in vain.
    """
    headers = end.headers or {}
    status = headers.get("Status", "")
    description = headers.get("Description", "")
    if status in {"404", "408"}:
        return False  # there are no more
    if status == "409" and "deleted" not in description.lower():
        return True  # the server restarts, or there are too many requests or jobs in progress
    if status == "503":
        raise TransportError("the job queue is not there: no JetStream answers, or nobody has made the queue")
    raise TransportError(f"the job queue: {status} {description}".rstrip())
