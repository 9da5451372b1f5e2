"""Has the lines of a batch keep to what its key may have under way, together with all else that the key asks for.

    no place, or too many jobs wait ──► the line waits        a request was refused ──► lines leave a place to it

A line has its place until it is answered, under a name that follows from batch and line: whoever carries the batch on
next finds it counted. Nothing is taken from what the key has for a minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Self

from broker_pipeline.errors import RateLimitError
from broker_pipeline.state.access.rate_limits import Wanted
from gateway.access.rates import Rates
from gateway.batches.records import Batch

_LOOK_S = 1.0


class LinePlaces:
    """The places of one run's lines. At the end of the context, those that are left are for who runs the batch next."""

    def __init__(self, rates: Rates, batch: Batch) -> None:
        self._rates = rates
        self._batch_id = batch.id
        self._owner = batch.owner
        self._left = asyncio.Event()
        self._num_coming = 0
        self._taken: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rates.drop(self._owner, self._taken)

    @asynccontextmanager
    async def taken(self, number: int) -> AsyncIterator[None]:
        """Wait for a place, which the line has until it leaves; while this is open, its job is about to wait.

        For one line at a time. Raises `StateError`.
        """
        self._taken.add(name := self._name(number))
        while not await self._has_begun(Wanted(jobs=self._num_coming + 1, name=name, yields=True)):
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._left.wait()
        self._num_coming += 1
        try:
            yield
        finally:
            self._num_coming -= 1

    async def leave(self, numbers: Iterable[int]) -> None:
        """Give places back, also those of lines that an earlier run has taken."""
        names = [self._name(number) for number in numbers]
        await self._rates.end(self._owner, names)
        self._taken.difference_update(names)
        self._left.set()

    async def _has_begun(self, wanted: Wanted) -> bool:
        self._left.clear()
        try:
            await self._rates.begin(self._owner, wanted)
        except RateLimitError:
            return False
        return True

    def _name(self, number: int) -> str:
        return f"{self._batch_id}:{number}"
