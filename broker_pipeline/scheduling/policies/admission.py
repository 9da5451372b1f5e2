"""Whether the conductor should take more jobs from the queue, and how many at a time. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_EMA_WEIGHT = 0.05
_MOST_AT_A_TIME = 16
_BATCH_SHARE = 0.75
"""Of what may be held ahead of the stages, the most that batch jobs are taken for."""
_KEPT_JOBS, _KEPT_KV_SHARE = 8, 1 / 16
"""KV that batch jobs leave to interactive ones: what so many need, but no more than this share of all."""


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """Bounds on what is held ahead of the stages."""

    max_jobs: int = 1024
    """Jobs held in all, in whatever state."""
    max_preparing_per_vision_worker: int = 128
    """Sessions that one vision worker is asked for at a time, by all shares together."""
    max_waiting: int = 64
    """Prepared sessions of each route that have not begun; their visual rows occupy the stages meanwhile."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the conductor has on its hands.

    `num_waiting` sessions are prepared and have not begun; `room_tokens` is free KV that nobody is being prepared for.
    """

    num_jobs: int
    num_preparing: int
    num_waiting: int
    num_vision_workers: int
    num_routes: int
    room_tokens: int
    can_commit: bool
    kv_tokens: int = 0
    """KV of the largest route, free or not."""
    num_shares: int = 1
    """Shares of the pipeline; they ask the same vision workers, each for about as much."""
    others_go_first: bool = False
    """Whether another share is to have the next jobs, since this one failed the last."""


class Admission:
    """Says yes while a job can start soon, and learns how much KV jobs need."""

    def __init__(self, limits: AdmissionLimits, expected_tokens: int) -> None:
        self._limits = limits
        self._expected_tokens = float(expected_tokens)
        self._num_learned = 0

    @property
    def expected_tokens(self) -> int:
        """KV tokens that the next job will probably need."""
        return max(1, round(self._expected_tokens))

    def learn(self, num_kv_tokens: int) -> None:
        """Take a prepared job's real need into account."""
        self._num_learned += 1
        weight = max(_EMA_WEIGHT, 1 / (1 + self._num_learned))  # the first guess counts as one job
        self._expected_tokens += weight * (num_kv_tokens - self._expected_tokens)

    def refusal(self, load: Load) -> str | None:
        """Say why no job should be taken now, or None if one should."""
        limits = self._limits
        ahead = load.num_preparing + load.num_waiting
        reasons = (
            (not load.can_commit, "Redis does not take results"),
            (load.others_go_first, "other shares go first: the last jobs failed here"),
            (not load.num_routes, "no route covers the whole model"),
            (not load.num_vision_workers, "no vision worker"),
            (load.num_jobs >= limits.max_jobs, "enough jobs"),
            (
                load.num_preparing * load.num_shares
                >= limits.max_preparing_per_vision_worker * load.num_vision_workers,
                "enough sessions in preparation",
            ),
            (load.num_waiting >= limits.max_waiting * load.num_routes, "enough sessions waiting"),
            (ahead > 0 and load.room_tokens < self.expected_tokens, "no room for keys and values"),
        )
        return next((reason for is_so, reason in reasons if is_so), None)

    def num_wanted(self, load: Load) -> int:
        """Return how many jobs to ask for at a time, where one should be taken: so many can begin soon."""
        return max(1, self._most(load, 1.0))

    def num_batch_wanted(self, load: Load) -> int:
        """Return how many of these may be batch jobs: an interactive one that comes next finds room as well."""
        if not load.num_preparing + load.num_waiting:
            return self.num_wanted(load)
        kept_tokens = min(_KEPT_JOBS * self.expected_tokens, int(_KEPT_KV_SHARE * load.kv_tokens))
        return max(0, self._most(replace(load, room_tokens=load.room_tokens - kept_tokens), _BATCH_SHARE))

    def _most(self, load: Load, share: float) -> int:
        """Return how many jobs more there is room for in this share of the limits."""
        limits = self._limits
        num_preparing = limits.max_preparing_per_vision_worker * load.num_vision_workers // load.num_shares
        return min(
            _MOST_AT_A_TIME,
            math.ceil(share * limits.max_jobs) - load.num_jobs,
            math.ceil(share * num_preparing) - load.num_preparing,
            math.ceil(share * limits.max_waiting * load.num_routes) - load.num_waiting,
            load.room_tokens // self.expected_tokens,
        )
