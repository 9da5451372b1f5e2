"""The draw from all tokens of a row, without sorting them.

The draw walks down the ranking until the shares add up to a target. Where that is, a histogram over the bits of the
scores tells, as in a radix sort, 16 bits at a time:

    digit of every score, best first    0      1      2      3    …  65535
    shares that fall on it              12     0      7      30
    added up                            12     12     19     49
                                                             └─ a target of 25 lies here, 6 behind its beginning

    A second histogram, of the scores with this digit alone, finds the lower 16 bits (bf16 has none). All tokens with
    the score found have the same share, and follow each other by id: whole division tells which of them it is.

Where top-k and top-p cut is found in the same way; min-p cuts by a comparison. Each leaves a beginning of the ranking,
so that all that has to be known of a cut is how much it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.compute.sampling_candidates import NUM_SPARE, DrawSettings, unit_of

_NUM_DIGITS = 1 << 16
_LARGEST = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Found:
    """Where the target of each of `n` rows lies, all `[n, 1]` int64 but `tied`.

    `tied` bool `[n, V]`: the tokens with the score that was found; `before`: what comes before the first of them;
    `each`: what each of them has; `nth`: how many of them lie before the target.
    """

    tied: Tensor
    before: Tensor
    each: Tensor
    nth: Tensor

    @property
    def until(self) -> Tensor:
        """What there is up to the token found, itself included."""
        return self.before + (self.nth + 1) * self.each


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to draw from: `slots` int64 `[n, V]`, smaller for larger scores; `shifts` gives the digits of a slot."""

    slots: Tensor
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, logits: Tensor) -> Rows:
        """From `[n, V]` in bf16 or fp32."""
        bits = (logits.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
        slots = _LARGEST - (bits ^ ((bits >> 31) & _LARGEST)).long()
        return cls(slots >> 16, (0,)) if logits.dtype == torch.bfloat16 else cls(slots, (16, 0))

    def find(self, amounts: Tensor, target: Tensor) -> Found:
        """The token at which `amounts` int64 `[n, V]`, added up in the order of the ranking, exceed `target` `[n, 1]`.

        Tokens with equal scores must have equal amounts.
        """
        prefix, before, inside = torch.zeros_like(target), torch.zeros_like(target), amounts
        for shift in self.shifts:
            counts = amounts.new_zeros(len(amounts), _NUM_DIGITS)
            counts.scatter_add_(1, (self.slots >> shift) & (_NUM_DIGITS - 1), inside)
            until = counts.cumsum(dim=-1)
            digit = (until <= target - before).sum(dim=-1, keepdim=True).clamp(max=_NUM_DIGITS - 1)
            before = before + (until - counts).gather(1, digit)
            prefix = (prefix << 16) | digit
            tied = (self.slots >> shift) == prefix
            inside = amounts * tied
        num_tied = tied.sum(dim=-1, keepdim=True)
        each = (inside.sum(dim=-1, keepdim=True) // num_tied.clamp(min=1)).clamp(min=1)
        return Found(tied, before, each, (target - before) // each)
