"""The conductor's parts as they are, each told how long it took."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.messages.activation import Envelope, MicrobatchResult
from broker_pipeline.scheduling.planned_batch import Outcome, PlannedBatch
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.state.job_store import JobStore, TokenCommit
from broker_pipeline.wire.link import Message
from broker_pipeline.wire.transport import Subscription, Transport
from broker_pipeline.wire.wire_tensor import WireTensor
from trials.bench.conductor.stopwatch import Stopwatch

Body = TypeVar("Body", bound=msgspec.Struct)


class TimedScheduler(Scheduler):
    """Counts planning and completing."""

    watch: Stopwatch

    def plan(self, now: float) -> list[PlannedBatch]:
        """See the base class."""
        with self.watch.part("plan"):
            return super().plan(now)

    def complete(self, result: MicrobatchResult, now: float) -> Outcome:
        """See the base class."""
        with self.watch.part("complete"):
            return super().complete(result, now)


class TimedDispatcher(Dispatcher):
    """Counts what becomes of a result's tokens."""

    watch: Stopwatch

    def complete(self, result: MicrobatchResult) -> None:
        """See the base class."""
        with self.watch.part("take"):
            super().complete(result)


class TimedStore(JobStore):
    """Counts commits."""

    watch: Stopwatch

    async def commit(self, commits: Sequence[TokenCommit]) -> list[bool]:
        """See the base class."""
        return await self.watch.steps("commit", super().commit(commits))


@dataclass(frozen=True, slots=True)
class TimedBuilder(EnvelopeBuilder):
    """Counts envelopes being built."""

    watch: Stopwatch

    def build(self, microbatch: PlannedBatch, now: float) -> tuple[Envelope, dict[str, WireTensor]]:
        """See the base class."""
        with self.watch.part("build"):
            return EnvelopeBuilder.build(self, microbatch, now)


class TimedTransport(Transport):
    """Counts sending, and receiving up to the message's taker."""

    watch: Stopwatch

    async def publish(
        self, subject: str, body: msgspec.Struct, tensors: Mapping[str, WireTensor] | None = None
    ) -> None:
        """See the base class."""
        name = "send" if isinstance(body, Envelope) else "events"
        await self.watch.steps(name, super().publish(subject, body, tensors))

    @asynccontextmanager
    async def subscribe(self, subject: str, body_type: type[Body], **options: Any) -> AsyncIterator[Subscription[Body]]:
        """See the base class."""
        async with super().subscribe(subject, body_type, **options) as subscription:
            take = subscription.on_message

            def timed(message: Message) -> None:
                with self.watch.part("receive"):
                    take(message)

            subscription.on_message = timed  # type: ignore[method-assign]
            yield subscription
