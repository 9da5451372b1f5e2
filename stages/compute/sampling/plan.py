"""Which logit rows of a batch are drawn and reported together: decided on the host.

    0 < top_k <= 256    drawn from the best top_k + 64 tokens; up to 64 by kernels on a GPU
    others that draw    drawn from all tokens; by the fused decoder's kernels from logits in bf16, which nothing adjusts
    log-probabilities   reported after the draws

On a GPU many go together, as launches cost more than memory; on a CPU only as many as stay in its caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.adjustments import Adjustment
from stages.compute.sampling.candidates import NUM_SPARE, DrawSettings, Ranked, draw, rank_all, rank_best, unit_of
from stages.compute.sampling.transfer import Numbers
from stages.compute.sampling.whole_vocabulary import Cuts, draw_whole

MAX_RANKED_TOP_K = 256
"""With a larger `top_k`, or none, tokens are drawn from the whole vocabulary."""

MAX_KERNEL_TOP_K = 64
"""With a larger `top_k` plain operations rank and draw: with the spare tokens, these are as many as kernels rank."""

MAX_SORTED_VOCAB = 1 << 14
"""To draw from all tokens, vocabularies up to this size are sorted; of larger ones, histograms are made."""


@dataclass(frozen=True, slots=True)
class GroupSizes:
    """How many logit rows at most go together when they are drawn from all tokens, and when they are reported."""

    whole: int
    reported: int


CPU_GROUPS = GroupSizes(whole=4, reported=8)

GPU_GROUPS = GroupSizes(whole=16, reported=64)
"""Scratch memory of a group at V = 150,000: 10 MB a logit row to draw from, 160 MB in all; 2 MB one to report."""

KERNEL_GROUPS = GroupSizes(whole=128, reported=64)
"""Where kernels draw: they take 34 MB, whatever the number of logit rows."""


@dataclass(frozen=True, slots=True)
class LogitRowRequest:
    """A logit row that needs more than the scan: its place, settings, number in [0, 1), and how it is adjusted."""

    place: int
    settings: SamplingSettings
    number: float
    adjustment: Adjustment | None = None


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """Logit rows to draw from together: fp64 `[6, n]` for `DrawSettings.of_table`; `width` None: from all tokens."""

    table: Numbers
    width: int | None
    cuts: Cuts

    def draw(self, logits: Tensor, table: Tensor, *, by_kernels: bool) -> Tensor:
        """Draw tokens int64 `[n]` for those rows of `logits` `[r, V]` that the table names; it is on their device."""
        vocab = logits.shape[1]
        if by_kernels and self.width is not None and self.width <= MAX_KERNEL_TOP_K + NUM_SPARE:
            # Triton is only where CUDA is
            from stages.kernels.sampling.top_k_draw import draw_top_k  # noqa: PLC0415

            return draw_top_k(logits, table, unit=unit_of(vocab), num_spare=NUM_SPARE)
        if by_kernels and self.width is None and logits.dtype == torch.bfloat16:
            from stages.kernels.sampling.whole_draw import draw_from_all  # noqa: PLC0415

            return draw_from_all(logits, table, unit=unit_of(vocab), num_spare=NUM_SPARE)
        settings = DrawSettings.of_table(table)
        logits = take_rows(logits, settings.logit_rows)
        if self.width is None and vocab > MAX_SORTED_VOCAB:
            return draw_whole(logits, settings, self.cuts)
        return draw(self.rank(logits), settings, vocab)

    def rank(self, logits: Tensor) -> Ranked:
        """Rank the tokens of these `logits`, `[n, V]`."""
        return rank_all(logits) if self.width is None else rank_best(logits, self.width)


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """What is to be done with one tensor of logits; `reports` holds places in it."""

    draws: tuple[DrawPlan, ...]
    reports: tuple[Numbers, ...]

    @property
    def arrays(self) -> list[Numbers]:
        """What the device needs, in the order in which `launch_logit_rows` takes it."""
        return [*(plan.table for plan in self.draws), *self.reports]


def group_sizes(logits: Tensor, *, by_kernels: bool) -> GroupSizes:
    """Return how many of these logit rows go together."""
    if logits.device.type == "cpu":
        return CPU_GROUPS
    return KERNEL_GROUPS if by_kernels and logits.dtype == torch.bfloat16 else GPU_GROUPS


def plan_logit_rows(requests: Sequence[LogitRowRequest], vocab: int, sizes: GroupSizes) -> SamplingPlan:
    """Group the logit rows of one tensor `[n, vocab]`; `requests` come in their order."""
    drawn = [request for request in requests if request.settings.temperature > 0]
    ranked = [request for request in drawn if _is_ranked(request.settings)]
    whole = [request for request in drawn if not _is_ranked(request.settings)]
    few = [request for request in ranked if request.settings.top_k <= MAX_KERNEL_TOP_K]
    more = [request for request in ranked if request.settings.top_k > MAX_KERNEL_TOP_K]
    draws = [DrawPlan(_draw_table(group, vocab), _width(group), _cuts(group)) for group in (few, more) if group]
    draws += [DrawPlan(_draw_table(group, vocab), None, _cuts(group)) for group in _split(whole, sizes.whole)]
    reports = [places_of(group) for group in _split(reported_logit_rows(requests), sizes.reported)]
    return SamplingPlan(tuple(draws), tuple(reports))


def reported_logit_rows(requests: Sequence[LogitRowRequest]) -> list[LogitRowRequest]:
    """Return those of `requests` that want log-probabilities."""
    return [request for request in requests if request.settings.logprobs is not None]


def take_rows(logits: Tensor, places: Tensor) -> Tensor:
    """Return the logit rows at `places`; all of them without a copy, since places only rise."""
    return logits if len(places) == len(logits) else logits.index_select(0, places)


def _is_ranked(settings: SamplingSettings) -> bool:
    return 0 < settings.top_k <= MAX_RANKED_TOP_K


def _width(requests: Sequence[LogitRowRequest]) -> int:
    return max(request.settings.top_k for request in requests) + NUM_SPARE


def _cuts(requests: Sequence[LogitRowRequest]) -> Cuts:
    settings = [request.settings for request in requests]
    return Cuts(
        any(each.top_k for each in settings),
        any(each.top_p < 1 for each in settings),
        any(each.min_p for each in settings),
    )


def places_of(requests: Sequence[LogitRowRequest]) -> Numbers:
    """Return where the logit rows stand, fp64 `[n]`."""
    return np.array([request.place for request in requests], dtype=np.float64)


def _split(requests: list[LogitRowRequest], size: int) -> Iterator[list[LogitRowRequest]]:
    return (requests[start : start + size] for start in range(0, len(requests), size))


def _draw_table(requests: Sequence[LogitRowRequest], vocab: int) -> Numbers:
    return np.array([_draw_settings(request.place, request.settings, request.number, vocab) for request in requests]).T


def _draw_settings(place: int, settings: SamplingSettings, number: float, vocab: int) -> tuple[float, ...]:
    return (
        place,
        settings.temperature,
        min(settings.top_k or vocab, vocab) - 1,
        settings.top_p,
        settings.min_p,
        number,
    )
