"""Keys or values as a cache holds them: as they are, or in FP8 with one scale for each head of each token.

    a head of a token   [ x0 x1 … x127 ]   ─►   codes [ c0 c1 … c127 ] float8_e4m3fn, scale s        x = c · s

Scales are powers of two, as in OCP's microscaling formats, so that they round nothing themselves: the largest value of
a head has a code between 224 and 448.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KVDtype = Literal["auto", "fp8"]
"""In what keys and values are held: in the dtype that is computed in, or in FP8."""

_CODE_EXPONENT = 8  # of the largest code: 448 = 1.75 * 2 ** 8
_ROUND_UP = 0x1FFFFF  # carries into the exponent of a float32 beyond 1.75
_MANTISSA_BITS = 23
_MOST_EXPONENT = 254
_INFINITY = 0x7F800000  # the bits of float32; those of NaN are above


@dataclass(frozen=True, slots=True)
class HeadCodes:
    """Heads `[m, heads, d]` in FP8: codes float8_e4m3fn `[m, heads, d]`, scales bfloat16 `[m, heads]`."""

    codes: Tensor
    scales: Tensor
    dtype: torch.dtype
    """Of the values that they stand for."""

    @classmethod
    def of(cls, heads: Tensor) -> HeadCodes:
        """Quantise heads `[m, heads, d]`; one with NaN or infinity becomes NaN."""
        wide = heads.to(torch.float32)
        bits = (wide.view(torch.int32) & 0x7FFFFFFF).amax(-1)
        exponents = (((bits + _ROUND_UP) >> _MANTISSA_BITS) - _CODE_EXPONENT).clamp(min=1)
        codes = (wide * _power_of_two(_MOST_EXPONENT - exponents)[..., None]).to(torch.float8_e4m3fn)
        scales = _power_of_two(exponents).where(bits < _INFINITY, torch.nan)
        return cls(codes, scales.to(torch.bfloat16), heads.dtype)

    @property
    def shape(self) -> torch.Size:
        """The shape of the values."""
        return self.codes.shape

    def __getitem__(self, slots: slice) -> Tensor:
        """Return the values of some tokens."""
        return self.codes[slots].to(self.dtype) * self.scales[slots][..., None].to(self.dtype)


CachedHeads = Tensor | HeadCodes
"""Heads `[m, heads, d]` as a cache holds them."""


def put_heads(cached: CachedHeads, slots: Tensor, heads: Tensor) -> None:
    """Store heads `[n, heads, d]` at `slots`, int64 `[n]`."""
    if isinstance(cached, Tensor):
        cached.index_copy_(0, slots, heads)
        return
    new = HeadCodes.of(heads)
    cached.codes.view(torch.uint8).index_copy_(0, slots, new.codes.view(torch.uint8))
    cached.scales.index_copy_(0, slots, new.scales)


def _power_of_two(exponents: Tensor) -> Tensor:
    """Return the float32 with these biased exponents, int32."""
    return (exponents << _MANTISSA_BITS).view(torch.float32)
