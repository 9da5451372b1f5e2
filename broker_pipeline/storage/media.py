"""Images and videos of jobs: bytes in JetStream, references in Redis.

Any gateway puts, any vision worker gets; no further service and no shared disk. Equal bytes are stored once. Bytes
go with the last job that needs them (see `state/media_references.py`), and at the latest after `max_age_s`.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterable

import structlog

from broker_pipeline.errors import MediaFetchError, MediaMissingError, PipelineError, StateError, TransportError
from broker_pipeline.messages.jobs import JobSpec, MediaRef
from broker_pipeline.process.daemon_thread import in_daemon_thread
from broker_pipeline.state.media_references import UPLOAD_S, MediaReferences
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.storage.media_objects import CHUNK_BYTES, MediaObjects
from broker_pipeline.storage.media_roots import MediaRoots
from broker_pipeline.wire.transport import Transport

log = structlog.get_logger()

MAX_STORE_BYTES = 10 * 2**30
MAX_AGE_S = 7 * 24 * 3600.0
KEEP_S = 7 * 24 * 3600.0
"""How long a failed job's media are kept for it to be sent again, as long as there is room."""
_KEPT_SHARE = 0.5  # of the store, beyond which what failed jobs keep has to make room
NUM_UPLOADS = 64
"""Uploads that are under way at once; each has a chunk in memory a second time."""
_HASH_INLINE_BYTES = 256 * 1024
_REQUEST_S = 10.0
_READ_S = 20.0


