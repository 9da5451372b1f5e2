"""Whole steps as CUDA graphs, one for each of a few sizes.

    n tokens ─► the next larger size ─► inputs copied into fixed buffers ─► replay ─► the first n are the answer

The host takes longer to launch the hundreds of kernels of a step than the GPU takes to compute them; a graph is one
launch. All graphs share one pool of memory and one set of buffers, since only one runs at a time. Steps captured by
batch size are vLLM's idea.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
GraphPool: TypeAlias = Any
"""What `torch.cuda.graph_pool_handle` gives: memory that several graphs use one after the other."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A captured step's results, in buffers that the next replay overwrites.

    At the last stage `logits` `[r, V]` and `greedy` int64 `[r]` as of `LogitScan`; elsewhere `hidden` `[n, H]`.
    """

    hidden: Tensor | None = None
    logits: Tensor | None = None
    greedy: Tensor | None = None


def sizes_up_to(most: int, strides: Sequence[tuple[int, int]], first: Sequence[int] = ()) -> tuple[int, ...]:
    """Return sizes that grow by a stride up to a limit, for each (limit, stride), up to the first that holds `most`."""
    sizes = list(first)
    for limit, stride in strides:
        start = (sizes[-1] // stride + 1) * stride if sizes else stride
        sizes += range(start, limit + 1, stride)
    return tuple(sizes[: bisect.bisect_left(sizes, most) + 1])


class GraphSet(Generic[T]):
    """The captured steps of one kind; used on one thread."""

    def __init__(self, sizes: Sequence[int], step: Callable[[int], T], pool: GraphPool) -> None:
        """Capture `step(size)` for every size. `step` reads its inputs from buffers that stay where they are."""
        self._sizes = tuple(sizes)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, T] = {}
        stream = torch.cuda.Stream()
        for size in reversed(self._sizes):  # the largest first: the others fit into its memory
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(size)  # builds and loads kernels, which a capture must not
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs[size] = step(size)
            self._graphs[size] = graph

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes that there are, smallest first."""
        return self._sizes

    def keep(self, sizes: Sequence[int]) -> None:
        """Give up all others."""
        self._sizes = tuple(sizes)
        self._graphs = {size: self._graphs[size] for size in sizes}
        self._outputs = {size: self._outputs[size] for size in sizes}

    def size_for(self, num: int) -> int | None:
        """Return the size that holds `num`; None if it is too much."""
        index = bisect.bisect_left(self._sizes, num)
        return self._sizes[index] if index < len(self._sizes) else None

    def replay(self, size: int) -> T:
        """Queue the step and return what `step` did; that is complete in stream order."""
        self._graphs[size].replay()
        return self._outputs[size]
