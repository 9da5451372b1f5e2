"""A signal that wakes all who wait at that moment, again and again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any


class BroadcastEvent:
    """Check a condition, and `wait` while it does not hold; nothing is missed if there is no await in between."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._listeners: set[Callable[[], None]] = set()

    def fire(self) -> None:
        """Wake everyone who waits, and call everyone who listens."""
        self._event.set()
        self._event = asyncio.Event()
        for listener in tuple(self._listeners):
            listener()

    @contextmanager
    def heard_by(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` at every `fire` while the context is open."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)

    def wait(self) -> Coroutine[Any, Any, object]:
        """Return what ends at the next `fire` after this call, also when it is awaited later, or in another task."""
        return self._event.wait()
