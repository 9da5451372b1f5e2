"""Shows what a job was asked: its question, and its first picture made small.

    asked for ──► kept in Redis? ──► yes: that
                       └── no ──► media store ──► a thread makes it small ──► kept for a day, the newest 1,000

Nobody's pictures are made small unless somebody looks: bulk work costs nothing. A job's media are let go at its end, so
of a job that nobody looked at while it ran, or within a minute of its end, there is only the question.
"""

from __future__ import annotations

import asyncio
import base64
import time

from broker_pipeline import redis_keys
from broker_pipeline.errors import MediaError, MediaMissingError, MediaTooLargeError, QueueFullError
from broker_pipeline.messages.gateway import JobPreview
from broker_pipeline.messages.jobs import ImagePart, JobSpec, MediaRef, TextPart, VideoFilePart, VideoPart, VisualPart
from broker_pipeline.state.job_store import JobStore
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.storage.media import MediaStore
from gateway.viewing.thumbnails import make_thumbnail, max_picture_bytes

NUM_KEPT = 1000
_KEPT_S = 24 * 3600
_MAX_THUMBNAIL_BYTES = 64 * 1024
_MAX_QUESTION = 2000
_MAX_WAITING = 32
"""Who would be the next has to come again."""
_GONE = "The picture was let go when the job ended."
_IS_VIDEO = "There is no small picture of a video file."


class Previews:
    """The previews of one namespace's jobs; one picture at a time is in memory."""

    def __init__(self, redis: RedisClient, namespace: str, store: JobStore, media: MediaStore) -> None:
        self._redis = redis
        self._namespace = namespace
        self._store = store
        self._media = media
        self._turn = asyncio.Lock()
        self._num_waiting = 0

    async def of(self, job_id: str) -> JobPreview:
        """Return a job's preview.

        Raises `JobNotFoundError`, `QueueFullError` where too many ask at once, `StateError` or `TransportError`.
        """
        spec = await self._store.spec(job_id)
        visual = _visual_parts(spec)
        thumbnail, reason = await self._thumbnail(_first(visual)) if visual else (None, None)
        return JobPreview(
            prompt=_question(spec),
            num_images=sum(isinstance(part, ImagePart) for part in visual),
            num_videos=sum(not isinstance(part, ImagePart) for part in visual),
            thumbnail=None if thumbnail is None else _data_url(thumbnail),
            why_none=reason,
        )

    async def _thumbnail(self, ref: MediaRef | None) -> tuple[bytes | None, str | None]:
        if ref is None:
            return None, _IS_VIDEO
        if (kept := await self._kept(ref.sha256)) is not None:
            return kept, None
        try:
            thumbnail = await self._make(ref)
        except MediaMissingError:
            return None, _GONE
        except MediaError as error:
            return None, f"No small picture: {error.message}."
        await self._keep(ref.sha256, thumbnail)
        return thumbnail, None

    async def _make(self, ref: MediaRef) -> bytes:
        if ref.num_bytes > max_picture_bytes():
            raise MediaTooLargeError(f"the file has {ref.num_bytes} bytes")
        if self._num_waiting >= _MAX_WAITING:
            raise QueueFullError("many pictures are being made small; ask again", retry_after_s=1.0)
        self._num_waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(make_thumbnail, await self._media.get(ref))
        finally:
            self._num_waiting -= 1

    async def _kept(self, sha256: str) -> bytes | None:
        with state_errors("cannot look for a thumbnail"):
            kept: bytes | None = await self._redis.get(redis_keys.thumbnail(self._namespace, sha256))  # type: ignore[assignment]
        return kept if kept and len(kept) <= _MAX_THUMBNAIL_BYTES else None

    async def _keep(self, sha256: str, thumbnail: bytes) -> None:
        """Keep it, and let the oldest go where there are many: who dies in between leaves them for their day."""
        index = redis_keys.thumbnails(self._namespace)
        with state_errors("cannot keep a thumbnail"):
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.set(redis_keys.thumbnail(self._namespace, sha256), thumbnail, ex=_KEPT_S)
                pipeline.zadd(index, {sha256: time.time()})
                pipeline.expire(index, _KEPT_S)
                pipeline.zrange(index, 0, -NUM_KEPT - 1)
                *_, oldest = await pipeline.execute()
            if oldest:
                names = [redis_keys.thumbnail(self._namespace, each.decode()) for each in oldest]
                await self._redis.delete(*names)
                await self._redis.zrem(index, *oldest)


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _visual_parts(spec: JobSpec) -> list[VisualPart]:
    parts = (part for message in spec.messages for part in message.content)
    return [part for part in parts if isinstance(part, ImagePart | VideoPart | VideoFilePart)]


def _first(visual: list[VisualPart]) -> MediaRef | None:
    first = visual[0]
    if isinstance(first, ImagePart):
        return first.media
    return first.frames[0] if isinstance(first, VideoPart) else None


def _question(spec: JobSpec) -> str:
    """Return the beginning of what the last message says."""
    return "".join(part.text for part in spec.messages[-1].content if isinstance(part, TextPart))[:_MAX_QUESTION]
