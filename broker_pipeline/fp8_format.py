"""How a matrix is stored in FP8: e4m3 codes and a float32 scale for each block of 128 x 128. No torch.

    X.weight              float8_e4m3fn  [N, K]                     experts: [E, N, K]
    X.weight_scale_inv    float32        [ceil(N/128), ceil(K/128)]          [E, …, …]

A value is its code times its block's scale, whatever the name says.
"""

from __future__ import annotations

FP8_DTYPE = "float8_e4m3fn"
FP8_BLOCK = 128
"""Rows, and columns, of the values that share a scale."""
_SUFFIX = "_scale_inv"


def scale_name(name: str) -> str:
    """Return the name of the scales of the matrix `name`."""
    return name + _SUFFIX


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the scales of a matrix, or of experts, of this shape.

    >>> scale_shape((8, 1536, 2000))
    (8, 12, 16)
    """
    *experts, num_rows, num_columns = shape
    return (*experts, -(-num_rows // FP8_BLOCK), -(-num_columns // FP8_BLOCK))
