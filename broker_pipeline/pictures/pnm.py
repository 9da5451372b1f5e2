"""The headers of PBM, PGM, PPM and PFM files. Comments of any length pass at the speed of a search."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_GAP = rb"(?:[ \t\n\v\f\r]|#[^\r\n]*+[\r\n])++"
_SIZE = re.compile(rb"P([1-6fF])" + _GAP + rb"(\d{1,10})" + _GAP + rb"(\d{1,10})")
_SCALE = re.compile(_GAP + rb"(-?[0-9.]{1,20}(?:[eE][-+]?\d{1,3})?)")
_BITMAPS = "14"


@dataclass(frozen=True, slots=True)
class PnmHeader:
    """What stands before the samples, which begin at `start`. `scale` is white; of a PFM its sign is the byte order."""

    kind: str
    width: int
    height: int
    scale: float
    start: int

    @property
    def num_samples(self) -> int:
        """Samples of one pixel."""
        return 3 if self.kind in "36F" else 1


def pnm_header(content: bytes) -> PnmHeader:
    """Read the header. Raises `ValueError` for one that is cut off or makes no sense."""
    size = _SIZE.match(content)
    if size is None:
        raise ValueError("the PNM's size is missing")
    kind = size[1].decode()
    found = None if kind in _BITMAPS else _SCALE.match(content, size.end())
    if found is None and kind not in _BITMAPS:
        raise ValueError("the PNM's largest value is missing")
    scale = float(found[1]) if found is not None else 1.0
    if scale == 0 or not math.isfinite(scale) or (kind not in "fF" and not 0 < scale < 65536):
        raise ValueError(f"the PNM's largest value is {scale:g}")
    start = (found or size).end() + 1
    return PnmHeader(kind, int(size[2]), int(size[3]), scale, start)
