"""Carries batches on that nobody else does: one task of a gateway, one more for each batch that it holds.

Any number of gateways do this side by side. A batch is one gateway's as long as that renews its lease; one that dies
leaves its batches to the others after ten seconds, one that stops at once.

Tenants have their turns: of those that wait, one goes first of whose tenant fewest are carried on, and where a gateway
carries on as many as it may, the one that it has had longest gives way to a tenant of whom none is:

    held      a1 a2 a3 a4       b1 waits: a1 has had its slice ──► a2 a3 a4 b1, and a1 waits for its next turn
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from broker_pipeline.errors import PipelineError, StateError
from broker_pipeline.exit_codes import first_pipeline_error, raising_first_error
from broker_pipeline.identity import new_instance_id
from broker_pipeline.process.outage_log import OutageLog
from broker_pipeline.state.lease import Lease
from gateway.batches.batch_run import BatchRun, RunParts
from gateway.batches.records import LineError

_LOOK_S = 1.0
SLICE_S = 30.0
"""How long a batch is carried on, at least, before it gives way: to go on costs reading some of its input again."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Hold:
    since: float
    gives_way: asyncio.Event = field(default_factory=asyncio.Event)


class BatchRunner:
    """The batches that this gateway holds."""

    def __init__(
        self,
        parts: RunParts,
        called: asyncio.Event,
        *,
        slice_s: float = SLICE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look for batches every second, and at once when `called` is set. `clock` is in seconds."""
        self._parts = parts
        self._called = called
        self._slice_s = slice_s
        self._clock = clock
        self._instance = new_instance_id()
        self._held: dict[str, _Hold] = {}

    async def run(self) -> None:
        """Carry on until cancelled; an outage is waited out."""
        outages = OutageLog("batches_not_looked_for", StateError)
        async with asyncio.TaskGroup() as group:
            while True:
                self._called.clear()
                with outages.outlasting():
                    for batch_id in await self._due():
                        self._held[batch_id] = _Hold(self._clock())
                        group.create_task(self._carry(batch_id), name=batch_id)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._called.wait()

    async def _due(self) -> list[str]:
        num_free = max(0, self._parts.limits.max_running - len(self._held))
        due = await self._parts.batches.due(num_free or 1, num_taken=num_free)
        if not num_free and due and not due[0].num_carried:
            self._give_way()
        return [batch.id for batch in due[:num_free]]

    def _give_way(self) -> None:
        """Let go of the batch that is held longest, if it has had its slice and none does so already."""
        batch_id, longest = min(self._held.items(), key=lambda item: item[1].since)
        is_asked = any(hold.gives_way.is_set() for hold in self._held.values())
        if not is_asked and self._clock() - longest.since >= self._slice_s:
            log.info("batch_gives_way", batch=batch_id)
            longest.gives_way.set()

    async def _carry(self, batch_id: str) -> None:
        lease = self._parts.batches.lease(batch_id, self._instance)
        try:
            if await lease.acquire() is not None:
                await self._run(batch_id, lease)
        except* PipelineError as errors:
            error = first_pipeline_error(errors)
            log.warning("batch_interrupted", batch=batch_id, reason=str(error))  # whoever looks next goes on
        finally:
            with suppress(StateError):
                await asyncio.shield(lease.release())
            if self._held.pop(batch_id, None) is not None:
                self._called.set()  # somebody may wait for its place

    async def _run(self, batch_id: str, lease: Lease) -> None:
        hold = self._held.setdefault(batch_id, _Hold(self._clock()))
        run = BatchRun(self._parts, self._parts.batches.held(batch_id, self._instance), hold.gives_way)
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(lease.hold())
            try:
                with raising_first_error():
                    await run.run()
            except PipelineError:
                raise
            except Exception:  # the last line of defence: one batch must not end the gateways that take it, one by one
                log.exception("batch_crashed", batch=batch_id)
                await run.fail(LineError(code="internal", message="an error inside the gateway; its log has this id"))
            holding.cancel()
