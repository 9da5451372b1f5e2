"""Gets the bytes of a job's images from wherever the request says they are, and checks their headers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from broker_pipeline.pictures.header import check_picture
from broker_pipeline.pictures.rule import PictureRule
from broker_pipeline.pictures.video import check_video
from gateway.intake.data_url import decode_data_url, is_data_url
from gateway.intake.fetch import ByteBudget, ImageFetcher
from gateway.intake.job_draft import Link, Source, Upload
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


class PictureLoader:
    """Turns sources into checked bytes."""

    def __init__(self, fetcher: ImageFetcher) -> None:
        self._fetcher = fetcher

    async def load(self, sources: Sequence[Source], limits: Limits) -> list[bytes]:
        """Return the bytes of every source, in order; the first `MediaError` stops the others and is raised."""
        job = _Job(limits.pictures, ByteBudget(limits.max_body_bytes), asyncio.Semaphore(_NUM_PARALLEL_FETCHES))
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._load_one(source, job)) for source in sources]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _load_one(self, source: Source, job: _Job) -> bytes:
        content = source.content if isinstance(source, Upload) else await self._open(source, job)
        if source.is_video:
            await asyncio.to_thread(check_video, content, job.rule, field=source.field)
        elif len(content) < _LARGE_BYTES:
            check_picture(content, job.rule, field=source.field)
        else:
            await asyncio.to_thread(check_picture, content, job.rule, field=source.field)
        return content

    async def _open(self, link: Link, job: _Job) -> bytes:
        max_bytes = job.rule.max_video_bytes if link.is_video else job.rule.max_bytes
        if not is_data_url(link.url):
            async with job.turns:
                return await self._fetcher.fetch(link.url, job.budget, max_bytes=max_bytes, name=link.field)
        if len(link.url) < _LARGE_BYTES:
            return decode_data_url(link.url, max_bytes=max_bytes, field=link.field)
        return await asyncio.to_thread(decode_data_url, link.url, max_bytes=max_bytes, field=link.field)
