"""How many layers each stage gets, so that the slowest stage is as fast as can be.

Layers are all alike, so a stage with k of them takes fixed + k * each, and only the numbers of layers matter. Giving
layer after layer to the stage that is then least busy is exact: no other numbers have a lower maximum.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageLoad:
    """A stage before it has layers."""

    fixed: float
    """What it takes beside layers."""
    each: float
    """What each layer takes."""
    most_layers: int
    """Layers that it has room for."""


def cut_layers(num_layers: int, stages: Sequence[StageLoad]) -> list[int] | None:
    """Return the layers of each stage, at least one; None where they do not fit, or are fewer than stages."""
    counts = [1] * len(stages)
    if num_layers < len(stages) or any(stage.most_layers < 1 for stage in stages):
        return None
    heap = [(stage.fixed + 2 * stage.each, index) for index, stage in enumerate(stages) if stage.most_layers > 1]
    heapq.heapify(heap)
    for _ in range(num_layers - len(stages)):
        if not heap:
            return None
        load, index = heap[0]
        counts[index] += 1
        if counts[index] < stages[index].most_layers:
            heapq.heapreplace(heap, (load + stages[index].each, index))
        else:
            heapq.heappop(heap)
    return counts


def shares_by_load(loads: Sequence[float], whole: Sequence[float]) -> list[float]:
    """Share one amount of work out by load: fill the least busy stages up to a common level.

    `loads` are what they have, `whole` what each would take for all of the work. Returns parts that add up to 1.
    """
    order = sorted(range(len(loads)), key=loads.__getitem__)
    speed, filled, level = 0.0, 0.0, 0.0
    for position, index in enumerate(order):
        speed += 1 / whole[index]
        filled += loads[index] / whole[index]
        level = (1 + filled) / speed
        following = order[position + 1 : position + 2]
        if not following or level <= loads[following[0]]:
            break
    return [max(0.0, level - load) / cost for load, cost in zip(loads, whole, strict=True)]
