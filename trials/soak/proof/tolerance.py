"""Whether rounding could have chosen another token: where it could, two right computations may disagree. Pure.

A pipeline adds up in another order than one process does, as the composition of its microbatches decides, so that its
logits differ in their last digits. That changes a token only near one of these edges:

    greedy     the second best is as good as the best
    sampled    the drawn number lies at an edge of the token's share of the distribution,
               or a token of the same probability stands alongside it in the order,
               or top-k or top-p cut between two tokens that are as good as each other
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.compute.sampling.sampler import SessionSampler, adjusted, uniform

TOLERANCES = {torch.float32: 3e-5, torch.bfloat16: 0.1}
"""Largest error of a logit that is taken for rounding, by dtype; measured errors are several times smaller."""


def is_unambiguous(logits: Tensor, sampler: SessionSampler, position: int, tolerance: float) -> bool:
    """Whether the token chosen from `logits` `[V]` stays the same when each of them is off by up to `tolerance`.

    `sampler` holds what comes before the token at index `position`, where a penalty needs it.
    """
    settings = sampler.settings
    row = adjusted(logits, sampler, position)
    if settings.temperature == 0:
        return _is_ahead(row.topk(2).values, tolerance)
    scores = (row.double() / settings.temperature).sort(descending=True).values
    tolerance /= settings.temperature
    num_top = settings.top_k if 0 < settings.top_k < len(scores) else len(scores)
    if num_top < len(scores) and not _is_ahead(scores[num_top - 1 : num_top + 1], tolerance):
        return False
    probabilities = scores[:num_top].softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities >= settings.min_p * probabilities[0]
    if settings.min_p > 0 and _touches(probabilities / probabilities[0], settings.min_p, tolerance):
        return False
    if settings.top_p < 1:
        if _touches(before, settings.top_p, tolerance):
            return False
        kept &= before < settings.top_p
    return _is_drawn_apart(scores, probabilities[kept].cumsum(dim=-1), uniform(settings.seed, position), tolerance)


def _is_drawn_apart(scores: Tensor, cumulative: Tensor, drawn: float, tolerance: float) -> bool:
    target = drawn * float(cumulative[-1])
    if _touches(cumulative[:-1], target, tolerance):
        return False
    place = int(torch.searchsorted(cumulative, target, right=True).clamp(max=len(cumulative) - 1))
    above, below = scores[max(place - 1, 0) : place + 1], scores[place : place + 2]
    return (place == 0 or _is_ahead(above, tolerance)) and (len(below) < 2 or _is_ahead(below, tolerance))


def _is_ahead(pair: Tensor, tolerance: float) -> bool:
    return float(pair[0] - pair[1]) > 2 * tolerance


def _touches(values: Tensor, edge: float, tolerance: float) -> bool:
    return bool(((values - edge).abs() <= tolerance).any())
