"""Drives one pipeline, while it holds the lease: the parts put together, and their life.

    standby ──► lease: a new epoch ──► tenure: roster, dispatcher, committer, intake … ──► lease lost: standby again
                                           │
                                           └── SIGTERM: requeue, drain, release the lease

All that a tenure holds in memory may be lost at any time: jobs come back from the queue, tokens from Redis.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from broker_pipeline.cancellation import cancellation_kept
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.conductor.surroundings import Surroundings
from broker_pipeline.conductor.tenure import Tenure
from broker_pipeline.errors import LeaseLostError, QueueFullError, StateError
from broker_pipeline.exit_codes import first_pipeline_error
from broker_pipeline.identity import new_instance_id
from broker_pipeline.service import ServiceContext
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_PAUSE_S = 0.5


async def serve_conductor(context: ServiceContext, settings: ConductorSettings) -> None:
    """Run one conductor until the service is stopped.

    Raises:
        ArtifactError: the model's small files are missing or wrong.
        TransportError, StateError (in a group): NATS or Redis is not there at the start, or gone for good.
    """
    common = context.settings
    model = TextModel.open(Path(settings.model), settings.default_max_tokens)
    instance = new_instance_id()
    async with (
        Transport.open(common.nats_url, name=f"conductor {common.pipeline}") as transport,
        open_redis(common.redis_url) as redis,
    ):
        if not await _ensure_streams(transport, redis, context, settings):
            return
        context.ready(instance=instance, fingerprint=model.facts.fingerprint[:12], num_layers=model.facts.num_layers)
        around = Surroundings(
            transport=transport, redis=redis, model=model, common=common, settings=settings, instance=instance
        )
        if settings.metrics_port is not None:
            around.metrics.start(settings.metrics_port)
        conductor = Conductor(around)
        async with asyncio.TaskGroup() as tasks:
            failing = tasks.create_task(transport.wait_failed(), name="transport")
            await conductor.run(context.stopping)
            failing.cancel()


class Conductor:
    """One conductor process: standby, or in a tenure."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._tenure: Tenure | None = None
        around.transport.add_reconnect_listener(self._on_reconnect)

    async def run(self, stopping: asyncio.Event) -> None:
        """Hold the lease whenever it is free, until told to stop."""
        common = self._around.common
        ttl_s = self._around.settings.lease_ttl_s
        lease = Lease(self._around.redis, common.namespace, common.pipeline, self._around.instance, ttl_s=ttl_s)
        while (epoch := await _acquire(lease, stopping)) is not None:
            with cancellation_kept():  # a task group that ends by an error forgets that it was cancelled as well
                await self._serve_tenure(lease, epoch, stopping)

    async def _serve_tenure(self, lease: Lease, epoch: int, stopping: asyncio.Event) -> None:
        log.info("tenure_begins", epoch=epoch, instance=self._around.instance)
        try:
            async with asyncio.TaskGroup() as tasks:
                holding = tasks.create_task(lease.hold(), name="lease")
                self._tenure = Tenure(self._around, epoch, lambda: lease.is_held)
                await self._tenure.run(stopping)
                holding.cancel()
        except* LeaseLostError as group:
            error = first_pipeline_error(group)
            log.warning("tenure_lost", epoch=epoch, reason=str(error))
        finally:
            self._tenure = None
            await _release(lease)

    def _on_reconnect(self) -> None:
        if self._tenure is not None:
            self._tenure.on_reconnect()


async def _ensure_streams(
    transport: Transport, redis: RedisClient, context: ServiceContext, settings: ConductorSettings
) -> bool:
    """Make queue and media store where no gateway has made them yet; their limits are the gateway's to say.

    On a small disk only the gateway knows how much to ask for, so there it is waited for. False when told to stop.
    """
    namespace = context.settings.namespace
    is_first = True
    while not context.stopping.is_set():
        try:
            await JobQueue(transport, namespace, ack_wait_s=settings.ack_wait_s).ensure(update=False)
            await MediaStore(transport, redis, namespace).ensure(update=False)
        except QueueFullError as error:
            if is_first:
                log.warning("gateway_awaited", reason=error.message)
            is_first = False
            await asyncio.sleep(_PAUSE_S)
        else:
            return True
    return False


async def _acquire(lease: Lease, stopping: asyncio.Event) -> int | None:
    """Wait for the lease; None when told to stop."""
    while not stopping.is_set():
        acquiring = asyncio.ensure_future(lease.acquire())
        stop = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait([acquiring, stop], return_when=asyncio.FIRST_COMPLETED)
            if acquiring.done():
                return acquiring.result()
        except StateError as error:
            log.warning("lease_not_taken", reason=error.message)
            await asyncio.sleep(_PAUSE_S)
        finally:
            for future in (acquiring, stop):
                future.cancel()
            await asyncio.gather(acquiring, stop, return_exceptions=True)
    return None


async def _release(lease: Lease) -> None:
    try:
        await lease.release()
    except StateError as error:
        log.info("lease_left", reason=error.message)
