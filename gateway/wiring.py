"""Builds a gateway's parts and connects them; everything else gets what it needs from here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from broker_pipeline.security.credentials import load_credentials
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from broker_pipeline.state.access.rate_limits import RateLimits
from broker_pipeline.state.failed_jobs import FailedJobs
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from broker_pipeline.storage.publishing import JobPublisher
from broker_pipeline.wire.transport import Transport
from gateway.access.doorkeeper import Doorkeeper, make_doorkeeper
from gateway.access.rates import Rates
from gateway.access.web_pages import WebPages
from gateway.batches.batch_store import BatchStore
from gateway.batches.file_store import WRITER_BYTES, FileStore
from gateway.batches.webhooks.webhook import Webhooks, make_webhooks
from gateway.in_flight import InFlight
from gateway.intake.current_limits import CurrentLimits
from gateway.intake.down_hosts import DownHosts
from gateway.intake.fetch import ImageFetcher
from gateway.intake.pictures import PictureLoader
from gateway.intake.request_reader import RequestReader
from gateway.intake.upload_room import UploadRoom
from gateway.jobs.end_watch import EndWatch
from gateway.jobs.retries import JobRetries
from gateway.jobs.service import JobService
from gateway.jobs.storage_room import open_files, open_media, open_queue
from gateway.jobs.watch import JobWatch
from gateway.metrics import Metrics
from gateway.settings import GatewaySettings, address_guard
from gateway.viewing.previews import Previews
from gateway.viewing.rate_history import RateHistoryStore

_WAIT_FOR_ROOM_S = 10.0


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that routes use."""

    settings: GatewaySettings
    transport: Transport
    redis: RedisClient
    store: JobStore
    queue: JobQueue
    publisher: JobPublisher
    registry: WorkerRegistry
    media: MediaStore
    jobs: JobService
    retries: JobRetries
    watch: JobWatch
    reader: RequestReader
    doorkeeper: Doorkeeper
    rates: Rates
    pages: WebPages
    metrics: Metrics
    in_flight: InFlight
    pictures: PictureLoader
    down_hosts: DownHosts
    limits: CurrentLimits
    previews: Previews
    rate_history: RateHistoryStore
    files: FileStore
    file_transfers: UploadRoom
    batches: BatchStore
    webhooks: Webhooks
    batch_called: asyncio.Event
    """Set when there may be a batch to carry on."""
    stopping: asyncio.Event


GATEWAY = web.AppKey("gateway", Gateway)


@asynccontextmanager
async def open_gateway(settings: GatewaySettings, stopping: asyncio.Event) -> AsyncIterator[Gateway]:
    """Connect to NATS and Redis and make sure that queue and media store exist.

    Raises `ConfigurationError`, `TransportError` or `StateError`.
    """
    common = settings.common
    guard = address_guard(settings.fetch)
    webhooks = make_webhooks(settings.webhook, guard)
    credentials = load_credentials(common.secrets, "gateway", common.namespace)
    async with (
        Transport.open(common.nats_url, name=settings.name, credentials=credentials) as transport,
        open_redis(common.redis_url, credentials=credentials) as redis,
        (rates := Rates(RateLimits(redis, common.namespace))).kept(),
        EndWatch.open(transport, store := JobStore(redis, common.namespace), common.namespace, stopping) as ends,
    ):
        doorkeeper = make_doorkeeper(GatewayKeys(redis, common.namespace), settings.access, settings.host)
        await doorkeeper.check_exposure(settings.host)
        registry = WorkerRegistry(redis, common.namespace, common.pipeline)
        queue = await open_queue(transport, settings)
        media = await open_media(transport, redis, settings)
        publisher = JobPublisher.open(queue, redis, common.namespace)
        metrics = Metrics(settings.name, lambda: transport.counts)
        limits = CurrentLimits(settings.own_limits, registry)
        down_hosts = DownHosts()
        pictures = PictureLoader(ImageFetcher(guard, settings.fetch, down_hosts), media)
        yield Gateway(
            settings=settings,
            transport=transport,
            redis=redis,
            store=store,
            queue=queue,
            registry=registry,
            media=media,
            publisher=publisher,
            jobs=JobService(transport, store, media, publisher, common.namespace),
            retries=JobRetries(store, FailedJobs(redis, common.namespace), media, publisher),
            watch=JobWatch(
                transport=transport,
                store=store,
                ends=ends,
                told=metrics.event_seconds,
                namespace=common.namespace,
                max_watches=limits.own.max_streams,
                stopping=stopping,
            ),
            reader=RequestReader(pictures=pictures, limits=limits, uploads=metrics.uploads, rates=rates),
            doorkeeper=doorkeeper,
            rates=rates,
            pages=WebPages(frozenset(settings.access.allowed_origins), frozenset(settings.access.allowed_hosts)),
            metrics=metrics,
            in_flight=InFlight(),
            pictures=pictures,
            down_hosts=down_hosts,
            limits=limits,
            previews=Previews(redis, common.namespace, store, media),
            rate_history=RateHistoryStore(redis, common.namespace, common.pipeline),
            files=FileStore(redis, open_files(transport, settings), common.namespace),
            file_transfers=UploadRoom(
                limits.own.max_uploads * WRITER_BYTES,
                _WAIT_FOR_ROOM_S,
                max(1, limits.own.max_uploads // 2) * WRITER_BYTES,
            ),
            batches=BatchStore(redis, common.namespace, settings.batches.lease_s, tells_ends=bool(webhooks)),
            webhooks=webhooks,
            batch_called=asyncio.Event(),
            stopping=stopping,
        )
