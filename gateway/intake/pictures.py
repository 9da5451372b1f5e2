"""Gets the bytes of a job's images from wherever the request says they are, and checks their headers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker_pipeline.errors import ImageShapeError, MediaMissingError
from broker_pipeline.messages.jobs import MediaRef
from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureHeader, PictureRule
from broker_pipeline.pictures.video import VideoHeader, check_video
from broker_pipeline.storage.media import MediaStore
from gateway.intake.data_url import decode_data_url, is_data_url
from gateway.intake.fetch import ByteBudget, ImageFetcher
from gateway.intake.job_draft import Draft, JobDraft, Link, Source, Stored, Upload, VideoPlace
from gateway.settings import Limits

_NUM_PARALLEL_FETCHES = 4
_LARGE_BYTES = 1024 * 1024
"""What may take longer than a few milliseconds is decoded, and its header read, in a thread."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What the pictures of one job share."""

    rule: PictureRule
    budget: ByteBudget
    turns: asyncio.Semaphore


_Loaded = tuple[bytes, PictureHeader | VideoHeader] | tuple[MediaRef, None]


class PictureLoader:
    """Turns sources into checked bytes."""

    def __init__(self, fetcher: ImageFetcher, media: MediaStore) -> None:
        self._fetcher = fetcher
        self._media = media

    def referenced(self, draft: Draft) -> Draft:
        """Return the draft with those links as references that workers read. Raises `MediaError`."""
        return replace(draft, sources=tuple(map(self._referenced, draft.sources)))

    def _referenced(self, source: Source) -> Source:
        if not isinstance(source, Link) or is_data_url(source.url):
            return source
        ref = self._media.roots.reference(source.url, source.field)
        return source if ref is None else Stored(source.field, ref, source.is_video)

    async def load(self, draft: JobDraft, limits: Limits) -> list[bytes | MediaRef]:
        """Return every source's bytes, or where workers read them, in order.

        The first `MediaError` stops the others and is raised.
        """
        job = _Job(limits.pictures, ByteBudget(limits.max_body_bytes), asyncio.Semaphore(_NUM_PARALLEL_FETCHES))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._load_one(source, job)) for source in draft.sources]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        loaded = [task.result() for task in tasks]
        if all(header is not None for _, header in loaded):
            _check_frames(draft, [header for _, header in loaded if header is not None])
        return [content for content, _ in loaded]

    async def _load_one(self, source: Source, job: _Job) -> _Loaded:
        if isinstance(source, Stored) and source.ref.url:
            return source.ref, None
        content = source.content if isinstance(source, Upload) else await self._open(source, job)
        check = check_video if source.is_video else check_picture
        if source.is_video or len(content) >= _LARGE_BYTES:
            header: PictureHeader | VideoHeader = await asyncio.to_thread(check, content, job.rule, field=source.field)
            return content, header
        return content, check(content, job.rule, field=source.field)

    async def _open(self, link: Link | Stored, job: _Job) -> bytes:
        if isinstance(link, Stored):
            job.budget.spend(link.ref.num_bytes, link.field)
            return await self._stored(link)
        max_bytes = job.rule.max_video_bytes if link.is_video else job.rule.max_bytes
        if not is_data_url(link.url):
            async with job.turns:
                return await self._fetcher.fetch(link.url, job.budget, max_bytes=max_bytes, name=link.field)
        if len(link.url) < _LARGE_BYTES:
            return decode_data_url(link.url, max_bytes=max_bytes, field=link.field)
        return await asyncio.to_thread(decode_data_url, link.url, max_bytes=max_bytes, field=link.field)

    async def _stored(self, source: Stored) -> bytes:
        try:
            return await self._media.get(source.ref)
        except MediaMissingError as error:
            raise MediaMissingError("the pictures of that conversation are gone", field=source.field) from error


def _check_frames(draft: JobDraft, headers: Sequence[PictureHeader | VideoHeader]) -> None:
    """Raise `ImageShapeError` for frames of a video that cannot be of one size, however they are turned."""
    for place in (part for message in draft.messages for part in message.content if isinstance(part, VideoPlace)):
        first = headers[place.start]
        for index in range(place.start + 1, place.stop):
            frame = headers[index]
            if {frame.width, frame.height} != {first.width, first.height}:
                raise ImageShapeError(
                    f"this frame has {frame.width} x {frame.height} pixels, the first one of its video "
                    f"{first.width} x {first.height}",
                    field=draft.sources[index].field,
                )
