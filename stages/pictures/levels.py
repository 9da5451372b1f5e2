"""Samples of more than 8 bits to the 256 levels that are seen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Levels = NDArray[np.uint8]
Samples = NDArray[Any]


def from_integers(samples: Samples, white: float) -> Levels:
    """Scale samples without sign, of at most 16 bits, so that 0 is black and `white` is white."""
    levels: Levels = np.rint(np.arange(65536) * (255 / white)).clip(0, 255).astype(np.uint8)
    scaled: Levels = levels[samples.astype(np.uint16, copy=False)]
    return scaled


def from_long_integers(samples: Samples) -> Levels:
    """Scale samples of 32 bits, which Pillow has as int32 though they have no sign."""
    return from_integers(samples.view(np.uint32) >> 16, 65535)


def from_floats(samples: Samples) -> Levels:
    """Scale floats, so that 0 is black and 1 is white; what lies beyond is cut off, and what is no number is black."""
    levels: Levels = np.rint(np.nan_to_num(samples, posinf=1.0).clip(0, 1) * 255).astype(np.uint8)
    return levels
