"""The conductor's parts as they are, each method of a caption's way told how long it took."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from broker_pipeline.conductor.dispatch.dispatcher import Dispatcher
from broker_pipeline.conductor.dispatch.envelopes import EnvelopeBuilder
from broker_pipeline.conductor.workers.preparer import Preparer
from broker_pipeline.messages.activation import MicrobatchResult
from broker_pipeline.scheduling.planned_batch import Outcome
from broker_pipeline.scheduling.scheduler import Scheduler
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.storage.jobs import Delivery, JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.subscription import Subscription
from broker_pipeline.wire.transport import Transport
from trials.bench.conductor.stopwatch import Stopwatch

_METHODS: dict[str, tuple[type, str]] = {
    "pull": (JobQueue, "pull"),
    "begin": (JobStore, "begin_attempt"),
    "prepare": (Preparer, "prepare"),
    "plan": (Scheduler, "plan"),
    "build": (EnvelopeBuilder, "build"),
    "send": (Transport, "publish"),
    "receive": (Subscription, "on_message"),
    "complete": (Scheduler, "complete"),
    "take": (Dispatcher, "complete"),
    "commit": (JobStore, "commit"),
    "finish": (JobStore, "finish"),
    "release": (MediaStore, "release"),
    "ack": (Delivery, "ack"),
}


class StepCounts:
    """Microbatches that came back, and the tokens that they brought."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.num_microbatches = 0
        self.num_tokens = 0

    def counting(
        self, complete: Callable[[Scheduler, MicrobatchResult, float], Outcome]
    ) -> Callable[[Scheduler, MicrobatchResult, float], Outcome]:
        """Return `Scheduler.complete`, counted."""

        def counted(scheduler: Scheduler, result: MicrobatchResult, now: float) -> Outcome:
            outcome = complete(scheduler, result, now)
            self.num_microbatches += 1
            self.num_tokens += sum(len(sampled.tokens) for sampled in outcome.sampled)
            return outcome

        return counted


@contextmanager
def counted_steps() -> Iterator[StepCounts]:
    """Count steps while the context is open."""
    counts, own = StepCounts(), Scheduler.complete
    with _replaced({(Scheduler, "complete"): counts.counting(own)}):
        yield counts


@contextmanager
def timed_parts(watch: Stopwatch) -> Iterator[None]:
    """Have `watch` count the parts of a caption's way while the context is open: at some cost, to each of them."""
    with _replaced({place: _timed(watch, name, vars(place[0])[place[1]]) for name, place in _METHODS.items()}):
        yield


@contextmanager
def _replaced(methods: dict[tuple[type, str], Callable[..., Any]]) -> Iterator[None]:
    own = {place: vars(place[0])[place[1]] for place in methods}
    try:
        for (owner, name), method in methods.items():
            setattr(owner, name, method)
        yield
    finally:
        for (owner, name), method in own.items():
            setattr(owner, name, method)


def _timed(watch: Stopwatch, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def at_once(*args: Any, **kwargs: Any) -> Any:
        with watch.part(name):
            return method(*args, **kwargs)

    @functools.wraps(method)
    async def step_by_step(*args: Any, **kwargs: Any) -> Any:
        return await watch.steps(name, method(*args, **kwargs))

    return step_by_step if inspect.iscoroutinefunction(method) else at_once
