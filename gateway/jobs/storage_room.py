"""Makes the job queue, the media store and the store of files with as much room as JetStream gives.

JetStream reserves a stream's whole limit at once, out of three quarters of the free disk by default. A limit that was
chosen by somebody is asked for as it is; the default one is halved until it fits.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from broker_pipeline.errors import ConfigurationError, QueueFullError
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.file_chunks import FileChunks
from broker_pipeline.storage.jobs import MAX_QUEUE_BYTES, JobQueue
from broker_pipeline.storage.media import MAX_STORE_BYTES, MediaStore
from broker_pipeline.storage.media_roots import MediaRoots
from broker_pipeline.wire.transport import Transport
from gateway.settings import MIB, GatewaySettings

_LEAST_QUEUE_BYTES = 16 * MIB
_LEAST_MEDIA_BYTES = 128 * MIB
_LEAST_FILES_BYTES = 16 * MIB
_FILES_TIMEOUT_S = 10.0

log = structlog.get_logger()


async def open_queue(transport: Transport, settings: GatewaySettings) -> JobQueue:
    """Make the job queue; raises `ConfigurationError` when JetStream has no room for it."""
    for max_bytes in _sizes(settings.queue_max_bytes, MAX_QUEUE_BYTES, _LEAST_QUEUE_BYTES):
        queue = JobQueue(
            transport,
            settings.common.namespace,
            max_jobs=settings.queue_max_jobs,
            max_bytes=max_bytes,
            num_replicas=settings.common.nats_replicas,
        )
        try:
            await queue.ensure()
        except QueueFullError as error:
            log.info("no_room_for_queue", max_bytes=max_bytes, reason=error.message)
        else:
            return queue
    raise _no_room("the job queue", "--max-queue-mb")


async def open_media(transport: Transport, redis: RedisClient, settings: GatewaySettings) -> MediaStore:
    """Make the media store; raises `ConfigurationError` when JetStream has no room for it."""
    for max_bytes in _sizes(settings.media_max_bytes, MAX_STORE_BYTES, _LEAST_MEDIA_BYTES):
        common, rule = settings.common, settings.limits.pictures
        roots = MediaRoots(common.media_roots, max(rule.max_bytes, rule.max_video_bytes))
        media = MediaStore(
            transport, redis, common.namespace, max_bytes, num_replicas=common.nats_replicas, roots=roots
        )
        try:
            await media.ensure()
        except QueueFullError as error:
            log.info("no_room_for_media", max_bytes=max_bytes, reason=error.message)
        else:
            return media
    raise _no_room("the media store", "--max-media-mb")


def open_files(transport: Transport, settings: GatewaySettings) -> FileChunks:
    """Return the store of files' bytes, which makes itself when the first file comes."""
    sizes = tuple(_sizes(settings.files_max_bytes, MAX_STORE_BYTES, _LEAST_FILES_BYTES))
    return FileChunks(transport.jetstream(for_bulk=True, timeout_s=_FILES_TIMEOUT_S), settings.common.namespace, sizes)


def _sizes(chosen: int | None, default: int, least: int) -> Iterator[int]:
    if chosen is not None:
        yield chosen
        return
    size = default
    while size >= least:
        yield size
        size //= 2


def _no_room(what: str, flag: str) -> ConfigurationError:
    return ConfigurationError(
        f"JetStream has no room for {what}: free some disk, raise its max_file_store, or ask for less with {flag}",
        field=flag,
    )
