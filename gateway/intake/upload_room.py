"""Memory for request bodies: so many bytes in all, taken in the order in which they were asked for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker_pipeline.errors import QueueFullError

_LEAST_BYTES = 64 * 1024
"""What a request is taken to cost at least, so that small ones are bounded as well."""


class UploadRoom:
    """The bodies that are held now, and those that wait, unread, for their turn."""

    def __init__(self, max_bytes: int, wait_s: float | None) -> None:
        """Hold up to `max_bytes`; who gets no room within `wait_s` seconds is sent away. None: nobody is."""
        self._free_bytes = self._max_bytes = max_bytes
        self._wait_s = wait_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, num_bytes: int) -> AsyncIterator[None]:
        """Hold room for a body; one that is larger than all of it has it alone. Raises `QueueFullError`."""
        size = min(max(num_bytes, _LEAST_BYTES), self._max_bytes)
        await self._take(size)
        try:
            yield
        finally:
            self._give_back(size)

    async def _take(self, size: int) -> None:
        if not self._waiting and size <= self._free_bytes:
            self._free_bytes -= size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            async with asyncio.timeout(self._wait_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_back(size)  # it came together with the end of the waiting
            else:
                self._waiting.remove((size, turn))
                self._give_back(0)  # the next one may be smaller
            if isinstance(error, TimeoutError):
                raise QueueFullError("too many uploads at the same time", retry_after_s=2.0) from error
            raise

    def _give_back(self, size: int) -> None:
        self._free_bytes += size
        while self._waiting and self._waiting[0][0] <= self._free_bytes:
            size, turn = self._waiting.popleft()
            self._free_bytes -= size
            turn.set_result(None)
