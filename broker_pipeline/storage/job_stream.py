"""Stream and consumer under the job queue, made again where somebody has deleted them.

The consumer's name holds the time at which its stream was made. An acknowledgement names stream, consumer and number of
a message: a late one would otherwise take another job of the same number out of a stream that was made again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import structlog
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)
from nats.js.errors import NotFoundError

from broker_pipeline import subjects
from broker_pipeline.errors import QueueFullError, RequestTimeoutError, TransportError
from broker_pipeline.storage.jetstream import ensure_stream, is_missing, jetstream_errors
from broker_pipeline.wire.nats.jetstream import JetStream

MAX_IN_PROGRESS = 65_536
DUPLICATE_WINDOW_S = 120.0
_HEADER_BYTES = 1024  # which the server counts as well

T = TypeVar("T")

log = structlog.get_logger()


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
    _consumer: str | None = None

    @property
    def name(self) -> str:
        """The stream's name."""
        return subjects.job_stream(self.namespace)

    async def ensure(self, *, update: bool) -> None:
        """Make stream and consumer; with `update`, give an existing stream these limits. Raises as `ensure_stream`."""
        self._sets_limits = update
        info = await ensure_stream(self.jetstream, self._stream_config(), update=update)
        self._consumer = subjects.job_consumer(self.namespace, _made_at(info))
        with jetstream_errors(f"consumer {self._consumer}"):
            if update and await self._has_consumer(self._consumer):
                return  # how long a delivery may take is for those who pull to say
            await self._drop_others(self._consumer)
            # Creating a durable consumer that exists changes it where it may be changed.
            await self.jetstream.add_consumer(self.name, self._consumer_config(self._consumer))

    async def consumer(self) -> str:
        """Return the name of the stream's consumer."""
        if self._consumer is None:
            self._consumer = subjects.job_consumer(self.namespace, await self.made_at())
        return self._consumer

    async def made_at(self) -> datetime:
        """Return when the stream was made."""
        with jetstream_errors("the job queue"):
            return _made_at(await self.jetstream.stream_info(self.name))

    async def outlasting_loss(self, call: Callable[[], Awaitable[T]]) -> T:
        """Call; where that fails, see that stream and consumer are there, and call once more."""
        try:
            return await call()
        except RequestTimeoutError:
            raise
        except TransportError as error:
            if await is_missing(self.jetstream, self.name, self._consumer):
                log.warning("job_queue_lost", stream=self.name, consumer=self._consumer, reason=error.message)
                await self._make_again()
        return await call()

    async def _make_again(self) -> None:
        try:
            await self.ensure(update=self._sets_limits)
        except QueueFullError as error:
            raise TransportError(f"the job queue was lost and has no room: {error.message}") from error

    async def _has_consumer(self, name: str) -> bool:
        try:
            await self.jetstream.consumer_info(self.name, name)
        except NotFoundError:
            return False
        return True

    async def _drop_others(self, name: str) -> None:
        """Make way for the consumer: a work queue has one, and an earlier version gave it another name."""
        for other in await self.jetstream.consumers_info(self.name):
            if other.name != name:
                log.warning("job_consumer_replaced", stream=self.name, consumer=other.name)
                await self.jetstream.delete_consumer(self.name, other.name)

    def _stream_config(self) -> StreamConfig:
        return StreamConfig(
            name=self.name,
            description="jobs of broker-pipeline that wait to be run",
            subjects=[subjects.job_queue_subject(self.namespace)],
            retention=RetentionPolicy.WORK_QUEUE,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            max_msgs=self.max_jobs,
            max_bytes=self.max_bytes,
            max_msg_size=self.max_job_bytes() + _HEADER_BYTES,
            duplicate_window=DUPLICATE_WINDOW_S,
            num_replicas=self.num_replicas,
        )

    def _consumer_config(self, name: str) -> ConsumerConfig:
        return ConsumerConfig(
            durable_name=name,
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=self.ack_wait_s,
            max_deliver=-1,
            max_ack_pending=MAX_IN_PROGRESS,
        )


def _made_at(info: StreamInfo) -> datetime:
    assert info.created is not None, "every server says so"
    return info.created
