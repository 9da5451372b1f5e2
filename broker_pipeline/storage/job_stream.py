"""Stream and consumers under the job queue, made again where somebody has deleted them.

    stream   NS.queue.jobs                      ──► consumer NS-interactive-=-…      nobody's interactive jobs
             NS.queue.jobs.interactive.alice    ──► consumer NS-interactive-alice-…  one for each flow that has jobs,
             NS.queue.jobs.batch.alice          ──► consumer NS-batch-alice-…        made when one is pulled first

A consumer's name holds the time at which its stream was made. An acknowledgement names stream, consumer and number of
a message: a late one would otherwise take another job of the same number out of a stream that was made again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar, cast

import structlog
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import APIError

from broker_pipeline import subjects
from broker_pipeline.errors import QueueFullError, RequestTimeoutError, TransportError
from broker_pipeline.messages.jobs import Flow, Priority
from broker_pipeline.storage.jetstream import ensure_stream, is_missing, jetstream_errors
from broker_pipeline.wire.nats.jetstream import JetStream

MAX_IN_PROGRESS = 65_536
DUPLICATE_WINDOW_S = 120.0
_HEADER_BYTES = 1024  # which the server counts as well
_UNUSED_S = 3600.0
"""After so long without anybody pulling from it, the server drops a consumer: of a tenant that has no jobs any more."""
_CONSUMERS_PAGE = 256
_MOST_OUTSTANDING = 1024
_OTHER_CONSUMERS = frozenset({10099, 10100})
"""The server's errors where another consumer of the work queue has (some of) the same messages."""

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outstanding:
    """What of a consumer may be delivered and not acknowledged: numbers of messages, the newest ones."""

    consumer: str
    numbers: range
    num_deliveries: int
    """Of the consumer, up to now."""


@dataclass(slots=True, kw_only=True)
class JobStream:
    """What the server keeps for the queue of one namespace."""

    jetstream: JetStream
    namespace: str
    max_jobs: int
    max_bytes: int
    max_job_bytes: Callable[[], int]
    ack_wait_s: float
    num_replicas: int
    _sets_limits: bool = False
    _consumers: set[str] = field(default_factory=set)
    """Names of those that are there."""
    _made_at: datetime | None = None

    @property
    def name(self) -> str:
        """The stream's name."""
        return subjects.job_stream(self.namespace)

    async def ensure(self, *, update: bool) -> None:
        """Make the stream; with `update`, give an existing one these limits. Raises what `ensure_stream` raises."""
        self._sets_limits = update
        self._made_at = _made_at(await ensure_stream(self.jetstream, self._stream_config(), update=update))

    async def made_at(self) -> datetime:
        """Return when the stream was made."""
        with jetstream_errors("the job queue"):
            return _made_at(await self.jetstream.stream_info(self.name))

    async def backlog(self) -> dict[Flow, int]:
        """Return how many jobs each flow has that has any, those in progress included."""
        with jetstream_errors("the job queue"):
            info = await self.jetstream.stream_info(self.name, subjects_filter=">")
        self._made_at = _made_at(info)
        flows = ((subjects.job_flow(self.namespace, each), num) for each, num in (info.state.subjects or {}).items())
        return {Flow(cast("Priority", priority), tenant): num for (priority, tenant), num in flows}

    async def fullness(self) -> float:
        """Return the share of its room that the stream has used, by jobs or by bytes."""
        with jetstream_errors("the job queue"):
            state = (await self.jetstream.stream_info(self.name)).state
        return max(state.messages / self.max_jobs, state.bytes / self.max_bytes)

    async def consumer(self, flow: Flow) -> str:
        """Return the name of a flow's consumer, which is there then."""
        name = subjects.job_consumer(self.namespace, self._made_at or await self.made_at(), *flow)
        if name not in self._consumers:
            await self._add_consumer(name, subjects.job_queue_subject(self.namespace, *flow))
            self._consumers.add(name)
        return name

    async def num_in_progress(self) -> int:
        """Count the jobs that were delivered and are not acknowledged."""
        return sum(each.num_ack_pending or 0 for each in await self._consumer_infos())

    async def outstanding(self) -> list[Outstanding]:
        """Return what is out at this moment, by consumer."""
        return [_outstanding(each) for each in await self._consumer_infos() if each.num_ack_pending]

    async def _consumer_infos(self) -> list[ConsumerInfo]:
        infos: list[ConsumerInfo] = []
        with jetstream_errors("the job queue"):
            while len(page := await self.jetstream.consumers_info(self.name, len(infos))) == _CONSUMERS_PAGE:
                infos += page
        return infos + page

    async def outlasting_loss(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call; where that fails, see that the stream is there and that consumers are, and call once more."""
        try:
            return await call()
        except RequestTimeoutError:
            raise
        except TransportError as error:
            self._consumers.clear()
            if await is_missing(self.jetstream, self.name):
                log.warning("job_queue_lost", stream=self.name, reason=error.message)
                await self._make_again()
        return await call()

    async def _make_again(self) -> None:
        try:
            await self.ensure(update=self._sets_limits)
        except QueueFullError as error:
            raise TransportError(f"the job queue was lost and has no room: {error.message}") from error

    async def _add_consumer(self, name: str, subject: str) -> None:
        config = self._consumer_config(name, subject)
        with jetstream_errors(f"consumer {name}"):
            try:  # creating a durable consumer that exists changes it where it may be changed
                await self.jetstream.add_consumer(self.name, config)
            except APIError as error:
                if error.err_code not in _OTHER_CONSUMERS:
                    raise
                await self._drop_others(name, subject)
                await self.jetstream.add_consumer(self.name, config)

    async def _drop_others(self, name: str, subject: str) -> None:
        """Make way for a consumer: an earlier release had one for everything."""
        for other in await self.jetstream.consumers_info(self.name):
            if other.name != name and other.config.filter_subject in (None, "", subject):
                log.warning("job_consumer_replaced", stream=self.name, consumer=other.name)
                await self.jetstream.delete_consumer(self.name, other.name)

    def _stream_config(self) -> StreamConfig:
        return StreamConfig(
            name=self.name,
            description="jobs of broker-pipeline that wait to be run",
            subjects=subjects.job_queue_subjects(self.namespace),
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_msgs=self.max_jobs,
            max_bytes=self.max_bytes,
            max_msg_size=self.max_job_bytes() + _HEADER_BYTES,
            duplicate_window=DUPLICATE_WINDOW_S,
            num_replicas=self.num_replicas,
        )

    def _consumer_config(self, name: str, subject: str) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=name,
            filter_subject=subject,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait_s,
            max_deliver=-1,
            max_ack_pending=MAX_IN_PROGRESS,
            inactive_threshold=_UNUSED_S,
        )


def _outstanding(info: ConsumerInfo) -> Outstanding:
    assert info.delivered is not None, "every server says so"
    assert info.ack_floor is not None, "every server says so"
    last = info.delivered.stream_seq
    numbers = range(max(info.ack_floor.stream_seq, last - _MOST_OUTSTANDING) + 1, last + 1)
    return Outstanding(info.name, numbers, info.delivered.consumer_seq)


def _made_at(info: StreamInfo) -> datetime:
    assert info.created is not None, "every server says so"
    return info.created
