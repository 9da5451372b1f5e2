"""What one pass over a batch of logits tells: the greedy token of every logit row, or why it has none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NOT_FINITE = -1
"""Stands for a token whose logits hold NaN or infinity."""
CONSTANT = -2
"""Stands for a token whose logits are all the same number: a model of damaged weights says so, and no other."""


@dataclass(frozen=True, slots=True)
class LogitScan:
    """For each of `r` logit rows: `greedy` int64 `[r]`, on the device of the logits.

    `greedy` is the lowest id of the largest logit, or `NOT_FINITE`, or `CONSTANT`.
    """

    greedy: Tensor
    is_by_kernels: bool = False
    """Whether a kernel for GPUs found it, as kernels then may draw as well; else all is done by plain operations."""


def scan_logits(logits: Tensor) -> LogitScan:
    """Scan `[r, V]` logits of any floating dtype, without host synchronisation.

    The largest and the smallest say together whether all are finite, as both carry a NaN on, and whether all are the
    same. That reads the logits twice and writes nothing of their size, as `isfinite(…).all()` would.
    """
    largest, smallest = logits.max(dim=-1), logits.amin(dim=-1)
    greedy = torch.where(largest.values == smallest, CONSTANT, largest.indices)
    is_finite = torch.isfinite(largest.values) & torch.isfinite(smallest)
    return LogitScan(torch.where(is_finite, greedy, NOT_FINITE))
