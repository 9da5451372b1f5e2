"""A queue between a socket's callback and whoever reads: what `asyncio.Queue` is, at half the cost for each message."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Mailbox(Generic[Item]):
    """First in, first out, for any number of readers. How much may lie in it is the business of who puts it there."""

    def __init__(self) -> None:
        """Begin empty."""
        self._items: deque[Item] = deque()
        self._readers: deque[asyncio.Future[None]] = deque()

    def put(self, item: Item) -> None:
        """Put an item in and wake a reader."""
        self._items.append(item)
        if self._readers:
            self._wake_one()

    async def get(self) -> Item:
        """Take the oldest item, or wait for one."""
        while not self._items:
            reader = asyncio.get_running_loop().create_future()
            self._readers.append(reader)
            try:
                await reader
            except asyncio.CancelledError:
                if reader.cancelled():
                    if reader in self._readers:  # not where an item came before this task heard that it is cancelled
                        self._readers.remove(reader)
                elif self._items:
                    self._wake_one()  # it was woken for an item that somebody else has to take now
                raise
        return self._items.popleft()

    def _wake_one(self) -> None:
        while self._readers:
            reader = self._readers.popleft()
            if not reader.done():
                reader.set_result(None)
                return
