"""How the experts' products are cut, by the number of pairs that an expert has.

Tuning at run time would break graph capture and make the first steps slow, so tables hold the winners of sweeps: on one
H100 over the shapes of Qwen3-VL-30B-A3B, and with rows in FP8 on one H200 over those of 235B-A22B as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from stages.kernels.tiling import RowTiling, Tiling


@dataclass(frozen=True, slots=True)
class ExpertTilings:
    """The cut of both products where an expert has up to `most_pairs` pairs on average."""

    most_pairs: int
    gate_up: Tiling
    down: Tiling


MAX_PAIR_ROWS = 4  # up to here experts are hardly shared by rows, so that sorting would save no reading
PAIR_GATE_UP = RowTiling(16, 256, num_warps=4, num_stages=3)
PAIR_DOWN = RowTiling(4, 256, num_warps=4)
FP8_PAIR_GATE_UP = RowTiling(16, 128, num_warps=4, num_stages=5)  # not swept; steps of one block of scales
FP8_PAIR_DOWN = RowTiling(8, 128, num_warps=4)

_BY_LOAD = (
    ExpertTilings(10, Tiling(16, 64, 128, swap=True), Tiling(16, 64, 128, num_stages=3, swap=True)),
    ExpertTilings(24, Tiling(32, 64, 128), Tiling(32, 64, 128, num_stages=3, swap=True)),
    ExpertTilings(80, Tiling(64, 64, 64, num_stages=3), Tiling(64, 128, 64, num_stages=3)),
    ExpertTilings(1 << 62, Tiling(128, 128, 64, num_warps=8), Tiling(128, 128, 64, num_warps=8, num_stages=3)),
)
INVARIANT = ExpertTilings(1 << 62, Tiling(64, 64, 64, num_stages=3), Tiling(64, 128, 64, num_stages=3))  # for every n
_FP8_ROWS = (
    ExpertTilings(10, Tiling(16, 64, 128, num_stages=3, swap=True), Tiling(16, 128, 128, num_stages=3, swap=True)),
    ExpertTilings(22, Tiling(32, 64, 128, num_stages=3, swap=True), Tiling(32, 128, 128, num_stages=3, swap=True)),
    ExpertTilings(1 << 62, Tiling(64, 64, 128, num_stages=3), Tiling(64, 128, 128, num_stages=3)),
)
_WIDE = ExpertTilings(1 << 62, Tiling(16, 32, 32, num_stages=2), Tiling(16, 32, 32, num_stages=2))  # fp32


def tilings_for(num_pairs: int, num_experts: int, itemsize: int, *, is_fixed: bool) -> ExpertTilings:
    """Return the cut for `num_pairs` pairs of a row and a choice, of values of `itemsize` bytes; or one for any number.

    >>> tilings_for(512, 128, 2, is_fixed=False).gate_up.block_m
    16
    """
    if itemsize > 2:
        return _WIDE
    if is_fixed:
        return INVARIANT
    return _first(_BY_LOAD, num_pairs, num_experts)


def fp8_tilings_for(num_pairs: int, num_experts: int) -> ExpertTilings:
    """Return the cut with rows in FP8 as well."""
    return _first(_FP8_ROWS, num_pairs, num_experts)


def _first(table: tuple[ExpertTilings, ...], num_pairs: int, num_experts: int) -> ExpertTilings:
    return next(tilings for tilings in table if num_pairs <= tilings.most_pairs * num_experts)
