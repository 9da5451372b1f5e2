"""How the experts' products are cut, by the number of rows; chosen from measurements, not tuned at run time.

Tuning at run time would break graph capture and make the first steps slow. The figures behind the table come from a
sweep on one H100 over the shapes of Qwen3-VL-30B-A3B.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tiling:
    """A product's tile: `block_m` pairs of one expert times `block_n` of its outputs, `block_k` inputs at a time.

    `swap` gives the weights the tile's rows and the pairs its columns, so that few pairs still fill a tensor core's
    64 rows. `bulk` has the card's copy engine bring the weights instead of every thread a few bytes; the outputs must
    then be a multiple of `block_n`.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 4
    swap: bool = False
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class PairTiling:
    """A tile of the path without sorting: `block_n` outputs of one pair, `block_k` inputs at a time.

    Loads run `num_stages` - 1 steps ahead.
    """

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1


@dataclass(frozen=True, slots=True)
class ExpertTilings:
    """The cut of both products for up to `max_rows` rows."""

    max_rows: int
    gate_up: Tiling
    down: Tiling


MAX_PAIR_ROWS = 4  # up to here experts are hardly shared by rows, so that sorting would save no reading
PAIR_GATE_UP = PairTiling(block_n=16, block_k=256, num_warps=4)
PAIR_DOWN = PairTiling(block_n=8, block_k=256, num_warps=8)

_BY_ROWS = (
    ExpertTilings(80, Tiling(16, 64, 64, 4, 4), Tiling(16, 64, 64, 4, 4)),
    ExpertTilings(176, Tiling(32, 64, 64, 4, 4), Tiling(32, 128, 64, 4, 4)),
    ExpertTilings(1024, Tiling(64, 64, 64, 4, 4), Tiling(64, 128, 64, 4, 4)),
    ExpertTilings(1 << 62, Tiling(128, 64, 64, 8, 4), Tiling(128, 128, 64, 8, 4)),
)
INVARIANT = ExpertTilings(1 << 62, Tiling(64, 64, 64, 4, 4), Tiling(64, 128, 64, 4, 4))  # one cut for every n
_WIDE = ExpertTilings(1 << 62, Tiling(16, 32, 32, 4, 2), Tiling(16, 32, 32, 4, 2))  # fp32 does not use tensor cores


def tilings_for(num_rows: int, itemsize: int, *, deterministic: bool) -> ExpertTilings:
    """The cut for `num_rows` rows of `itemsize` bytes per value.

    >>> tilings_for(64, 2, deterministic=False).gate_up.block_m
    16
    """
    if itemsize > 2:
        return _WIDE
    if deterministic:
        return INVARIANT
    return next(tilings for tilings in _BY_ROWS if num_rows <= tilings.max_rows)
