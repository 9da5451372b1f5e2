"""The queue of jobs: a JetStream work queue that every conductor pulls from.

    publish ──► stream (file, work queue, refuses when full) ──► a durable consumer ──► pull ──► ack: gone
        │                                                        for each flow               │
        └── call ──► whoever waits for a job                          ▲                      │
                                                                      └── ack_wait passed, or retry(delay)

Whoever pulls looks how many jobs each flow has, and decides by a plan how many to ask which flow for. Nobody keeps a
request open: without jobs, a pull waits for a call and, since that may be lost, looks again every half second.

At least once: a job is gone only when its acknowledgement has reached the server. A delivery that lasts says
`in_progress` more often than every `ack_wait_s`, so that the job of a conductor that dies comes back that soon. An
acknowledgement is no fence (the server takes a late one as well): what a late conductor may still write is decided
by the attempt in Redis.

What somebody deletes is made again by whoever misses it first (see `job_stream`): a new consumer delivers all jobs of
its flow that the stream still has.

The message of a job does not say its priority, its subject does: conductors of earlier releases can run it as well.

The server is given no `max_deliver`: messages beyond it would stay in a work queue, delivered to nobody. How often a
job may be delivered is for the conductor to decide, from `Delivery.num_deliveries`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

import msgspec
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js.api import PubAck

from broker_pipeline import subjects
from broker_pipeline.errors import MalformedEnvelopeError, PayloadTooLargeError, TransportError
from broker_pipeline.messages.jobs import Flow, JobSpec, Priority
from broker_pipeline.scheduling.policies.fair_shares import FairShares
from broker_pipeline.storage.jetstream import jetstream_errors
from broker_pipeline.storage.job_stream import JobStream, Outstanding
from broker_pipeline.storage.pull_subscription import PullSubscription
from broker_pipeline.wire.nats.jetstream import JetStream
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

MAX_JOBS = 1_000_000
MAX_QUEUE_BYTES = 2**30
MAX_JOB_BYTES = 4 * 2**20
ACK_WAIT_S = 10.0
_MSG_ID_HEADER = "Nats-Msg-Id"
_DELIVERY = re.compile(subjects.DELIVERY)

_LOOK_EVERY_S = 0.5
"""How often somebody who waits for a job looks without being called: a retried job calls nobody."""
_LOOK_PAUSE_S = 0.01
"""From one look to the next: what comes in a stream is pulled several jobs at a time, what comes alone at once."""

OnUnreadable = Callable[[str, MalformedEnvelopeError], Awaitable[None]]
Plan = Callable[[Mapping[Flow, int], int], Mapping[Flow, int]]
"""Says of the jobs of each flow, those in progress included, how many to ask for, so many in all."""


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many jobs there are: not yet delivered, and delivered but not acknowledged."""

    num_waiting: int
    num_in_progress: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery of a job. Exactly one of `ack`, `retry` and `terminate` ends it.

    All raise `TransportError` when the server cannot be reached; the job then comes back after `ack_wait_s`.
    """

    spec: JobSpec
    num_deliveries: int
    """1 for the first."""
    _msg: Msg

    @property
    def name(self) -> str:
        """What `JobQueue.hand_back` knows it by."""
        return self._msg.reply

    async def ack(self, timeout_s: float | None = 5.0) -> None:
        """Take the job out of the queue; returns when the server has confirmed it, or at once with None.

        A server that was killed meanwhile may have forgotten that the job was out; it then confirms nothing
        (`RequestTimeoutError`) and delivers the job again.
        """
        with jetstream_errors(f"acknowledging job {self.spec.job_id}"):
            await (self._msg.ack() if timeout_s is None else self._msg.ack_sync(timeout=timeout_s))

    async def in_progress(self) -> None:
        """Say that the job is being worked on, which starts `ack_wait_s` anew."""
        with jetstream_errors(f"prolonging job {self.spec.job_id}"):
            await self._msg.in_progress()

    async def retry(self, delay_s: float = 0.0) -> None:
        """Requeue the job; it is delivered again, to any conductor, after `delay_s` seconds."""
        with jetstream_errors(f"requeueing job {self.spec.job_id}"):
            await self._msg.nak(delay=delay_s)

    async def terminate(self) -> None:
        """Take the job out of the queue as one that nobody can run."""
        with jetstream_errors(f"terminating job {self.spec.job_id}"):
            await self._msg.term()


class JobQueue:
    """The queue of one namespace. Publishing needs `ensure`d; pulling needs `async with queue:` around it."""

    def __init__(
        self,
        transport: Transport,
        namespace: str,
        *,
        max_jobs: int = MAX_JOBS,
        max_bytes: int = MAX_QUEUE_BYTES,
        ack_wait_s: float = ACK_WAIT_S,
        num_replicas: int = 1,
        on_unreadable: OnUnreadable | None = None,
    ) -> None:
        """Tell `on_unreadable(job_id, error)` of messages that hold no job, before they are dropped."""
        self.ack_wait_s = ack_wait_s
        self.max_jobs = max_jobs
        self._jetstream = transport.jetstream()
        self._namespace = namespace
        self._on_unreadable = on_unreadable
        self._stream = JobStream(
            jetstream=self._jetstream,
            namespace=namespace,
            max_jobs=max_jobs,
            max_bytes=max_bytes,
            max_job_bytes=lambda: self.max_job_bytes,
            ack_wait_s=ack_wait_s,
            num_replicas=num_replicas,
        )
        self._puller = PullSubscription(self._jetstream, self._stream.name, ack_wait_s)
        self._calls = _Calls(self._jetstream, subjects.job_calls(namespace))
        self._turn = asyncio.Lock()
        self._look_at = 0.0
        """Not before this time of the event loop."""

    @property
    def max_job_bytes(self) -> int:
        """Most bytes of one job as JSON; the server may allow less than we would."""
        return min(MAX_JOB_BYTES, self._jetstream.max_message_bytes)

    async def ensure(self, *, update: bool = True) -> None:
        """Make the stream; with `update`, give an existing one this queue's limits.

        Those who only pull leave the limits to those who publish: `update=False`. Raises what `ensure_stream` raises.
        """
        await self._stream.ensure(update=update)

    async def made_at(self) -> datetime:
        """Return when the queue was made: what it was given before that is gone."""
        return await self._stream.outlasting_loss(self._stream.made_at)

    async def publish(self, spec: JobSpec, *, occasion: str = "") -> bool:
        """Add a job; returns when it is on the server's disk. False: the queue has (or lately had) it already.

        `occasion` tells a job that is sent again on purpose from one that is published twice by accident. Raises
        `QueueFullError` when the queue has no room, `PayloadTooLargeError` for a job of too many bytes,
        `TransportError` when the server does not answer (whether it has the job is then unknown; publishing again
        is safe).
        """
        content = msgspec.json.encode(msgspec.structs.replace(spec, priority="interactive"))
        subject = subjects.job_queue_subject(self._namespace, *spec.flow)
        if len(content) > self.max_job_bytes:
            raise PayloadTooLargeError(f"the job has {len(content)} bytes; the queue takes {self.max_job_bytes}")
        headers = {_MSG_ID_HEADER: f"{spec.job_id}.{occasion}" if occasion else spec.job_id}

        async def send() -> PubAck:
            with jetstream_errors("the job queue"):
                return await self._jetstream.publish(subject, content, stream=self._stream.name, headers=headers)

        answer = await self._stream.outlasting_loss(send)
        await self._calls.call()
        return not answer.duplicate

    async def depth(self) -> QueueDepth:
        """Count the jobs in the queue."""

        async def ask() -> tuple[int, int]:
            # In this order: a job that ends in between is not one that waits.
            num_in_progress = await self._stream.num_in_progress()
            return sum((await self._stream.backlog()).values()), num_in_progress

        num_jobs, num_in_progress = await self._stream.outlasting_loss(ask)
        return QueueDepth(num_waiting=max(0, num_jobs - num_in_progress), num_in_progress=num_in_progress)

    async def fullness(self) -> float:
        """Return how full the queue is: 1 takes no job any more. Raises `TransportError`."""
        return await self._stream.outlasting_loss(self._stream.fullness)

    async def hand_back(self, delivery: str) -> None:
        """Have a job delivered again at once whose `delivery` (its name) a process had that is gone.

        What was acknowledged or delivered again since stays as it is. Raises `TransportError`.
        """
        if _DELIVERY.fullmatch(delivery) is None:
            raise TransportError(f"{delivery[:64]!r} is no delivery")
        with jetstream_errors("handing a job back"):
            await self._jetstream.client.publish(delivery, b"-NAK")
        await self._calls.call()

    async def outstanding(self) -> list[Outstanding]:
        """Return what is delivered at this moment and not acknowledged, and some of what was."""
        return await self._stream.outlasting_loss(self._stream.outstanding)

    async def hand_back_unheld(self, outstanding: Sequence[Outstanding], held: Collection[str]) -> None:
        """Have jobs delivered again at once that were `outstanding` and are in nobody's hands.

        They went to a process that died before it could say that it has them. `held` are the deliveries of which
        somebody has said so. The server passes over what was acknowledged. Raises `TransportError`.
        """
        known = {(found["consumer"], int(found["number"])) for name in held if (found := _DELIVERY.fullmatch(name))}
        with jetstream_errors("handing jobs back"):
            for each in outstanding:
                for number in each.numbers:
                    if (each.consumer, number) not in known:
                        name = f"$JS.ACK.{self._stream.name}.{each.consumer}.1.{number}.{each.num_deliveries}.0.0"
                        await self._jetstream.client.publish(name, b"-NAK")
                await asyncio.sleep(0)  # they may be many
        await self._calls.call()

    # --- pulling ---

    @property
    def has_arrived(self) -> bool:
        """Whether a job is here already, which `pull` returns without asking the server."""
        return self._puller.has_arrived

    async def pull(self, timeout_s: float = 1.0, num_wanted: int = 1, plan: Plan | None = None) -> Delivery | None:
        """Return the next job, or None when none has come within `timeout_s` seconds.

        Up to `num_wanted` that are there are asked for together, of the flows that `plan` says, or some of each:
        whoever asks for many calls as often, and soon. Who asks for one at a time gets a hundred a second: the server
        is asked every `_LOOK_PAUSE_S` at most.

        May be cancelled: a job that arrives afterwards is kept for the next call, or requeued by `close`. Raises
        `TransportError` when the server cannot be reached, or has lost the queue and has no room for another.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        plan = plan or FairShares().plan
        async with self._turn:
            while (msg := await self._next(deadline, num_wanted, plan)) is not None:
                if delivery := await self._delivery(msg):
                    return delivery
        return None

    async def _next(self, deadline: float, num_wanted: int, plan: Plan) -> Msg | None:
        loop = asyncio.get_running_loop()
        while (msg := self._puller.take_arrived(loop.time())) is None:
            await asyncio.sleep(self._look_at - loop.time())
            self._look_at = loop.time() + _LOOK_PAUSE_S
            self._calls.clear()
            await self._stream.outlasting_loss(lambda: self._fetch(num_wanted, plan))
            if not self._puller.has_arrived:
                is_called = await self._calls.wait(min(deadline - loop.time(), _LOOK_EVERY_S))
                if not is_called and loop.time() >= deadline:
                    return None
        return msg

    async def _fetch(self, num_wanted: int, plan: Plan) -> None:
        """Ask for jobs that are there. Where fewer come of a flow, the others are in progress: of other flows then."""
        backlog = await self._stream.backlog()
        while num_wanted > 0 and (planned := plan(backlog, num_wanted)):
            consumers = {await self._stream.consumer(flow): flow for flow in planned}
            for name, num in (await self._puller.fetch({name: planned[consumers[name]] for name in consumers})).items():
                flow, num_wanted = consumers[name], num_wanted - num
                backlog[flow] -= num if num == planned[flow] else backlog[flow]

    async def _delivery(self, msg: Msg) -> Delivery | None:
        try:
            spec = msgspec.json.decode(msg.data, type=JobSpec)
        except (msgspec.MsgspecError, ValueError) as error:
            await self._drop_unreadable(msg, MalformedEnvelopeError(f"the queue holds what is no job: {error}"))
            return None
        priority, _ = subjects.job_flow(self._namespace, msg.subject)
        spec = msgspec.structs.replace(spec, priority=cast("Priority", priority))
        return Delivery(spec, msg.metadata.num_delivered, msg)

    async def _drop_unreadable(self, msg: Msg, error: MalformedEnvelopeError) -> None:
        job_id = (msg.headers or {}).get(_MSG_ID_HEADER, "").partition(".")[0]
        log.error("job_unreadable", job=job_id, reason=str(error), num_bytes=len(msg.data))
        if self._on_unreadable:
            await self._on_unreadable(job_id, error)
        with jetstream_errors(f"dropping unreadable job {job_id}"):
            await msg.term()

    async def __aenter__(self) -> JobQueue:
        await self._puller.open()
        await self._calls.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop pulling, and requeue what has arrived but was taken by nobody."""
        await self._calls.close()
        await self._puller.close()


@dataclass(slots=True, eq=False)
class _Calls:
    """Word between those who add jobs and those who wait for one; it may be lost."""

    jetstream: JetStream
    subject: str
    _called: asyncio.Event = field(default_factory=asyncio.Event)
    _subscription: Subscription | None = None

    async def call(self) -> None:
        with suppress(nats.errors.Error, OSError):  # whoever waits looks by itself soon
            await self.jetstream.client.publish(self.subject)

    async def open(self) -> None:
        with jetstream_errors("the job queue"):
            self._subscription = await self.jetstream.client.subscribe(self.subject, cb=self._on_call)

    async def close(self) -> None:
        if self._subscription is not None:
            with suppress(nats.errors.Error):
                await self._subscription.unsubscribe()
            self._subscription = None

    def clear(self) -> None:
        self._called.clear()

    async def wait(self, timeout_s: float) -> bool:
        """Return whether somebody has called since the last `clear`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._called.wait()
        return self._called.is_set()

    async def _on_call(self, _: Msg) -> None:
        self._called.set()
