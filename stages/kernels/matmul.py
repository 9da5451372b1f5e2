"""A batch-invariant matrix product, for `--deterministic`.

cuBLAS chooses another kernel, and with it another order of sums, for every number of rows. Here each value is one
sequence of tensor-core steps over its inputs, 16 at a time and from the first to the last, whatever shares its tile.
Tiles differ by the number of rows all the same: on an H100 every shape of tile gave the same bits, with the small
tensor-core instructions and the large ones. The tests on a GPU check that.
"""

from __future__ import annotations

from torch import Tensor

from stages.kernels.skinny_linear import skinny_linear
from stages.kernels.tiling import Tiling

_BY_ROWS = (
    (16, Tiling(16, 32, 256)),
    (128, Tiling(64, 32, 128)),
    (384, Tiling(64, 64, 128, num_stages=3)),
    (1 << 62, Tiling(128, 128, 64, num_warps=8, num_stages=3)),
)
_WIDE = Tiling(16, 32, 32, num_stages=2)  # fp32, without tensor cores


def invariant_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply `x` `[n, K]` by `weight` `[N, K]` transposed, `[n, N]`; a row's result depends on that row alone.

    Sums in fp32 and rounds once, to the dtype of both (bf16, fp16 or fp32). Both are contiguous.
    """
    if x.element_size() > 2:
        return skinny_linear(x, weight, _WIDE)
    return skinny_linear(x, weight, next(tiling for most_rows, tiling in _BY_ROWS if x.shape[0] <= most_rows))
