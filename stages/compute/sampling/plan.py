"""Which rows of a batch are drawn and reported together: decided on the host.

    0 < top_k <= 256    drawn from the best top_k + 64 tokens
    others that draw    drawn from all tokens
    log-probabilities   reported after the draws

On a GPU many rows go together, as launches cost more than memory; on a CPU only as many as stay in its caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.candidates import NUM_SPARE, DrawSettings, Ranked, draw, rank_all, rank_best
from stages.compute.sampling.penalties import TokenHistory
from stages.compute.sampling.transfer import Numbers
from stages.compute.sampling.whole_vocabulary import Cuts, draw_whole

MAX_RANKED_TOP_K = 256
"""Rows with a larger `top_k`, or none, are drawn from all tokens."""

MAX_SORTED_VOCAB = 1 << 14
"""To draw from all tokens, rows up to this length are sorted; of longer ones, histograms are made."""


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """How many rows at most go together when they are drawn from all tokens, and when they are reported."""

    whole: int
    reported: int


CPU_GROUPS = GroupSizes(whole=4, reported=8)

GPU_GROUPS = GroupSizes(whole=16, reported=64)
"""Scratch memory of a group at V = 150,000: 10 MB a row to be drawn, 160 MB in all; 2 MB a row to be reported."""


@dataclass(frozen=True, slots=True)
class RowRequest:
    """A row that needs more than the scan: its place in the logits, its settings, its number in [0, 1), its tokens."""

    place: int
    settings: SamplingSettings
    number: float
    history: TokenHistory


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """Rows to draw together: fp64 `[6, n]` as `DrawSettings.of_table` wants it; `width` None: from all tokens."""

    table: Numbers
    width: int | None
    cuts: Cuts

    def draw(self, logits: Tensor, settings: DrawSettings) -> Tensor:
        """The tokens int64 `[n]` of these rows, `[n, V]`."""
        vocab = logits.shape[1]
        if self.width is None and vocab > MAX_SORTED_VOCAB:
            return draw_whole(logits, settings, self.cuts)
        return draw(self.rank(logits), settings, vocab)

    def rank(self, logits: Tensor) -> Ranked:
        """Ranks these rows, `[n, V]`."""
        return rank_all(logits) if self.width is None else rank_best(logits, self.width)


@dataclass(frozen=True, slots=True)
class RowsPlan:
    """What is to be done with the rows of one tensor of logits; `reports` holds places in these logits."""

    draws: tuple[DrawPlan, ...]
    reports: tuple[Numbers, ...]

    @property
    def arrays(self) -> list[Numbers]:
        """What the device needs, in the order in which `launch_rows` takes it."""
        return [*(plan.table for plan in self.draws), *self.reports]


def plan_rows(requests: Sequence[RowRequest], vocab: int, sizes: GroupSizes) -> RowsPlan:
    """Groups the rows of one tensor of logits `[n, vocab]`. `requests` come in the order of the rows."""
    drawn = [request for request in requests if request.settings.temperature > 0]
    ranked = [request for request in drawn if _is_ranked(request.settings)]
    whole = [request for request in drawn if not _is_ranked(request.settings)]
    draws = [DrawPlan(_draw_table(ranked, vocab), _width(ranked), _cuts(ranked))] if ranked else []
    draws += [DrawPlan(_draw_table(rows, vocab), None, _cuts(rows)) for rows in _split(whole, sizes.whole)]
    reports = [places_of(rows) for rows in _split(reported_rows(requests), sizes.reported)]
    return RowsPlan(tuple(draws), tuple(reports))


def reported_rows(requests: Sequence[RowRequest]) -> list[RowRequest]:
    """Those of `requests` that want log-probabilities."""
    return [request for request in requests if request.settings.logprobs is not None]


def _is_ranked(settings: SamplingSettings) -> bool:
    return 0 < settings.top_k <= MAX_RANKED_TOP_K


def _width(requests: Sequence[RowRequest]) -> int:
    return max(request.settings.top_k for request in requests) + NUM_SPARE


def _cuts(requests: Sequence[RowRequest]) -> Cuts:
    settings = [request.settings for request in requests]
    return Cuts(
        any(row.top_k for row in settings), any(row.top_p < 1 for row in settings), any(row.min_p for row in settings)
    )


def places_of(requests: Sequence[RowRequest]) -> Numbers:
    """Where the rows stand, fp64 `[n]`."""
    return np.array([request.place for request in requests], dtype=np.float64)


def _split(requests: list[RowRequest], size: int) -> Iterator[list[RowRequest]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


def _draw_table(requests: Sequence[RowRequest], vocab: int) -> Numbers:
    return np.array([_draw_row(request.place, request.settings, request.number, vocab) for request in requests]).T


def _draw_row(place: int, settings: SamplingSettings, number: float, vocab: int) -> tuple[float, ...]:
    return (
        place,
        settings.temperature,
        min(settings.top_k or vocab, vocab) - 1,
        settings.top_p,
        settings.min_p,
        number,
    )
