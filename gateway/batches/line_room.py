"""Has lines of batches wait for room, and leaves some to requests that somebody waits for.

    memory       what is fetched for lines has a room of its own
    job queue, media store       lines come in up to three quarters of each; the last one is for requests

A line's pictures are taken to have a few megabytes. Where they have more, all that a request may have is held for
them, and they are fetched once more: to wait in the middle would cost the connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import structlog

from broker_pipeline.errors import MediaTooLargeError
from broker_pipeline.messages.jobs import MediaRef
from broker_pipeline.storage.jobs import JobQueue
from broker_pipeline.storage.media import MediaStore
from gateway.intake.job_draft import JobDraft
from gateway.intake.pictures import PictureLoader
from gateway.intake.upload_room import UploadRoom
from gateway.settings import Limits

_NUM_LARGEST = 4
"""Lines whose pictures are as large as they may be that are held at the same time."""
_EXPECTED_BYTES = 8 * 2**20
_SHARE = 0.75
_LOOK_S = 1.0

log = structlog.get_logger()


class LineRoom:
    """The room of one process."""

    def __init__(self, pictures: PictureLoader, queue: JobQueue, media: MediaStore, max_body_bytes: int) -> None:
        self._pictures = pictures
        self._queue = queue
        self._media = media
        self._memory = UploadRoom(_NUM_LARGEST * max_body_bytes, wait_s=None)
        self._turn = asyncio.Lock()
        self._looked_at = float("-inf")
        self._fullness = 0.0
        self._coming = 0.0
        """Shares of lines whose jobs are being made."""

    @asynccontextmanager
    async def pictures(self, draft: JobDraft, limits: Limits) -> AsyncIterator[tuple[bytes | MediaRef, ...]]:
        """Load a line's pictures, and wait until there is room for its job.

        Raises `MediaError`, `StateError` or `TransportError`.
        """
        async with AsyncExitStack() as held:
            contents = await self._loaded(self._pictures.referenced(draft), limits, held)
            num_bytes = sum(len(each) for each in contents if isinstance(each, bytes))
            share = max(1 / self._queue.max_jobs, num_bytes / self._media.max_bytes)
            await self._wait(share)
            try:
                yield contents
            finally:
                self._coming -= share

    async def _loaded(self, draft: JobDraft, limits: Limits, held: AsyncExitStack) -> tuple[bytes | MediaRef, ...]:
        expected = msgspec.structs.replace(limits, max_body_bytes=min(_EXPECTED_BYTES, limits.max_body_bytes))
        if draft.is_fetched:
            async with AsyncExitStack() as room:
                await room.enter_async_context(self._memory.hold(expected.max_body_bytes))
                try:
                    contents = tuple(await self._pictures.load(draft, expected))
                except MediaTooLargeError:
                    pass
                else:
                    held.push_async_exit(room.pop_all())
                    return contents
            await held.enter_async_context(self._memory.hold(limits.max_body_bytes))
        return tuple(await self._pictures.load(draft, limits))

    async def _wait(self, share: float) -> None:
        async with self._turn:
            if self._fullness >= _SHARE or time.monotonic() - self._looked_at >= _LOOK_S:
                await self._look()
            if self._fullness >= _SHARE:
                log.info("batches_wait_for_room", fullness=round(self._fullness, 2))
            while self._fullness >= _SHARE:
                await asyncio.sleep(_LOOK_S)
                await self._look()
            self._fullness += share
            self._coming += share

    async def _look(self) -> None:
        self._fullness = self._coming + max(await self._queue.fullness(), await self._media.fullness())
        self._looked_at = time.monotonic()
