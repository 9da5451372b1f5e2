"""What one pass over a batch of logits tells: the greedy token of every logit row, and whether it may be used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LogitScan:
    """For each of `r` logit rows: `greedy` int64 `[r]` and `is_finite` bool `[r]`, on the device of the logits.

    `greedy` is the lowest id of the largest logit. Where there is NaN or infinity it means nothing, or, if
    `is_marked`, it is -1.
    """

    greedy: Tensor
    is_finite: Tensor
    is_marked: bool = False


def scan_logits(logits: Tensor) -> LogitScan:
    """Scan `[r, V]` logits of any floating dtype, without host synchronisation.

    The largest and the smallest say together whether all are finite: both carry a NaN on. That reads the logits twice
    and writes nothing of their size, as `isfinite(…).all()` would.
    """
    largest = logits.max(dim=-1)
    smallest = logits.amin(dim=-1)
    return LogitScan(largest.indices, torch.isfinite(largest.values) & torch.isfinite(smallest))
