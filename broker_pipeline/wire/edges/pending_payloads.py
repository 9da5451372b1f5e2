"""Payloads that are still on their way when their metadata is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from broker_pipeline.errors import EdgeLostError, PartError


class PendingPayloads:
    """Waits for each until it comes, its edge is lost, or its time is up. How many wait, the receiver's room bounds."""

    def __init__(self) -> None:
        """Begin with none."""
        self._deadlines: dict[asyncio.Future[memoryview], float] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def wait(
        self,
        payload: asyncio.Future[memoryview],
        deadline: float,
        on_done: Callable[[memoryview | PartError], None],
    ) -> None:
        """Call `on_done` once, with the payload or why there will be none; `deadline` is in seconds of the loop."""
        self._deadlines[payload] = deadline

        def done(future: asyncio.Future[memoryview]) -> None:
            del self._deadlines[future]
            on_done(_outcome(future))

        payload.add_done_callback(done)

    def expire(self, now: float) -> None:
        """Give up what is overdue at `now`."""
        for payload in [payload for payload, deadline in self._deadlines.items() if deadline <= now]:
            payload.cancel()


def _outcome(future: asyncio.Future[memoryview]) -> memoryview | PartError:
    try:
        return future.result()
    except asyncio.CancelledError:
        return PartError("the payload did not come in time", field="edge")
    except EdgeLostError as error:
        return PartError(f"the payload was lost with its edge: {error.message}", field="edge")
    except PartError as error:
        return error
