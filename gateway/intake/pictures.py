"""Gets the bytes of a job's images from wherever the request says they are, and checks their headers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.intake.data_url import decode_data_url, is_data_url
from gateway.intake.fetch import ByteBudget, ImageFetcher
from gateway.intake.images import ImageLimits, check_image
from gateway.intake.job_draft import Source, Upload
from gateway.settings import Limits

_NUM_PARALLEL_FETCHES = 4
_LARGE_BYTES = 1024 * 1024
"""What takes longer than a few milliseconds to decode is decoded in a thread."""


class PictureLoader:
    """Turns sources into checked bytes."""

    def __init__(self, fetcher: ImageFetcher, limits: Limits) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._image_limits = ImageLimits(limits.max_image_bytes, limits.max_image_pixels)

    async def load(self, sources: Sequence[Source]) -> list[bytes]:
        """Return the bytes of every source, in order; the first `MediaError` stops the others and is raised."""
        budget = ByteBudget(self._limits.max_body_bytes)
        turns = asyncio.Semaphore(_NUM_PARALLEL_FETCHES)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._load_one(source, budget, turns)) for source in sources]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]

    async def _load_one(self, source: Source, budget: ByteBudget, turns: asyncio.Semaphore) -> bytes:
        content = source.content if isinstance(source, Upload) else await self._open(source.url, source, budget, turns)
        check_image(content, self._image_limits, field=source.field)
        return content

    async def _open(self, url: str, source: Source, budget: ByteBudget, turns: asyncio.Semaphore) -> bytes:
        if not is_data_url(url):
            async with turns:
                return await self._fetcher.fetch(url, budget, name=source.field)
        if len(url) < _LARGE_BYTES:
            return decode_data_url(url, max_bytes=self._limits.max_image_bytes, field=source.field)
        return await asyncio.to_thread(decode_data_url, url, max_bytes=self._limits.max_image_bytes, field=source.field)
