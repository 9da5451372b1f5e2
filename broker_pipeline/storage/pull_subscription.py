"""Pulls messages of a JetStream consumer, and loses none when whoever pulls is cancelled.

nats-py's own pull subscription is not used: a cancelled `fetch` may take a message with it (it comes back after
`ack_wait`), and a `fetch` for several stalls although messages wait (its issue 986).
"""

from __future__ import annotations

import asyncio
import itertools
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

_PULL_S = 0.5
"""How long a request stays open: shorter than it takes to find out that a conductor hangs or is cut off. What is handed
back from it then would be given to it once more."""
_GRACE_S = 0.25
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class _Arrived:
    msg: Msg
    at: float


@dataclass(slots=True)
class PullSubscription:
    """One inbox, and short requests for a few messages each that are answered there."""

    jetstream: JetStream
    stream: str
    ack_wait_s: float
    _inbox: str = field(init=False)
    _requests: itertools.count[int] = field(default_factory=itertools.count)
    _arrived: asyncio.Queue[_Arrived] = field(default_factory=asyncio.Queue)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _subscription: Subscription | None = None
    _asking: str = ""
    """Where the request is answered that somebody waits for; the end of an earlier one says nothing to anybody."""

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

    async def next(self, consumer: str, deadline: float, num_wanted: int = 1) -> Msg | None:
        """Return the consumer's next message, or None at `deadline` (of the loop's clock).

        Where it has to ask, it asks for `num_wanted` that are there: the others are returned by the next calls.
        """
        if self._subscription is None:
            raise TransportError("pulling needs `async with queue:` around it")
        loop = asyncio.get_running_loop()
        async with self._turn:
            while True:
                if msg := self._take_arrived(loop.time()):
                    return msg
                remaining_s = deadline - loop.time()
                if remaining_s <= 0:
                    return None
                if msg := await self._ask(consumer, min(remaining_s, _PULL_S), num_wanted):
                    return msg

    async def close(self) -> None:
        """Unsubscribe, and requeue what has arrived but was taken by nobody."""
        if self._subscription is None:
            return
        with suppress(nats.errors.Error):  # a connection that is gone asks for nothing anyway
            await self._subscription.unsubscribe()
        self._subscription = None
        while msg := self._take_arrived(asyncio.get_running_loop().time()):
            try:
                await msg.nak()
            except nats.errors.Error as error:
                log.warning("job_not_requeued", reason=str(error), comes_back_after_s=self.ack_wait_s)

    def _take_arrived(self, now: float) -> Msg | None:
        while not self._arrived.empty():
            arrived = self._arrived.get_nowait()
            # What has lain here for longer than `ack_wait_s`, the server gives to somebody else by now.
            if not self._is_status(arrived.msg) and now - arrived.at < self.ack_wait_s:
                return arrived.msg
        return None

    async def _ask(self, consumer: str, wait_s: float, num_wanted: int) -> Msg | None:
        """Ask for messages; return the first as soon as it came, or None at the word that there is none.

        Each request is short, since one that is open while the server restarts is never answered. Nor is one to a
        consumer that is gone by a server before 2.10.
        """
        reply = self._asking = f"{self._inbox}.{next(self._requests)}"
        # `no_wait` ends a request that found some messages, though fewer than it asks for: none is open for long.
        request = msgspec.json.encode({"batch": num_wanted, "expires": int(wait_s * 1e9), "no_wait": num_wanted > 1})
        with jetstream_errors("the job queue"):
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}"
            await self.jetstream.client.publish(subject, request, reply)
        try:
            async with asyncio.timeout(wait_s + _GRACE_S):
                arrived = await self._arrived.get()
        except TimeoutError:
            if await is_missing(self.jetstream, self.stream, consumer):
                raise TransportError("the job queue is gone: its stream or its consumer was deleted") from None
            return None
        finally:
            self._asking = ""
        if not self._is_status(arrived.msg):
            return arrived.msg
        if _is_hasty(arrived.msg):
            await asyncio.sleep(_PAUSE_S)
        return None

    def _is_status(self, msg: Msg) -> bool:
        """Whether the server speaks of a request; messages keep the subject that they were published to."""
        return msg.subject.startswith(f"{self._inbox}.")

    async def _on_message(self, msg: Msg) -> None:
        if self._is_status(msg) and msg.subject != self._asking:
            return
        self._asking = ""  # what was waited for is here
        self._arrived.put_nowait(_Arrived(msg, asyncio.get_running_loop().time()))


def _is_hasty(msg: Msg) -> bool:
    """Look at the server's answer to a request that brought no message; whether it came before the request's time.

    Raises `TransportError` when asking again is in vain.
    """
    headers = msg.headers or {}
    status = headers.get("Status", "")
    description = headers.get("Description", "")
    if status in {"404", "408"}:
        return False  # none has come
    if status == "409" and "deleted" not in description.lower():
        return True  # the server restarts, or there are too many requests or jobs in progress
    if status == "503":
        raise TransportError("the job queue is not there: no JetStream answers, or nobody has made the queue")
    raise TransportError(f"the job queue: {status} {description}".rstrip())
