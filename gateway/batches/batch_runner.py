"""Carries batches on that nobody else does: one task of a gateway, one more for each batch that it holds.

Any number of gateways do this side by side. A batch is one gateway's as long as that renews its lease; one that dies
leaves its batches to the others after ten seconds, one that stops at once.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from broker_pipeline.errors import PipelineError, StateError
from broker_pipeline.exit_codes import first_pipeline_error, raising_first_error
from broker_pipeline.identity import new_instance_id
from broker_pipeline.state.lease import Lease
from gateway.batches.batch_run import BatchRun, RunParts
from gateway.batches.records import LineError

_LOOK_S = 1.0

log = structlog.get_logger()


class BatchRunner:
    """The batches that this gateway holds."""

    def __init__(self, parts: RunParts, called: asyncio.Event) -> None:
        """Look for batches every second, and at once when `called` is set."""
        self._parts = parts
        self._called = called
        self._instance = new_instance_id()
        self._held: set[str] = set()

    async def run(self) -> None:
        """Carry on until cancelled; an outage is waited out."""
        reason = ""
        async with asyncio.TaskGroup() as group:
            while True:
                self._called.clear()
                try:
                    for batch_id in await self._due():
                        self._held.add(batch_id)
                        group.create_task(self._carry(batch_id), name=batch_id)
                    reason = ""
                except StateError as error:
                    if reason != error.message:  # said once, however long it lasts
                        log.warning("batches_not_looked_for", reason=error.message)
                    reason = error.message
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._called.wait()

    async def _due(self) -> list[str]:
        free = self._parts.limits.max_running - len(self._held)
        return await self._parts.batches.due(free) if free > 0 else []

    async def _carry(self, batch_id: str) -> None:
        lease = self._parts.batches.lease(batch_id, self._instance)
        try:
            if await lease.acquire() is not None:
                await self._run(batch_id, lease)
        except* PipelineError as errors:
            error = first_pipeline_error(errors)
            log.warning("batch_interrupted", batch=batch_id, reason=str(error))  # whoever looks next goes on
        finally:
            self._held.discard(batch_id)
            with suppress(StateError):
                await asyncio.shield(lease.release())

    async def _run(self, batch_id: str, lease: Lease) -> None:
        run = BatchRun(self._parts, self._parts.batches.held(batch_id, self._instance))
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
