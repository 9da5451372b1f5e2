"""A matrix in FP8: e4m3 codes, and a float32 scale for each block of 128 x 128; a value is code times scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.artifact_manifest import FP8_BLOCK

LARGEST_CODE = 448.0
SMALLEST_SCALE = 2.0**-126
"""Of a block of zeros, and of one whose values are so small that a scale of theirs would not be a normal number."""


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """Codes float8_e4m3fn `[N, K]` with scales float32 `[ceil(N/128), ceil(K/128)]`; or experts, `[E, …]` of both."""

    codes: Tensor
    scales: Tensor

    @property
    def shape(self) -> torch.Size:
        """The matrix's shape."""
        return self.codes.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scales.nbytes

    def to(self, device: torch.device) -> Fp8Matrix:
        """Return the same on a device, contiguous."""
        return Fp8Matrix(self.codes.to(device).contiguous(), self.scales.to(device).contiguous())

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the values, computed in float32 and rounded once to `dtype`; an expert at a time."""
        values = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        for codes, scales, out in zip(_matrices(self.codes), _matrices(self.scales), _matrices(values), strict=True):
            out.copy_(dequantise(codes, scales))
        return values


SCALES_MULTIPLE = 4
"""The library's product reads scales four at a time: rows of a matrix's scales must be a multiple of it apart."""
Weight = Tensor | Fp8Matrix
"""A matrix as a product takes it."""


def plain(weight: Weight, dtype: torch.dtype) -> Tensor:
    """Return a matrix as a tensor of `dtype`."""
    return weight.dequantised(dtype) if isinstance(weight, Fp8Matrix) else weight.to(dtype)


def joined(matrices: Sequence[Weight], dtype: torch.dtype) -> Weight:
    """Put matrices `[N, K]` one above the other: in FP8 where all are and blocks end with matrices, else in `dtype`."""
    in_fp8 = [matrix for matrix in matrices if isinstance(matrix, Fp8Matrix)]
    if len(in_fp8) < len(matrices) or any(matrix.shape[0] % FP8_BLOCK for matrix in in_fp8[:-1]):
        return torch.cat([plain(matrix, dtype) for matrix in matrices])
    codes = torch.cat([matrix.codes.view(torch.uint8) for matrix in in_fp8])
    return Fp8Matrix(codes.view(torch.float8_e4m3fn), torch.cat([matrix.scales for matrix in in_fp8]))


def dequantise(codes: Tensor, scales: Tensor, num_rows: int = FP8_BLOCK, num_columns: int = FP8_BLOCK) -> Tensor:
    """Return `codes` x `scales` in float32, each scale spread over its block of `num_rows` x `num_columns` codes.

    codes: [R, C] float8; scales: [ceil(R / num_rows), ceil(C / num_columns)]. The last blocks may be cut.
    """
    spread = scales.float().repeat_interleave(num_rows, 0)[: codes.shape[0]]
    return codes.float().mul_(spread.repeat_interleave(num_columns, 1)[:, : codes.shape[1]])


def quantise(matrix: Tensor) -> Fp8Matrix:
    """Return a matrix `[N, K]` in FP8; the largest value of a block has the largest code. NaN and infinity spread."""
    num_rows, num_columns = matrix.shape
    padding = (0, -num_columns % FP8_BLOCK, 0, -num_rows % FP8_BLOCK)
    padded = F.pad(matrix.float(), padding) if any(padding) else matrix.float()
    blocks = padded.view(padded.shape[0] // FP8_BLOCK, FP8_BLOCK, -1, FP8_BLOCK)
    largest = torch.maximum(blocks.amax(1).amax(2), -blocks.amin(1).amin(2))  # faster than absolute values
    scales = (largest / LARGEST_CODE).clamp_min_(SMALLEST_SCALE)
    codes = (blocks / scales[:, None, :, None]).clamp_(-LARGEST_CODE, LARGEST_CODE).to(torch.float8_e4m3fn)
    return Fp8Matrix(codes.view_as(padded)[:num_rows, :num_columns].contiguous(), scales)


def _matrices(tensor: Tensor) -> Tensor:
    return tensor.view(-1, *tensor.shape[-2:])
