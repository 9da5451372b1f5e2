"""How a product is cut into tiles: what a kernel is told at its launch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RowTiling:
    """Of single rows: `block_n` outputs, `block_k` inputs at a time, loads of `num_stages` - 1 steps ahead."""

    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 1


@dataclass(frozen=True, slots=True)
class Tiling:
    """`block_m` rows times `block_n` outputs, `block_k` inputs at a time; `swap` puts outputs on the tile's rows."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 4
    swap: bool = False
