"""A signal that wakes all who wait at that moment, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class BroadcastEvent:
    """Check a condition, and `wait` while it does not hold; nothing is missed if there is no await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def fire(self) -> None:
        """Wake everyone who waits."""
        self._event.set()
        self._event = asyncio.Event()

    def wait(self) -> Coroutine[Any, Any, object]:
        """Return what ends at the next `fire` after this call, also when it is awaited later, or in another task."""
        return self._event.wait()
