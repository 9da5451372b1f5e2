"""A source that never ends: what comes into folders, once it has come whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from broker_pipeline.captioning.sources.item import Item, Source

_POLL_S = 2.0

Facts = tuple[int, int]


class Watching:
    """Looks at a source again and again, and yields what is new or has changed.

    A file counts once its size and time are what they were at the look before: what is being copied is not read.
    """

    def __init__(self, look: Callable[[], Source], sleep: Callable[[float], None] = time.sleep) -> None:
        """Take what `look` finds, each time anew."""
        self._look = look
        self._sleep = sleep
        self._yielded: dict[str, Facts] = {}
        self._before: dict[str, Facts] = {}

    @property
    def name(self) -> str:
        """What a person calls it."""
        return "what comes"

    def count(self) -> int | None:
        """Return None: nobody knows what comes."""
        return None

    def __iter__(self) -> Iterator[Item]:
        """Yield items as they come, for ever."""
        while True:
            now: dict[str, Facts] = {}
            for item in self._look():
                if (facts := _facts(item)) is None:
                    continue
                now[item.id] = facts
                if self._before.get(item.id) == facts != self._yielded.get(item.id):
                    self._yielded[item.id] = facts
                    yield item
            self._before = now
            self._sleep(_POLL_S)


def _facts(item: Item) -> Facts | None:
    try:
        found = item.path.stat() if item.path else None
    except OSError:  # it may come back
        return None
    return found and (found.st_size, found.st_mtime_ns)
