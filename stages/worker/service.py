"""The life of a worker of either kind, once its model is loaded: subscribe, register the name, serve, drain, leave.

ready ──┬── SIGTERM ───────► draining ── idle, or --drain-s passed ──► name released, exit 0
        └── drain request ─► draining ── idle for a while ───────────►        "
                             no deadline; the conductor sends no new sessions, those that are here end in peace
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Protocol, TypeVar

import structlog

from broker_pipeline import subjects
from broker_pipeline.errors import StateError
from broker_pipeline.messages.control import DrainRequest
from broker_pipeline.messages.workers import Heartbeat
from broker_pipeline.process.heap import settle_heap
from broker_pipeline.service import ServiceContext
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.wire.transport import Transport
from stages.worker.compute_thread import ComputeThread
from stages.worker.presence import Presence, answer_drains, log_drop

log = structlog.get_logger()

T = TypeVar("T")

_RELEASE_TIMEOUT_S = 2.0
_QUIET_S = 1.5
"""After a drain request, how long a worker has to be idle: until every conductor has seen that it drains."""


class WorkerService(Protocol):
    """What `serve_worker` needs of a stage or vision worker."""

    async def serve(self, subscribed: asyncio.Event) -> None:
        """Answer messages until cancelled; set `subscribed` once none can be missed."""

    async def wait_idle(self) -> None:
        """Return when nothing is left to finish."""

    def heartbeat(self) -> Heartbeat:
        """Say how it is doing."""


async def serve_worker(
    context: ServiceContext, transport: Transport, registry: WorkerRegistry, presence: Presence, worker: WorkerService
) -> None:
    """Serve until the service is asked to stop and the worker has finished what it had.

    Raises (in a group):
        WorkerNameTakenError: another live worker has the name.
        TransportError, StateError: the broker is gone for good, or Redis was not there at the start.
    """
    settle_heap()
    subscribed, drain = asyncio.Event(), asyncio.Event()
    drains = transport.subscribe(subjects.drain(presence.record().subject), DrainRequest, on_dropped=log_drop)
    async with drains as requests, asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(worker.serve(subscribed)), tasks.create_task(transport.wait_failed())]
        await subscribed.wait()
        try:
            if await unless_stopped(context, registry.register(presence.record())) is not None:
                announcing = registry.announce(presence.record, worker.heartbeat, transport)
                running.append(tasks.create_task(announcing))
                running.append(tasks.create_task(answer_drains(requests, presence, drain)))
                await _serve_and_drain(context, registry, presence, worker, drain)
        finally:
            await _release(registry, presence)
        for task in running:
            task.cancel()


async def _serve_and_drain(
    context: ServiceContext, registry: WorkerRegistry, presence: Presence, worker: WorkerService, drain: asyncio.Event
) -> None:
    record = presence.record()
    context.ready(worker=record.worker, instance=record.instance, device=record.device, dtype=record.dtype)
    is_asked = await unless_stopped(context, drain.wait()) is not None
    presence.start_draining()
    log.info("draining", num_sessions=worker.heartbeat().num_sessions, has_deadline=not is_asked)
    try:
        await registry.renew(presence.record())  # at once, so that nothing new is sent here
    except StateError as error:
        log.warning("drain_not_announced", reason=error.message)
    if is_asked:
        await unless_stopped(context, _wait_quiet(worker))
    await worker.wait_idle()


async def _wait_quiet(worker: WorkerService) -> None:
    """Return when nothing was left to finish for a while; what the conductor sent meanwhile is finished as well."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < _QUIET_S:
        await asyncio.sleep(_QUIET_S / 10)
        try:
            async with asyncio.timeout(0):
                await worker.wait_idle()
        except TimeoutError:
            await worker.wait_idle()
            quiet_since = time.monotonic()


async def _release(registry: WorkerRegistry, presence: Presence) -> None:
    """Give the name back; where that fails its time to live does it."""
    try:
        async with asyncio.timeout(_RELEASE_TIMEOUT_S):
            await registry.release(presence.record())
    except (StateError, TimeoutError) as error:
        log.warning("name_not_released", reason=str(error))


async def unless_stopped(context: ServiceContext, work: Awaitable[T]) -> tuple[T] | None:
    """Await something, or give it up and return None when the service is asked to stop first."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(context.stopping.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return (task.result(),) if task.done() else None
    finally:
        for future in (task, stopping):
            future.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)


def close_thread(thread: ComputeThread) -> None:
    """End the compute thread; one that hangs is left behind, and ends with the process."""
    if not thread.close():
        log.warning("compute_abandoned", running_for_s=round(thread.running_for_s, 1))
