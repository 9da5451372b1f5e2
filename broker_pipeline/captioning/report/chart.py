"""A histogram as a drawing: places in percent, so that it is as wide as there is room and its text stays readable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from broker_pipeline.captioning.report.histogram import Bar, Histogram

_MAX_TICKS = 5
_GAP = 0.12
"""Between bars, as a share of their place."""


@dataclass(frozen=True, slots=True)
class ChartBar:
    """A bar of a chart, in percent of the whole from left and bottom."""

    label: str
    num: int
    left: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A number under the bars."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, and the numbers that say what they are."""

    bars: tuple[ChartBar, ...]
    ticks: tuple[Tick, ...]
    most: int
    """What the highest bar stands for."""
    median: int
    p90: int
    num: int


def chart_of(histogram: Histogram) -> Chart:
    """Return the drawing of a histogram that has at least one number."""
    bars = histogram.bars()
    most, place = max(bar.num for bar in bars), 100 / len(bars)
    return Chart(
        tuple(
            ChartBar(bar.label, bar.num, (i + _GAP / 2) * place, (1 - _GAP) * place, 100 * bar.num / most)
            for i, bar in enumerate(bars)
        ),
        tuple(_ticks(bars, place)),
        most,
        histogram.quantile(0.5),
        histogram.quantile(0.9),
        histogram.num,
    )


def _ticks(bars: Sequence[Bar], place: float) -> list[Tick]:
    """Return a few: below a single number, or where a range begins; the last bar has one where it has the rest."""
    every = math.ceil(len(bars) / _MAX_TICKS)
    chosen = list(range(0, len(bars), every))
    if bars[-1].high is None:
        chosen = [i for i in chosen if len(bars) - 1 - i >= every / 2] + [len(bars) - 1]
    inward = 0.5 if bars[0].low == bars[0].high else 0.0
    return [Tick((i + inward) * place, bars[i].tick) for i in chosen]
