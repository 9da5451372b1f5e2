"""One conductor's tenure: everything that it builds up under one epoch, and drops with it."""

from __future__ import annotations

import asyncio

from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.parts import Parts
from broker_pipeline.conductor.reporter import Reporter
from broker_pipeline.conductor.surroundings import Surroundings, Term

_MARGIN_S = 1.5  # of the time to drain: for putting back what is left, and for the lease


class Tenure:
    """One share, conducted."""

    def __init__(self, around: Surroundings, term: Term, watchers: Watchers) -> None:
        """Wire the parts."""
        self._around = around
        self._term = term
        self._parts = Parts(around, term, watchers)
        self._reporter = Reporter(around, term, self._parts)

    async def run(self, stopping: asyncio.Event) -> None:
        """Conduct until told to stop and drained.

        Raises (in a group):
            LeaseLostError: a worker obeys another conductor.
            TransportError: the broker connection is gone for good.
        """
        parts, common = self._parts, self._around.common
        loops = {
            "dispatcher": parts.dispatcher.run(),
            "roster": parts.roster_watch.run(),
            "committer": parts.committer.run(),
            "cancels": parts.cancels.run(),
            "reporter": self._reporter.run(),
            "unqueued jobs": parts.unqueued.run(),
            "weights": parts.weights.run(),
            "left deliveries": parts.left.run(),
        }
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(loop, name=name) for name, loop in loops.items()]
            drain_s = max(0.0, common.drain_s - _MARGIN_S)
            await parts.puller.run(stopping, lambda: 0.0 if self._term.is_handed_over() else drain_s)
            for task in running:
                task.cancel()

    def taken(self) -> list[str]:
        """Name the deliveries that it has."""
        return [job.delivery.name for job in self._parts.live]

    def on_reconnect(self) -> None:
        """Note that the broker was away."""
        self._parts.roster.on_reconnect()
        self._parts.left.on_reconnect()
