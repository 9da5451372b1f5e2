"""Decoder matrices in FP8: an FP8 checkpoint's codes and scales as they are, or both made from values as they are read.

A matrix becomes two tensors of the artifact, codes and scales, in the format of `broker_pipeline.artifact_manifest`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from broker_pipeline.artifact_manifest import FP8_BLOCK, scale_name, scale_shape
from broker_pipeline.errors import CheckpointError
from export.layout import PlannedTensor
from export.recipe import BlockScale, FusedExperts, Plain, Recipe, RowReader, SeparateExperts
from export.source.shard import SourceTensor
from stages.qwen3_vl.tensors import is_fp8_matrix
from stages.weights.fp8_matrix import quantise

Quantisation = Literal["fp8"]
_RUN_BYTES = 4 << 20
"""Of float32 values that are quantised at once, which takes several times their memory."""


def in_fp8(tensors: Iterable[PlannedTensor]) -> tuple[PlannedTensor, ...]:
    """Return what a file holds instead of these tensors: of each matrix of the decoder codes, then scales."""
    return tuple(part for tensor in tensors for part in (_parts(tensor) if is_fp8_matrix(tensor.name) else (tensor,)))


def _parts(tensor: PlannedTensor) -> tuple[PlannedTensor, PlannedTensor]:
    codes, scales = _kept(tensor.recipe, tensor.shape) or _made(tensor)
    return (
        replace(tensor, dtype="float8_e4m3fn", recipe=codes),
        replace(tensor, name=scale_name(tensor.name), dtype="float32", shape=scale_shape(tensor.shape), recipe=scales),
    )


def _kept(recipe: Recipe, shape: tuple[int, ...]) -> tuple[Recipe, Recipe] | None:
    """Return the checkpoint's own codes and scales, or None where it has none, or in other blocks than the artifact."""
    match recipe:
        case Plain(tensor, BlockScale(scale, rows, columns)) if rows == columns == FP8_BLOCK:
            return Plain(tensor), Plain(scale)
        case FusedExperts(tensor, turned, BlockScale(scale, rows, columns)) if rows == columns == FP8_BLOCK:
            return FusedExperts(tensor, turned), FusedExperts(scale, turned)
        case SeparateExperts(matrices):
            parts = [_kept(matrix, matrix.tensor.shape) for matrix in matrices]
            codes = [part[0] for part in parts if part is not None and isinstance(part[0], Plain)]
            scales = [part[1] for part in parts if part is not None and isinstance(part[1], Plain)]
            is_joined = len(matrices) == shape[0] or matrices[0].tensor.shape[0] % FP8_BLOCK == 0
            if is_joined and len(codes) == len(matrices):
                return SeparateExperts(tuple(codes)), SeparateExperts(tuple(scales))
    return None


def _made(tensor: PlannedTensor) -> tuple[Recipe, Recipe]:
    codes = QuantisedCodes(tensor.name, tensor.recipe, (tensor.shape[-2], tensor.shape[-1]))
    return codes, ScalesBehind(codes)


@dataclass(slots=True)
class QuantisedCodes:
    """Codes of the matrices `[num_rows, num_columns]` that a recipe makes, one or an expert each."""

    name: str
    recipe: Recipe
    shape: tuple[int, int]
    scales: list[torch.Tensor] = field(default_factory=list)
    """Of the codes that were yielded."""

    def sources(self) -> tuple[SourceTensor, ...]:
        """Return the recipe's."""
        return self.recipe.sources()

    def chunks(self, reader: RowReader, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Yield runs of rows that end with a block or with the matrix.

        Raises:
            CheckpointError: a value is NaN or infinite.
        """
        self.scales.clear()
        is_exact = all(source.dtype == "BF16" for source in self.sources())
        chunks = self.recipe.chunks(reader, torch.bfloat16 if is_exact else torch.float32)
        for rows in _whole_blocks(chunks, *self.shape):
            matrix = quantise(rows)
            if not matrix.scales.isfinite().all():
                raise CheckpointError(f"{self.name} holds NaN or infinity, which FP8 cannot", field=self.name)
            self.scales.append(matrix.scales)
            yield matrix.codes.to(dtype)


@dataclass(frozen=True, slots=True)
class ScalesBehind:
    """The scales of codes that were all yielded just before, so that nothing is read twice."""

    codes: QuantisedCodes

    def sources(self) -> tuple[SourceTensor, ...]:
        """Return those of the codes."""
        return self.codes.sources()

    def chunks(self, reader: RowReader, dtype: torch.dtype) -> Iterator[torch.Tensor]:  # noqa: ARG002 - of a recipe
        """Yield the scales, and forget them."""
        while self.codes.scales:
            yield self.codes.scales.pop(0).to(dtype)


def _whole_blocks(chunks: Iterable[torch.Tensor], num_rows: int, num_columns: int) -> Iterator[torch.Tensor]:
    """Cut chunks of matrices anew, into runs of some MB that end with a block of rows or with their matrix."""
    most = max(1, _RUN_BYTES // (4 * FP8_BLOCK * num_columns)) * FP8_BLOCK
    left, place = torch.empty(0, num_columns), 0
    for chunk in chunks:
        rows = chunk.view(-1, num_columns)
        left = torch.cat((left, rows)) if len(left) else rows
        while size := _run_length(len(left), num_rows - place, most):
            yield left[:size]
            left, place = left[size:], (place + size) % num_rows


def _run_length(num_left: int, num_to_end: int, most: int) -> int:
    size = min(num_left, num_to_end, most)
    return size if size == num_to_end else size // FP8_BLOCK * FP8_BLOCK
