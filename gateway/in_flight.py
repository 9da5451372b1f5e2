"""Counts the requests under way, so that a gateway that stops can wait for them.

aiohttp's own shutdown drops what clients still send, so that an upload under way could never be finished by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """The requests of one process that have begun and not ended."""

    def __init__(self) -> None:
        self.num_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the context is open."""
        self.num_requests += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.num_requests -= 1
            if self.num_requests == 0:
                self._idle.set()

    async def drained(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; False when `timeout_s` seconds were too few."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
