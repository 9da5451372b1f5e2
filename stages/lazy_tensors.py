"""Tensors as a mapping that reads each when it is asked for, so that nobody holds them all at once.

asked for      a
being read     a  b  c  d     by threads, so that reading, hashing and what is done with the tensors overlap
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

_MOST_THREADS = 8
_AHEAD_PER_THREAD = 3
"""Tensors: every second one is a norm, read in no time."""
_AHEAD_BYTES = 4 * 2**30


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=_Sized)


class LazyTensors(Mapping[str, T], Generic[T]):
    """Tensors by name; keeps none. Those that follow in order are read ahead. Reading ends with the context."""

    def __init__(self, sizes: Mapping[str, int], read: Callable[[str], T]) -> None:
        """Read by `read(name)`, on any thread; `sizes` in bytes, in the order in which tensors lie in their files."""
        self._sizes = sizes
        self._read = read
        self._places = {name: place for place, name in enumerate(sizes)}
        self._names = tuple(sizes)
        self._num_threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix="weights")
        self._begun: set[str] = set()
        self._coming: dict[str, Future[T]] = {}
        self.num_bytes = 0
        """Bytes of what was taken so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._coming.clear()
        self._pool.shutdown(cancel_futures=True)

    def __getitem__(self, name: str) -> T:
        place = self._places[name]
        future = self._coming.pop(name, None) or self._pool.submit(self._read, name)
        self._begun.add(name)
        self._read_ahead(place + 1)
        tensor = future.result()
        self.num_bytes += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read_ahead(self, first: int) -> None:
        """Begin with the tensors from place `first` on, each once, as far as threads and room go."""
        for name in self._names[first : first + _AHEAD_PER_THREAD * self._num_threads]:
            num_bytes = self._sizes[name] + sum(self._sizes[coming] for coming in self._coming)
            if name not in self._begun and num_bytes <= _AHEAD_BYTES:
                self._begun.add(name)
                self._coming[name] = self._pool.submit(self._read, name)
