"""What a step costs on a stage, measured, and how many microbatches that makes worth having in flight.

With D microbatches sharing T tokens, on stages whose step of n tokens takes t_i(n), and h seconds spent outside of
them, every session gets its next token once per

    period(D) = max( D * max_i t_i(T/D) ,      the slowest stage works without pause
                     sum_i t_i(T/D) + h,       one microbatch's way through all stages and back
                     D * sum t_i(T/D) / s )    a device that several stages share, and that computes for s at a time
                                               (plus h, where that device is the processor that h is spent on)
                + D * c                        host time of a microbatch: one thread conducts all routes and jobs

Where t is flat (a GPU reading its weights) splitting gains nothing and D stays small; where t grows with n (a CPU, or
prefill) N stages are kept busy by D = N, and as many more hide h as steps of the slowest stage fit into it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from broker_pipeline.messages.workers import PROCESSOR_PREFIX
from broker_pipeline.scheduling.routes import Route

_FALL = 0.5  # weight of a sample below the mean: warm-up ends, and is forgotten at once
_RISE = 0.1  # weight of one above it: a hiccup is no trend
_FRESH = 256  # steps of any size: what was seen before them may have changed
_OPTIMISM = 0.95  # of what a size not seen lately is taken to cost, so that it is tried again
_MOST = 64  # microbatches in flight: a stage keeps no more envelopes
_TOLERANCE = 1.03  # a larger D has to gain more than this
_HOST_S = 0.0002  # of the conductor for each microbatch, whatever it holds: without it, tiny ones starve its other work


class StepTime(Protocol):
    """Seconds of a stage for a microbatch, whether learned (`StepCost`) or predicted by the planner."""

    @property
    def is_known(self) -> bool:
        """Whether there is anything to go by."""

    def estimate(self, num_tokens: float) -> float:
        """Return the seconds for `num_tokens`."""


class _Seen(NamedTuple):
    num_tokens: float
    seconds: float
    number: int
    """Of the step that was seen last."""


class StepCost:
    """Seconds that one stage needs for a microbatch of n tokens, from what was seen near it: half octaves apart.

    A mean of sizes is kept with each mean of seconds: what is near 2048 tokens may always have been 1800. What was not
    seen lately is taken to cost a little less per token than smaller steps that were: a load that is gone (a tower on
    the same GPU, the first steps) would keep its size from ever being tried again.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._number = 0
        self._curve: tuple[list[float], list[float]] | None = None

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Learn from one microbatch."""
        bucket, self._number = _bucket(num_tokens), self._number + 1
        known = self._seen.get(bucket)
        if known is None or self._is_old(known):
            self._seen[bucket] = _Seen(float(num_tokens), seconds, self._number)
        else:
            weight = _FALL if seconds < self.estimate(num_tokens) else _RISE
            size, cost = known.num_tokens, known.seconds + weight * (seconds - known.seconds)
            self._seen[bucket] = _Seen(size + weight * (num_tokens - size), cost, self._number)
            if seconds >= known.seconds:
                self._lift_larger(bucket, cost)
        self._curve = None

    def _is_old(self, seen: _Seen) -> bool:
        return self._number - seen.number > _FRESH

    def _lift_larger(self, bucket: int, seconds: float) -> None:
        """Have what was seen of larger steps, maybe long ago, follow a smaller one that has become as dear."""
        for larger, seen in self._seen.items():
            if larger > bucket and seen.seconds < seconds:
                self._seen[larger] = seen._replace(seconds=seen.seconds + _RISE * (seconds - seen.seconds))

    @property
    def is_known(self) -> bool:
        """Whether anything was observed."""
        return bool(self._seen)

    @property
    def largest(self) -> float:
        """Tokens of the largest step observed, 0 when nothing was."""
        return max((seen.num_tokens for seen in self._seen.values()), default=0.0)

    def estimate(self, num_tokens: float) -> float:
        """Return the seconds for `num_tokens`, 0 when nothing is known.

        Between two sizes seen: interpolated. Beyond them: in proportion, which below the smallest is optimistic on
        purpose, since only what is tried is measured.
        """
        if not self._seen:
            return 0.0
        if self._curve is None:
            self._curve = self._monotone()
        sizes, costs = self._curve
        x = max(1.0, float(num_tokens))
        if x <= sizes[0]:
            return costs[0] * x / sizes[0]
        if x >= sizes[-1]:
            return costs[-1] * x / sizes[-1]
        high = bisect.bisect_left(sizes, x)
        share = (x - sizes[high - 1]) / (sizes[high] - sizes[high - 1])
        return costs[high - 1] + share * (costs[high] - costs[high - 1])

    def _monotone(self) -> tuple[list[float], list[float]]:
        """Sizes seen and their costs; a smaller step never costs more than a larger one, whatever was seen long ago."""
        seen = [self._seen[bucket] for bucket in sorted(self._seen)]
        costs = list(itertools.accumulate(reversed(self._costs(seen)), min))
        return [each.num_tokens for each in seen], costs[::-1]

    def _costs(self, ascending: Sequence[_Seen]) -> list[float]:
        costs, per_token = [], math.inf
        for seen in ascending:
            if self._is_old(seen):
                costs.append(min(seen.seconds, _OPTIMISM * per_token * seen.num_tokens))
            else:
                costs.append(seen.seconds)
                per_token = seen.seconds / seen.num_tokens
        return costs


@dataclass(frozen=True, slots=True)
class SharedDevice:
    """Stages of a route, by index, that compute on one device; it computes for `num_slots` of them at a time."""

    stages: tuple[int, ...]
    num_slots: int
    is_processor: bool = False
    """Whether the time outside of stages (broker, event loops) is taken from it as well: not true of a GPU."""


def shared_devices(route: Route) -> tuple[SharedDevice, ...]:
    """Return the devices that have to compute for more stages of a route than they can at a time."""
    stages: defaultdict[str, list[int]] = defaultdict(list)
    for index, worker in enumerate(route.workers):
        if worker.device_id:
            stages[worker.device_id].append(index)
    slots = {worker.device_id: worker.device_slots for worker in route.workers}
    return tuple(
        SharedDevice(tuple(indexes), slots[device], is_processor=device.startswith(PROCESSOR_PREFIX))
        for device, indexes in stages.items()
        if len(indexes) > slots[device]
    )


def choose_num_microbatches(
    num_sessions: int,
    num_tokens: float,
    stages: Sequence[StepTime],
    outside_s: float,
    shared: Sequence[SharedDevice] = (),
    *,
    max_tokens: float = math.inf,
    current: int = 0,
) -> int:
    """Return how many microbatches should be in flight on a route of these stages.

    `num_sessions` sessions wait for `num_tokens` tokens in all; `outside_s` is spent between stages. At least 1, at
    most one per session. While a stage is unmeasured, N+1.

    One microbatch takes at most `max_tokens`; where that is less than its share, what counts is the time per token.
    `current` microbatches are in flight up to now: they stay as many while nothing else gains enough, since every
    change leaves a stage idle for a moment.
    """
    if not all(stage.is_known for stage in stages):
        return max(1, min(len(stages) + 1, num_sessions))
    periods: list[float] = []
    best = math.inf
    for count in range(1, max(1, min(num_sessions, _MOST)) + 1):
        computing_s, way_s, host_s = _period(count, num_tokens, max_tokens, stages, outside_s, shared)
        periods.append(max(computing_s, way_s) + host_s)
        best = min(best, periods[-1])
        if computing_s >= best and count >= current:
            break  # with more microbatches, stages have no less to compute
    enough = best * _TOLERANCE
    if 1 <= current <= len(periods) and periods[current - 1] <= enough:
        return current
    return next(count for count, period in enumerate(periods, start=1) if period <= enough)


def _period(
    count: int,
    num_tokens: float,
    max_tokens: float,
    stages: Sequence[StepTime],
    outside_s: float,
    shared: Sequence[SharedDevice],
) -> tuple[float, float, float]:
    """Return the seconds until every token was computed once: by what devices compute, by a microbatch's way, and what
    all microbatches until then cost the conductor.
    """
    size = min(num_tokens / count, max_tokens)
    steps = [stage.estimate(size) for stage in stages]
    on_shared = [
        count * (sum(steps[index] for index in device.stages) + outside_s * device.is_processor) / device.num_slots
        for device in shared
    ]
    num_turns = num_tokens / (count * size) if size else 1.0  # until all tokens have had theirs
    computing_s, way_s = max(count * max(steps), max(on_shared, default=0.0)), sum(steps) + outside_s
    return num_turns * computing_s, num_turns * way_s, num_turns * count * _HOST_S


def _bucket(num_tokens: int) -> int:
    return max(0, round(2 * math.log2(max(1, num_tokens))))
