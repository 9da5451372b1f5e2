"""Many measurements of one thing, summed up by their middle and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Median, 10th and 90th percentile of a number of measurements, in their own unit."""

    median: float
    p10: float
    p90: float
    num_samples: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Sum up at least one measurement."""
        if len(samples) == 1:
            return cls(median=samples[0], p10=samples[0], p90=samples[0], num_samples=1)
        tenths = statistics.quantiles(samples, n=10, method="inclusive")
        return cls(median=statistics.median(samples), p10=tenths[0], p90=tenths[-1], num_samples=len(samples))

    def scaled(self, factor: float) -> Spread:
        """Return the same measurements in another unit."""
        return msgspec.structs.replace(self, median=self.median * factor, p10=self.p10 * factor, p90=self.p90 * factor)

    def __str__(self) -> str:
        return f"{shown(self.median)} ({shown(self.p10)}-{shown(self.p90)})"


def shown(value: float) -> str:
    """Return a number with three significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 2
    while digits > 0 and abs(value) >= 10 ** (3 - digits):
        digits -= 1
    if abs(value) < 0.1:
        return f"{value:.3g}"
    return f"{value:,.{digits}f}"
