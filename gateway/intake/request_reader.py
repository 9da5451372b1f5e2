"""Turns an HTTP request into a checked draft with its media in hand: whatever is wrong is found before a job exists.

The memory for bodies is bounded: it is that of `max_uploads` largest ones, and smaller ones take what they have. Who
finds no room waits a little, unread, and is then sent away. One client, by its key or its address, has half of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from aiohttp import web
from prometheus_client import Gauge

from broker_pipeline.errors import InvalidRequestError
from gateway.access.caller import current_caller
from gateway.access.rates import Rates
from gateway.intake.body import check_announced, read_body
from gateway.intake.current_limits import CurrentLimits
from gateway.intake.job_draft import Draft, Draft_co, Submission
from gateway.intake.job_limits import counted_tokens
from gateway.intake.pictures import PictureLoader
from gateway.intake.upload_room import UploadRoom
from gateway.settings import Limits

IDEMPOTENCY_HEADER = "Idempotency-Key"
IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_WAIT_FOR_ROOM_S = 10.0
_LARGE_BYTES = 1024 * 1024
_SLOW_WORDS = (b'"structured_outputs"', b'"json_schema"', b'"tool_choice"')
"""What has a grammar checked."""

T = TypeVar("T")
Read = Callable[[web.Request, Limits], Awaitable[Draft_co]]


class RequestReader:
    """Reads submissions, as many at a time as there is memory for."""

    def __init__(self, pictures: PictureLoader, limits: CurrentLimits, uploads: Gauge, rates: Rates) -> None:
        """Show in `uploads` how many are being read or stored."""
        self._pictures = pictures
        self._limits = limits
        self._uploads = uploads
        self._rates = rates
        own = limits.own
        max_bytes = own.max_uploads * own.max_body_bytes
        per_client = max(1, own.max_uploads // 2) * own.max_body_bytes
        self._bodies = UploadRoom(max_bytes, _WAIT_FOR_ROOM_S, per_client)
        self._fetched = UploadRoom(max_bytes, _WAIT_FOR_ROOM_S, per_client)

    async def limits(self) -> Limits:
        """Return what requests are held to now. Raises `StateError`."""
        return await self._limits.get()

    @asynccontextmanager
    async def submission(self, request: web.Request, read: Read[Draft_co]) -> AsyncIterator[Submission[Draft_co]]:
        """Read, check and fetch everything that `request` brings and names; its memory is held while this is open.

        `read` makes a checked draft of the request, as its API has it.
        Raises `QueueFullError` when there is no memory for it soon, and what is wrong with the request.
        """
        async with self.room(request):
            key, limits = idempotency_key(request), await self._limits.get()
            draft = await _draft(request, limits, read)
            async with self.prepared(request, draft, limits, key) as submission:
                yield submission

    @asynccontextmanager
    async def room(self, request: web.Request) -> AsyncIterator[None]:
        """Hold memory for a request's body while this is open. Raises `QueueFullError`."""
        async with self._bodies.hold(_num_body_bytes(request, self._limits.own), client_of(request)):
            with self._uploads.track_inprogress():
                yield

    @asynccontextmanager
    async def prepared(
        self, request: web.Request, draft: Draft, limits: Limits, key: str | None
    ) -> AsyncIterator[Submission[Draft]]:
        """Count a draft of a request, and fetch what it names. Raises as `submission` does."""
        draft = self._pictures.referenced(draft)
        await self._rates.charge(
            current_caller(), counted_tokens(draft, limits), field=draft.named("sampling.max_tokens")
        )
        async with AsyncExitStack() as held:
            if draft.is_fetched:  # what is fetched is taken from another room: nobody who holds some waits for a body's
                await held.enter_async_context(self._fetched.hold(limits.max_body_bytes, client_of(request)))
            contents = tuple(await self._pictures.load(draft, limits))
            yield Submission(draft, contents, key, current_caller().tenant)


async def read_json(request: web.Request, limits: Limits, parse: Callable[[bytes], T]) -> T:
    """Read a JSON body and have it parsed, in a thread where that may take long."""
    if (sent := media_type(request)) != "application/json":
        raise InvalidRequestError(f"send application/json, not {sent}", field="Content-Type")
    return await parsed(await read_body(request, limits.max_body_bytes, limits.pace), parse)


async def parsed(body: bytes, parse: Callable[[bytes], T]) -> T:
    """Have JSON parsed, in a thread where that may take long."""
    is_slow = len(body) >= _LARGE_BYTES or any(word in body for word in _SLOW_WORDS)
    return await asyncio.to_thread(parse, body) if is_slow else parse(body)


def client_of(request: web.Request) -> str:
    """Return whose room a request takes: its key's, or its address's."""
    return current_caller().key_hash or request.remote or ""


def media_type(request: web.Request) -> str:
    """Return what a body says that it is, without parameters."""
    # Not aiohttp's `content_type`: it has the email package parse the header, once for every boundary.
    return request.headers.get("Content-Type", "application/octet-stream").partition(";")[0].strip().lower()


async def _draft(request: web.Request, limits: Limits, read: Read[Draft_co]) -> Draft_co:
    check_announced(request, limits.max_body_bytes)
    return await read(request, limits)


def _num_body_bytes(request: web.Request, limits: Limits) -> int:
    """Return how many bytes a body may have in memory: only one that is not packed says so beforehand."""
    if request.content_length is None or "Content-Encoding" in request.headers:
        return limits.max_body_bytes
    return request.content_length


def idempotency_key(request: web.Request) -> str | None:
    """Return the request's idempotency key, checked."""
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequestError("a key has 1 to 255 visible ASCII characters", field=IDEMPOTENCY_HEADER)
    return key
