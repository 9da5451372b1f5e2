"""Whole decode steps as CUDA graphs, one for each of a few batch sizes.

    n rows ─► the next larger size B ─► inputs of B rows copied in ─► replay ─► the first n rows are the answer

A step of a few hundred kernels takes the host longer to launch than the card to compute; a graph is one launch. All
graphs share one pool of memory, one buffer of inputs and one of logits, since only one runs at a time. The idea of
captured steps by batch size is vLLM's and, before it, that of NVIDIA's examples.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALL_SIZES = (1, 2, 4)
_STRIDES = ((64, 8), (256, 16), (1024, 32))  # up to a size, in steps of


@dataclass(frozen=True, slots=True)
class StepOutput:
    """A captured step's results, rows of buffers that the next replay overwrites.

    At the last stage `logits` `[B, V]`, `greedy` int64 `[B]` and `is_finite` bool `[B]`; elsewhere `hidden` `[B, H]`.
    """

    hidden: Tensor | None = None
    logits: Tensor | None = None
    greedy: Tensor | None = None
    is_finite: Tensor | None = None


def graph_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes to capture, up to the first that holds `most` rows."""
    sizes = list(_SMALL_SIZES)
    for limit, stride in _STRIDES:
        sizes += range((sizes[-1] // stride + 1) * stride, limit + 1, stride)
    return tuple(sizes[: bisect.bisect_left(sizes, most) + 1])


class StepGraphs:
    """The captured steps of one stage; used on one thread."""

    def __init__(self, step: Callable[[int], StepOutput], most_rows: int) -> None:
        """Captures `step(size)` for every size. `step` reads its inputs from buffers that stay where they are."""
        self._sizes = graph_sizes(most_rows)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, StepOutput] = {}
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()
        for size in reversed(self._sizes):  # the largest first: the others fit into its memory
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step(size)  # builds kernels, which a capture must not
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._outputs[size] = step(size)
            self._graphs[size] = graph

    @property
    def most_rows(self) -> int:
        """Rows of the largest step."""
        return self._sizes[-1]

    def size_for(self, num_rows: int) -> int | None:
        """The size of the graph that `num_rows` rows take; None if they are too many."""
        index = bisect.bisect_left(self._sizes, num_rows)
        return self._sizes[index] if index < len(self._sizes) else None

    def replay(self, size: int) -> StepOutput:
        """Queues the step; its outputs are complete in stream order."""
        self._graphs[size].replay()
        return self._outputs[size]
