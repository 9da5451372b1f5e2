"""Turns an HTTP request into a checked draft with its media in hand: whatever is wrong is found before a job exists.

At most `max_uploads` bodies are read at the same time; the next ones wait a little, unread, and are then sent away.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from broker_pipeline.errors import BodyTooSlowError, InvalidRequestError, QueueFullError
from gateway.intake.body import check_announced, read_body
from gateway.intake.current_limits import CurrentLimits
from gateway.intake.job_draft import Source, Submission, check_output_limit, draft_job
from gateway.intake.multipart import job_request, read_form, sampling_path
from gateway.intake.pictures import PictureLoader
from gateway.intake.validation import decode_json
from gateway.schemas import JobRequest
from gateway.settings import Limits

IDEMPOTENCY_HEADER = "Idempotency-Key"
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT_FOR_SLOT_S = 10.0
_LARGE_BYTES = 1024 * 1024
_SAMPLING_PATH = "sampling."


class RequestReader:
    """Reads submissions, a bounded number at a time."""

    def __init__(self, pictures: PictureLoader, limits: CurrentLimits, max_uploads: int) -> None:
        self._pictures = pictures
        self._limits = limits
        self._turns = asyncio.Semaphore(max_uploads)
        self.num_reading = 0
        """Bodies held in memory now."""

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places for a body; raises `QueueFullError` when none becomes free soon."""
        try:
            async with asyncio.timeout(_WAIT_FOR_SLOT_S):
                await self._turns.acquire()
        except TimeoutError as error:
            raise QueueFullError("too many uploads at the same time", retry_after_s=2.0) from error
        self.num_reading += 1
        try:
            yield
        finally:
            self.num_reading -= 1
            self._turns.release()

    async def read(self, request: web.Request) -> Submission:
        """Read, check and fetch everything that `request` brings and names. Call it inside a `slot`."""
        key = idempotency_key(request)
        limits = await self._limits.get()
        check_announced(request, limits.max_body_bytes)
        try:
            async with asyncio.timeout(limits.upload_timeout_s):
                job, media, where = await _parse(request, limits)
        except TimeoutError as error:
            raise BodyTooSlowError(f"the body did not arrive within {limits.upload_timeout_s:g} s") from error
        check_output_limit(job.sampling, limits, where)
        draft = draft_job(job, media, limits)
        return Submission(draft, tuple(await self._pictures.load(draft.sources, limits)), key)


async def _parse(request: web.Request, limits: Limits) -> tuple[JobRequest, tuple[Source, ...], str]:
    """Return the request, what came alongside it, and what stands before the names of its sampling fields."""
    if request.content_type == "multipart/form-data":
        form = await read_form(request, limits)
        return job_request(form), form.media, sampling_path(form)
    if request.content_type != "application/json":
        raise InvalidRequestError(
            f"send multipart/form-data or application/json, not {request.content_type}", field="Content-Type"
        )
    body = await read_body(request, limits.max_body_bytes)
    if len(body) < _LARGE_BYTES:
        return decode_json(body, JobRequest), (), _SAMPLING_PATH
    return await asyncio.to_thread(decode_json, body, JobRequest), (), _SAMPLING_PATH


def idempotency_key(request: web.Request) -> str | None:
    """Return the request's idempotency key, checked."""
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequestError("a key has 1 to 255 visible ASCII characters", field=IDEMPOTENCY_HEADER)
    return key
