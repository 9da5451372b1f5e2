"""Where the time of one event loop goes, by named parts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds by part; a part inside another one is taken from that."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _switch(self) -> None:
        now = time.perf_counter()  # the clock of this thread's time takes longer to read than some parts to run
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    async def steps(self, name: str, work: Awaitable[T]) -> T:
        """Await something and count the steps that it takes, not what it waits for."""
        return await _Stepwise(self, name, work)


class _Stepwise(Awaitable[T]):
    def __init__(self, watch: Stopwatch, name: str, work: Awaitable[T]) -> None:
        self._watch, self._name, self._work = watch, name, work

    def __await__(self) -> Generator[Any, Any, T]:
        steps = self._work.__await__()
        go_on: Callable[[], Any] = partial(steps.send, None)
        while True:
            try:
                with self._watch.part(self._name):
                    waited = go_on()
            except StopIteration as end:
                result: T = end.value
                return result
            try:
                go_on = partial(steps.send, (yield waited))
            except BaseException as error:  # noqa: BLE001 - thrown into what waits
                go_on = partial(steps.throw, error)