class MediaStore:
    """The media of one namespace. Reading needs no Redis; everything else does."""

    def __init__(
        self,
        transport: Transport,
        redis: RedisClient | None,
        namespace: str,
        max_bytes: int = MAX_STORE_BYTES,
        *,
        max_age_s: float = MAX_AGE_S,
        num_replicas: int = 1,
        roots: MediaRoots | None = None,
    ) -> None:
        """Hold up to `max_bytes`, each object for up to `max_age_s`; without Redis, only for reading.

        What is not in the store is read below `roots`.
        """
        self.roots = roots or MediaRoots()
        self._jetstream = transport.jetstream(for_bulk=True, timeout_s=_REQUEST_S)
        self._max_age_s = max_age_s
        self.max_bytes = max_bytes
        self._objects = MediaObjects(
            self._jetstream, namespace, max_bytes, max_age_s, num_replicas, encrypts=transport.is_guarded
        )
        self._upload_slots = asyncio.Semaphore(NUM_UPLOADS)
        self._maybe_references = MediaReferences(redis, namespace) if redis is not None else None

    async def ensure(self, *, update: bool = True) -> None:
        """Make the streams; with `update`, give existing ones this store's limits.

        Raises `QueueFullError` when the server lacks the room, `TransportError` when it has no JetStream.
        """
        await self._objects.ensure(update=update)

    async def put(self, content: bytes, job_id: str) -> MediaRef:
        """Store bytes for a job and return where they are; bytes that are there already are not stored again.

        Raises `QueueFullError` when the store is full, `TransportError` or `StateError` when a server does not
        answer; the job then refers to nothing new.
        """
        sha256 = await _sha256(content)
        name = f"{sha256}.{secrets.token_hex(8)}"
        # Doomed before the first byte: a process that dies while it uploads leaves a name that a sweep finds.
        known = await self._references.acquire(sha256, job_id, upload=(name, UPLOAD_S))
        if known and await self._will_last(known):
            return MediaRef(sha256=sha256, object_name=known, num_bytes=len(content))
        try:
            if known:
                await self._references.doom(name, UPLOAD_S)
            name = await self._upload(content, sha256, job_id, name, replaces=known)
        except BaseException:
            if known:
                await self._references.release((sha256,), job_id)
            raise
        return MediaRef(sha256=sha256, object_name=name, num_bytes=len(content))

    async def get(self, ref: MediaRef) -> bytes:
        """Return the bytes that `ref` stands for.

        Raises `MediaMissingError` when the store has them no more or has others, and what `MediaRoots.read` does.
        """
        if ref.url:
            return await self._read_elsewhere(ref)
        content = await self._objects.get(ref.object_name, ref.num_bytes)
        if content is None:
            raise MediaMissingError(f"the media store has no {ref.object_name} of {ref.num_bytes} bytes (any more)")
        if await _sha256(content) != ref.sha256:
            raise MediaMissingError(f"the bytes stored as {ref.object_name} are not the ones that were put there")
        return content

    async def release(self, media: JobSpec | Iterable[MediaRef], job_id: str) -> None:
        """Let the job need its media no more. Doing it again changes nothing."""
        refs = media.media() if isinstance(media, JobSpec) else tuple(media)
        await self._references.release(tuple({ref.sha256 for ref in refs if not ref.url}), job_id)

    async def keep(self, spec: JobSpec) -> None:
        """Leave a failed job its media for a while, so that it can be sent again. Instead of `release`.

        They go after `KEEP_S`, or earlier, the oldest first, when the store is more than half full.
        """
        await self._references.keep(_sha256s(spec), spec.media_holder, KEEP_S)

    async def keep_beyond(self, spec: JobSpec) -> None:
        """Leave the media of a job for a while after its end as well, as those of failed jobs are left."""
        shas, holder = _sha256s(spec), _beyond(spec)
        await self._references.keep(shas, holder, KEEP_S)
        for sha256 in shas:
            await self._references.acquire(sha256, holder)

    async def release_beyond(self, spec: JobSpec) -> None:
        """Take back `keep_beyond`."""
        await self.release(spec, _beyond(spec))

    async def reclaim(self, spec: JobSpec) -> JobSpec:
        """Get the media of a job that is to be sent again as `spec`; return it with the places where they are.

        For an hour; to be followed by `hold` once the job is queued, or `release`. Raises `MediaMissingError` when some
        are gone.
        """
        shas, holder = _sha256s(spec), spec.media_holder
        # Before the first reference: a process that dies meanwhile leaves none that stay.
        await self._references.keep(shas, holder, UPLOAD_S)
        try:
            refs = {ref.sha256: await self._reclaim(ref, holder) for ref in spec.stored_media()}
        except BaseException:
            await self._references.release(shas, holder)
            raise
        return spec.with_media(refs)

    async def hold(self, spec: JobSpec) -> None:
        """Let what was reclaimed stay until it is released."""
        await self._references.hold(_sha256s(spec), spec.media_holder)

    async def sweep(self, grace_s: float = 60.0) -> int:
        """Delete what no job has needed for `grace_s` seconds; return the number of objects deleted.

        Any number of processes may do this at once. One that dies half-way leaves its work to the next.
        """
        await self._references.release_due()
        await self._references.release_unknown()
        num_deleted = 0
        if await self.size_bytes() > _KEPT_SHARE * self.max_bytes:
            num_released = await self._references.release_oldest()
            if num_released:
                log.warning("media_of_failed_jobs_released", num_references=num_released, reason="the store fills up")
        while names := await self._references.take_deletable(grace_s):
            deleting = (self._objects.delete(name) for name in names)
            for done in await asyncio.gather(*deleting, return_exceptions=True):
                if isinstance(done, BaseException):
                    raise done
            await self._references.forget(names)
            num_deleted += len(names)
        return num_deleted

    async def size_bytes(self) -> int:
        """Return how many bytes the store holds, overhead included."""
        return await self._objects.size_bytes()

    async def fullness(self) -> float:
        """Return how full the store is: near 1 it takes nothing any more. Raises `TransportError`."""
        return await self._objects.fullness()

    @property
    def _references(self) -> MediaReferences:
        if self._maybe_references is None:
            raise StateError("this media store was opened for reading, without Redis")
        return self._maybe_references

    async def _read_elsewhere(self, ref: MediaRef) -> bytes:
        try:
            async with asyncio.timeout(_READ_S):
                return await in_daemon_thread(self.roots.read, ref)
        except TimeoutError as error:
            raise MediaFetchError(f"the file was not read within {_READ_S:g} s", retryable=True) from error

    async def _reclaim(self, ref: MediaRef, holder: str) -> MediaRef:
        name = await self._references.acquire(ref.sha256, holder)
        if name is None:
            raise MediaMissingError(f"the media store has no {ref.object_name} of {ref.num_bytes} bytes any more")
        found = MediaRef(sha256=ref.sha256, object_name=name, num_bytes=ref.num_bytes)
        return found if await self._will_last(name) else await self.put(await self.get(found), holder)

    async def _will_last(self, name: str) -> bool:
        """Whether the object is there and will be for as long as a job may reasonably wait."""
        age_s = await self._objects.age_s(name)
        return age_s is not None and age_s < self._max_age_s / 2

    async def _upload(self, content: bytes, sha256: str, job_id: str, name: str, *, replaces: str | None) -> str:
        try:
            async with self._upload_slots:
                chunk_bytes = min(CHUNK_BYTES, self._jetstream.max_message_bytes)
                await self._objects.put(name, content, chunk_bytes=chunk_bytes)
            adopted = await self._references.adopt(sha256, job_id, name, replaces=replaces)
        except PipelineError:
            await self._discard(name)
            raise
        if adopted is None:
            raise TransportError(f"storing {len(content)} bytes took longer than {UPLOAD_S:g} s; try again")
        if adopted != name:
            await self._discard(name)
        return adopted

    async def _discard(self, name: str) -> None:
        """Make room at once for what nobody refers to; where that fails, a sweep does it later."""
        try:
            await self._objects.delete(name)
            await self._references.forget([name])
        except PipelineError as error:
            log.warning("media_left_for_sweep", object=name, reason=str(error))


def _beyond(spec: JobSpec) -> str:
    return f"{spec.job_id}.beyond"


def _sha256s(spec: JobSpec) -> tuple[str, ...]:
    return tuple({ref.sha256 for ref in spec.stored_media()})


async def _sha256(content: bytes) -> str:
    if len(content) <= _HASH_INLINE_BYTES:
        return hashlib.sha256(content).hexdigest()
    return (await asyncio.to_thread(hashlib.sha256, content)).hexdigest()
