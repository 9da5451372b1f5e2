"""How one tensor of the artifact is made from tensors of the checkpoint, a few MB at a time.

A recipe yields the tensor's values in storage order. What it holds in memory at once is one chunk: `CHUNK_BYTES` of
a matrix, or one expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from export.source.shard import TORCH_DTYPES, SourceTensor
from stages.weights.fp8_matrix import dequantise

CHUNK_BYTES = 32 << 20
_INTEGERS_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


class RowReader(Protocol):
    """Where recipes get their values from."""

    def read_rows(self, tensor: SourceTensor, start: int, stop: int) -> torch.Tensor:
        """Return `tensor[start:stop]` along the first axis."""
        ...


class Recipe(Protocol):
    """Makes one tensor."""

    def sources(self) -> tuple[SourceTensor, ...]:
        """Return every tensor of the checkpoint that goes in."""
        ...

    def chunks(self, reader: RowReader, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield the values in storage order, as contiguous tensors of `dtype`."""
        ...


@dataclass(frozen=True, slots=True)
class BlockScale:
    """FP8 scales: value = code x scale, one scale for each block of `rows` x `columns` codes."""

    tensor: SourceTensor
    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Plain:
    """One tensor as it stands; dequantised if it has a scale (which only matrices have)."""

    tensor: SourceTensor
    scale: BlockScale | None = None

    def sources(self) -> tuple[SourceTensor, ...]:
        """Return the tensor and its scale."""
        return (self.tensor,) if self.scale is None else (self.tensor, self.scale.tensor)

    def chunks(self, reader: RowReader, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield runs of whole rows."""
        num_rows, step = self.tensor.shape[0], self._rows_per_chunk()
        for start in range(0, num_rows, step):
            stop = min(start + step, num_rows)
            rows = reader.read_rows(self.tensor, start, stop)
            if self.scale is not None:
                first, last = start // self.scale.rows, math.ceil(stop / self.scale.rows)
                scales = reader.read_rows(self.scale.tensor, first, last)
                rows = dequantise(rows, scales, self.scale.rows, self.scale.columns)
            yield rows.to(dtype)

    def _rows_per_chunk(self) -> int:
        row_bytes = math.prod(self.tensor.shape[1:]) * TORCH_DTYPES[self.tensor.dtype].itemsize
        step = max(1, CHUNK_BYTES // row_bytes)
        if self.scale is None:
            return step
        return max(1, step // self.scale.rows) * self.scale.rows  # never cut a block of scales


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """All experts in one tensor [E, …, …], turned one by one if the checkpoint holds them transposed."""

    tensor: SourceTensor
    transposed: bool
    scale: BlockScale | None = None

    def sources(self) -> tuple[SourceTensor, ...]:
        """Return the tensor and its scale."""
        return (self.tensor,) if self.scale is None else (self.tensor, self.scale.tensor)

    def chunks(self, reader: RowReader, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield expert after expert."""
        for expert in range(self.tensor.shape[0]):
            matrix = reader.read_rows(self.tensor, expert, expert + 1)[0]
            if self.scale is not None:
                scale = reader.read_rows(self.scale.tensor, expert, expert + 1)[0]
                matrix = dequantise(matrix, scale, self.scale.rows, self.scale.columns)
            matrix = matrix.to(dtype)
            yield transpose(matrix) if self.transposed else matrix


@dataclass(frozen=True, slots=True)
class SeparateExperts:
    """Matrices of single experts, in storage order: gate and up of expert 0, gate and up of expert 1, …"""

    matrices: tuple[Plain, ...]

    def sources(self) -> tuple[SourceTensor, ...]:
        """Return all matrices and their scales."""
        return tuple(source for matrix in self.matrices for source in matrix.sources())

    def chunks(self, reader: RowReader, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield matrix after matrix."""
        for matrix in self.matrices:
            yield from matrix.chunks(reader, dtype)


def transpose(matrix: torch.Tensor) -> torch.Tensor:
    """Return the contiguous transpose. As integers: torch turns those four times as fast as bfloat16."""
    integers = _INTEGERS_OF_SIZE[matrix.dtype.itemsize]
    return matrix.view(integers).t().contiguous().view(matrix.dtype)
