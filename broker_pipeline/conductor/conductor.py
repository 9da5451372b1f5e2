"""Conducts the shares that it holds a lease of: which these are, and the life of each.

    share ──► lease: a new epoch ──► tenure: roster, dispatcher, committer, intake … ──► lease lost: another may have it
                                         │
                                         └── given up, SIGTERM: requeue, drain, release the lease
                                             (SIGTERM with others there: requeue everything, since they go on at once)

All that a tenure holds in memory may be lost at any time: jobs come back from the queue, tokens from Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from broker_pipeline import subjects
from broker_pipeline.conductor.membership import Census, Membership
from broker_pipeline.conductor.output.text_model import TextModel
from broker_pipeline.conductor.output.watchers import Watchers
from broker_pipeline.conductor.settings import ConductorSettings
from broker_pipeline.conductor.surroundings import Surroundings, Term
from broker_pipeline.conductor.tenure import Tenure
from broker_pipeline.errors import LeaseLostError, QueueFullError, StateError
from broker_pipeline.exit_codes import first_pipeline_error
from broker_pipeline.identity import new_instance_id
from broker_pipeline.process.heap import settle_heap
from broker_pipeline.scheduling.policies.shares import part_of
from broker_pipeline.security.credentials import load_credentials
from broker_pipeline.service import ServiceContext
from broker_pipeline.state.lease import Lease
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

_PAUSE_S = 0.5
_ENDED_POLL_S = 0.02
_LOOK_S = 0.25
"""From one look at conductors and leases to the next."""


async def serve_conductor(context: ServiceContext, settings: ConductorSettings) -> None:
    """Run one conductor until the service is stopped.

    Raises:
        ArtifactError: the model's small files are missing or wrong.
        TransportError, StateError (in a group): NATS or Redis is not there at the start, or gone for good.
    """
    common = context.settings
    model = TextModel.open(Path(settings.model), settings.default_max_tokens)
    instance = new_instance_id()
    credentials = load_credentials(common.secrets, "conductor", common.namespace)
    async with (
        Transport.open(common.nats_url, name=f"conductor {common.pipeline}", credentials=credentials) as transport,
        open_redis(common.redis_url, credentials=credentials) as redis,
    ):
        if not await _ensure_streams(transport, redis, context, settings):
            return
        settle_heap()
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


@dataclass(slots=True)
class _Held:
    """A share that this conductor has, until its tenure has ended."""

    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    tenure: Tenure | None = None


class Conductor:
    """One conductor process: a tenure for each share that it has; without any it stands by."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._membership = Membership(around)
        self._peers = self._membership.peers
        self._watchers = Watchers(around.clock)
        self._leases: dict[str, Lease] = {}
        self._held: dict[str, _Held] = {}
        self._census = Census()
        self._is_handing_over = False
        self._pause_s = min(_LOOK_S, around.settings.lease_ttl_s / 10)
        around.transport.add_reconnect_listener(self._on_reconnect)

    async def run(self, stopping: asyncio.Event) -> None:
        """Have this conductor's part of the shares, until told to stop."""
        try:
            async with asyncio.TaskGroup() as tenures:
                watching = tenures.create_task(self._watch(), name="watching")
                balancing = tenures.create_task(self._balance(tenures), name="shares")
                await stopping.wait()
                balancing.cancel()
                await asyncio.wait({balancing})
                self._is_handing_over = len(self._census.members) > 1
                await _unless_away(self._membership.leave())
                for held in self._held.values():
                    held.stopping.set()
                while self._held:  # noqa: ASYNC110 - until then it answers the others, and streams are watched
                    await asyncio.sleep(_ENDED_POLL_S)
                watching.cancel()
        finally:
            for lease in self._leases.values():  # one may have been taken without an answer
                await _unless_away(lease.release())
            await _unless_away(self._membership.leave())

    async def _watch(self) -> None:
        """Know what a tenure needs to know from its first moment on, until cancelled."""
        around = self._around
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._peers.run(), name="peers")
            watch = subjects.watch(around.common.namespace)
            tasks.create_task(self._watchers.listen(around.transport, watch), name="watchers")

    async def _balance(self, tenures: asyncio.TaskGroup) -> None:
        """Take and give up shares as conductors and shares come and go, until cancelled."""
        is_away = False
        while True:
            try:
                await self._take_part(tenures)
                is_away = False
            except StateError as error:
                if not is_away:
                    log.warning("shares_unknown", reason=error.message)
                is_away = True
            await self._peers.found_gone(self._pause_s)

    async def _take_part(self, tenures: asyncio.TaskGroup) -> None:
        census, instance = await self._membership.look(), self._around.instance
        if census.members != self._census.members or census.shares != self._census.shares:
            log.info("shares_seen", shares=sorted(census.shares), conductors=sorted(census.members))
        self._census = census
        # what is held here is this one's until its tenure has ended, whatever Redis says of it
        holders = {**census.holders, **dict.fromkeys(self._held, instance)}
        part = part_of(instance, census.members, census.shares, holders)
        for share, held in self._held.items():
            if share not in part.keeps and not held.stopping.is_set():
                log.info("share_given_up", share=share)
                held.stopping.set()
        num_more = part.num_more
        for share in part.free:
            if num_more and (epoch := await self._lease(share).acquire(self._peers.gone)) is not None:
                num_more -= 1
                self._held[share] = held = _Held()
                tenures.create_task(self._conduct(share, epoch, held), name=f"tenure {share}")

    def _lease(self, share: str) -> Lease:
        common, instance = self._around.common, self._around.instance
        if share not in self._leases:
            self._leases[share] = Lease(
                self._around.redis,
                common.namespace,
                common.pipeline,
                instance,
                share=share,
                ttl_s=self._around.settings.lease_ttl_s,
                clock=self._around.clock,
            )
        return self._leases[share]

    async def _conduct(self, share: str, epoch: int, held: _Held) -> None:
        """Conduct a share until told to stop, or until its lease is lost; let others have it then."""
        lease = self._lease(share)
        log.info("tenure_begins", share=share, epoch=epoch, instance=self._around.instance)
        try:
            async with asyncio.TaskGroup() as tasks:
                holding = tasks.create_task(lease.hold(), name="lease")
                term = Term(
                    share,
                    epoch,
                    lease_held=lambda: lease.is_held,
                    fence=lease.fence,
                    taken=self._taken,
                    num_shares=lambda: len(self._census.shares),
                    is_handed_over=lambda: self._is_handing_over,
                )
                held.tenure = Tenure(self._around, term, self._watchers)
                await held.tenure.run(held.stopping)
                holding.cancel()
        except* LeaseLostError as group:
            error = first_pipeline_error(group)
            log.warning("tenure_lost", share=share, epoch=epoch, reason=str(error))
            self._peers.doubt_all()
        finally:
            await _unless_away(lease.release())
            del self._held[share]

    def _taken(self) -> list[str]:
        return [name for held in self._held.values() if held.tenure is not None for name in held.tenure.taken()]

    def _on_reconnect(self) -> None:
        self._peers.on_reconnect()
        for held in self._held.values():
            if held.tenure is not None:
                held.tenure.on_reconnect()


async def _ensure_streams(
    transport: Transport, redis: RedisClient, context: ServiceContext, settings: ConductorSettings
) -> bool:
    """Make queue and media store where no gateway has made them yet; their limits are the gateway's to say.

    On a small disk only the gateway knows how much to ask for, so there it is waited for. False when told to stop.
    """
    namespace = context.settings.namespace
    num_replicas, is_first = context.settings.nats_replicas, True
    while not context.stopping.is_set():
        try:
            queue = JobQueue(transport, namespace, ack_wait_s=settings.ack_wait_s, num_replicas=num_replicas)
            await queue.ensure(update=False)
            await MediaStore(transport, redis, namespace, num_replicas=num_replicas).ensure(update=False)
        except QueueFullError as error:
            if is_first:
                log.warning("gateway_awaited", reason=error.message)
            is_first = False
            await asyncio.sleep(_PAUSE_S)
        else:
            return True
    return False


async def _unless_away(done: Awaitable[None]) -> None:
    """Tell Redis something that it finds out by itself, only later."""
    try:
        await done
    except StateError as error:
        log.info("redis_not_told", reason=error.message)
