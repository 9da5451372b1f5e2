"""How long jobs took, in bounded memory: durations that are nearly the same count as the same."""

from __future__ import annotations

import math

from broker_pipeline.captioning.report.histogram import Histogram

_STEPS = 100
"""For each e-fold: a duration is known within half a percent."""
_SHORTEST_S = 0.001


class Durations:
    """Counts seconds, from a millisecond on."""

    def __init__(self) -> None:
        self._steps = Histogram()

    @property
    def num(self) -> int:
        """How many there are."""
        return self._steps.num

    def add(self, seconds: float | None) -> None:
        """Count a duration; None is not known, and does not count."""
        if seconds is not None and math.isfinite(seconds):
            self._steps.add(round(_STEPS * math.log(max(seconds, _SHORTEST_S) / _SHORTEST_S)))

    def quantile(self, share: float) -> float:
        """Return the seconds that `share` of all do not exceed, within half a percent."""
        return _SHORTEST_S * math.exp(self._steps.quantile(share) / _STEPS)
