"""Visual rows put into hidden states, in place and with a fixed number of programs, so that a graph can hold it."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _place_kernel(x_ptr, index_ptr, rows_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDS: tl.constexpr):
    place = tl.program_id(0)
    token = tl.load(index_ptr + place).to(tl.int64)
    if token >= 0:
        columns = tl.arange(0, BLOCK)
        mask = columns < WIDTH
        row = tl.load(rows_ptr + place.to(tl.int64) * WIDTH + columns, mask=mask)
        target = x_ptr + token * WIDTH + columns
        if ADDS:
            row = (tl.load(target, mask=mask).to(tl.float32) + row.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(target, row, mask=mask)


def replace_rows(x: Tensor, index: Tensor, rows: Tensor) -> None:
    """Set `x[index] = rows`, where index int32 `[v]` is not negative; x `[n, H]`, rows `[v or more, H]`, one dtype."""
    _launch(x, index, rows, adds=False)


def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add `x[index] += rows`, likewise; no token stands twice in the index."""
    _launch(x, index, rows, adds=True)


def _launch(x: Tensor, index: Tensor, rows: Tensor, *, adds: bool) -> None:
    width = x.shape[1]
    if index.shape[0]:
        _place_kernel[(index.shape[0],)](
            x, index, rows, WIDTH=width, BLOCK=triton.next_power_of_2(width), ADDS=adds, num_warps=4
        )
