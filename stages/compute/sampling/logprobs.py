"""Log-probabilities of chosen and of the most likely tokens, for many logit rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.compute.sampling.candidates import rank_best, unit_of


def logprob_report(logits: Tensor, chosen: Tensor, num_top: int) -> Tensor:
    """Return fp64 `[n, 1 + 2w]` for `[n, V]` logits and `[n]` chosen tokens; w is `num_top`, at least 1 and at most V.

    Each holds the log-probability of the chosen token, those of the w most likely in order, and their ids. The sum
    of the distribution is added up in whole numbers, for the reason given in `candidates`.
    """
    vocab = logits.shape[1]
    best = rank_best(logits, max(num_top, 1))
    highest = best.scores[:, :1]
    relative = logits.to(torch.float32, copy=True).sub_(highest).exp_().mul_(unit_of(vocab))
    total = relative.sum(dim=-1, keepdim=True, dtype=torch.int64)
    log_sum = highest.double() + (total.double() / unit_of(vocab)).log()
    picked = logits.gather(1, chosen[:, None].clamp(0, vocab - 1)).double()  # with NaN it may be anything
    return torch.cat((picked - log_sum, best.scores.double() - log_sum, best.ids.double()), dim=1)
