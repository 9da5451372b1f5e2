"""A signal that wakes all who wait at that moment, again and again."""

from __future__ import annotations

import asyncio


class BroadcastEvent:
    """Check a condition, and `wait` while it does not hold; nothing is missed if there is no await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake everyone who waits."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Return at the next `fire`, or after `timeout_s` seconds."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return
