"""Server-sent events to one client, which may be slow and may go."""

from __future__ import annotations

import time

from aiohttp import web

from gateway.api.connections import reading
from gateway.api.request_facts import HEADER, request_id

HEARTBEAT_S = 15.0


class EventStream:
    """The answer that the events go into; it begins with the first of them."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._last_write = time.monotonic()
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
                HEADER: request_id(),
            }
        )

    @property
    def is_open(self) -> bool:
        """Whether the answer has begun, so that it can be no other one any more."""
        return self.response.prepared

    async def write(self, text: bytes) -> None:
        """Send, waiting for a slow client but not for ever. Raises `ConnectionError` once it is gone or cut off."""
        async with reading(self._request, len(text)):
            if not self.is_open:
                await self.response.prepare(self._request)
            await self.response.write(text)
        self._last_write = time.monotonic()

    async def keep_alive(self) -> None:
        """Say that there is no news, now and then."""
        if time.monotonic() - self._last_write >= HEARTBEAT_S:
            await self.write(b": idle\n\n")

    async def close(self) -> None:
        """End the answer."""
        async with reading(self._request, 0):
            await self.response.write_eof()
