"""Memory for request bodies: so many bytes in all, taken in the order in which they were asked for.

One client has no more than its part, so that the others come in, whatever one does: while it waits for its own bodies,
those behind it go first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from broker_pipeline.errors import QueueFullError

_LEAST_BYTES = 64 * 1024
"""What a request is taken to cost at least, so that small ones are bounded as well."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    client: str
    size: int
    turn: asyncio.Future[None]


class UploadRoom:
    """The bodies that are held now, and those that wait, unread, for their turn."""

    def __init__(self, max_bytes: int, wait_s: float | None, max_client_bytes: int | None = None) -> None:
        """Hold up to `max_bytes`, of one client up to `max_client_bytes` (None: all).

        Who gets no room within `wait_s` seconds is sent away. None: nobody is.
        """
        self._free_bytes = self._max_bytes = max_bytes
        self._max_client_bytes = max_client_bytes or max_bytes
        self._wait_s = wait_s
        self._held: Counter[str] = Counter()
        self._waiting: list[_Waiting] = []

    @asynccontextmanager
    async def hold(self, num_bytes: int, client: str = "") -> AsyncIterator[None]:
        """Hold room for a body; one that is larger than a client's part takes all of that. Raises `QueueFullError`."""
        size = min(max(num_bytes, _LEAST_BYTES), self._max_client_bytes)
        await self._take(client, size)
        try:
            yield
        finally:
            self._give_back(client, size)

    async def _take(self, client: str, size: int) -> None:
        waiting = _Waiting(client, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._let_in()
        try:
            async with asyncio.timeout(self._wait_s):
                await waiting.turn
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
                self._let_in()  # the next one may be smaller
            else:
                self._give_back(client, size)  # it came together with the end of the waiting
            if isinstance(error, TimeoutError):
                raise QueueFullError("too many uploads at the same time", retry_after_s=2.0) from error
            raise

    def _give_back(self, client: str, size: int) -> None:
        self._free_bytes += size
        self._held[client] -= size
        if not self._held[client]:
            del self._held[client]
        self._let_in()

    def _let_in(self) -> None:
        """Give room to who waits, in order, up to the first that lacks nothing but room of everybody's."""
        passed: set[str] = set()
        for waiting in list(self._waiting):
            client = waiting.client
            if client in passed or self._held[client] + waiting.size > self._max_client_bytes:
                passed.add(client)  # its bodies keep their order
                continue
            if waiting.size > self._free_bytes:
                return
            self._waiting.remove(waiting)
            self._free_bytes -= waiting.size
            self._held[client] += waiting.size
            waiting.turn.set_result(None)
