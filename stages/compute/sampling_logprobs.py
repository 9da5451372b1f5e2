"""Log-probabilities of chosen and of the most likely tokens, for many rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.compute.sampling_candidates import rank_best, unit_of


def report_width(num_top: int, vocab: int) -> int:
    """How many numbers `logprob_report` gives a row."""
    return 1 + 2 * _num_ranked(num_top, vocab)


def _num_ranked(num_top: int, vocab: int) -> int:
    return min(max(num_top, 1), vocab)


def logprob_report(logits: Tensor, chosen: Tensor, num_top: int) -> Tensor:
    """fp64 `[n, 1 + 2w]` for `[n, V]` logits and `[n]` chosen tokens; w is `num_top`, at least 1 and at most V.

    A row holds the log-probability of the chosen token, those of the w most likely in order, and their ids. The sum
    of the distribution is added up in whole numbers, for the reason given in `sampling_candidates`.
    """
    vocab = logits.shape[1]
    best = rank_best(logits, _num_ranked(num_top, vocab))
    highest = best.scores[:, :1].double()
    relative = logits.to(torch.float64, copy=True).sub_(highest)
    picked = relative.gather(1, chosen[:, None])
    total = relative.exp_().mul_(unit_of(vocab)).long().sum(dim=-1, keepdim=True)
    log_total = (total.double() / unit_of(vocab)).log()
    return torch.cat((picked - log_total, best.scores.double() - highest - log_total, best.ids.double()), dim=1)
