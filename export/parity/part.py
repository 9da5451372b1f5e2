"""One compared part of a model: how far our output and the judge's are apart, and when that is rounding.

float32: products of a few thousand terms, added up in another order, differ by some 1e-6 of the largest value;
`FP32_TOLERANCE` leaves room for ten times that, and another activation function or epsilon is far beyond it.

bfloat16: both sides round at the same places, so that their bits are the same wherever the same kernels run. Where they
are not, both compute the part once more in float32, which decides: rounding is then gone, an error is not. What only
bfloat16 gets wrong (rounded rotations, say) is bounded by `BF16_TOLERANCE`, four steps of the largest value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import torch
from torch import Tensor

FP32_TOLERANCE = 1e-5
BF16_TOLERANCE = 2**-6

Pair = tuple[Tensor, Tensor]
"""Our output and the judge's, of one shape."""
Outputs = Mapping[str, Sequence[Pair]]
"""Pairs by the part that they are the output of, one for each prompt."""


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest difference, and the same over the judge's largest value; 1.8e308 where a value is not finite."""

    absolute: float = 0.0
    relative: float = 0.0
    num_different: int = 0
    """Values that are not the same to the last bit."""

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Difference:
        """Compare all pairs together."""
        num_different = sum(int((ours != theirs).sum()) for ours, theirs in pairs)
        if not all(side.isfinite().all() for pair in pairs for side in pair):
            return cls(sys.float_info.max, sys.float_info.max, num_different)
        absolute = max(float((ours.double() - theirs.double()).abs().max()) for ours, theirs in pairs)
        largest = max(float(theirs.abs().max()) for _, theirs in pairs)
        return cls(absolute, absolute / (largest or 1.0), num_different)


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part's difference in the model's dtype; `in_float32` where bits differ in bfloat16 and float32 decides."""

    name: str
    difference: Difference = Difference()
    tolerance: float = 0.0
    in_float32: Difference = Difference()
    seconds: float = 0.0
    findings: tuple[str, ...] = ()
    """What else is wrong, in sentences: tensors that are not the checkpoint's, for one."""

    @property
    def is_within(self) -> bool:
        """Whether nothing but rounding is different."""
        decided = self.in_float32.relative <= FP32_TOLERANCE
        return decided and self.difference.relative <= self.tolerance and not self.findings

    @property
    def kind(self) -> str:
        """The name without the number of a layer or block."""
        return self.name.rstrip("0123456789").removesuffix(".")


def worst_by_kind(parts: Iterable[Part]) -> dict[str, Part]:
    """Return the part of each kind that differs most; one beyond its tolerance before all that are within."""
    worst: dict[str, Part] = {}
    for part in parts:
        before = worst.setdefault(part.kind, part)
        worst[part.kind] = max(before, part, key=lambda each: (not each.is_within, each.difference.relative))
    return worst


def tolerance_of(dtype: torch.dtype) -> float:
    """Return what difference is rounding, of the largest value."""
    return FP32_TOLERANCE if dtype == torch.float32 else BF16_TOLERANCE
