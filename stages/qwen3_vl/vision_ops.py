"""The parts of the vision tower's blocks that have a faster form on a GPU.

`EagerVisionOps` is the meaning, with the roundings of the reference implementation. `FusedVisionOps` computes the same
in bf16 on CUDA: one kernel turns queries and keys where they lie, one attends to all frames whatever their lengths, one
adds to the residual stream and norms it, and GELU is applied by the matrix product before it rounds.

Where weights are in FP8, products have no bias yet: it is added by whatever reads them, which writes the next rows as
codes.

    norm ─codes─► qkv ─► + bias, turn, attend ─► out ─► + bias, add, norm ─codes─► up ─► + bias, GELU ─codes─► down ─► …
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.kernels.flash_attention import attend_tiles
from stages.qwen3_vl.attention import Attention, EagerAttention
from stages.qwen3_vl.rope import rotate
from stages.qwen3_vl.vision_config import VISION_LAYER_NORM_EPS
from stages.qwen3_vl.vision_places import BatchPlaces
from stages.weights.fp8_matrix import Fp8Matrix, Weight

if TYPE_CHECKING:  # Triton is only where CUDA is
    from stages.kernels.codes.row_codes import Rows
    from stages.kernels.fp8.block_products import BlockProduct

_FLASH_CHANNELS = 8
"""Flash attention wants heads of a multiple of this many channels."""


@dataclass(frozen=True, slots=True)
class Product:
    """Rows `[N, out]` of a linear map, and the bias `[out]` that they have not had yet."""

    rows: Tensor
    bias: Tensor | None = None


class VisionOps(Protocol):
    """What a block is made of. Rows for a product `[N, in]` are values, or codes where it is of weights in FP8."""

    def linear(self, x: Rows, weight: Weight, bias: Tensor) -> Product:
        """Apply a linear map."""

    def attend(self, qkv: Product, head_dim: int, places: BatchPlaces) -> Tensor:
        """Rotate, and attend within each frame: `[N, 3 * heads * d]`, not needed afterwards, -> `[N, heads * d]`."""

    def gelu_linear(self, x: Rows, weight: Weight, bias: Tensor, following: Weight) -> Rows:
        """Apply the tanh form of GELU after a linear map; `following` multiplies the result."""

    def add_norm(
        self, x: Tensor, delta: Product, weight: Tensor, bias: Tensor, following: Weight
    ) -> tuple[Tensor, Rows]:
        """Return the sum of two `[N, hidden]`, and its layer norm, which `following` multiplies."""


class EagerVisionOps:
    """Step by step; any device and dtype."""

    def __init__(self, attention: Attention) -> None:
        self._attention = attention

    def linear(self, x: Rows, weight: Weight, bias: Tensor) -> Product:
        """See `VisionOps`."""
        return Product(F.linear(_values(x), _values(weight), bias))

    def attend(self, qkv: Product, head_dim: int, places: BatchPlaces) -> Tensor:
        """See `VisionOps`."""
        q, k, v = _by_head(qkv.rows, head_dim).unbind(1)
        cos, sin = (torch.cat((half, half), dim=-1).unsqueeze(1) for half in (places.cos, places.sin))
        q = rotate(q.float(), cos, sin).to(qkv.rows.dtype)
        k = rotate(k.float(), cos, sin).to(qkv.rows.dtype)
        return self._attention.attend_frames(q, k, v, places.lengths).flatten(1)

    def gelu_linear(self, x: Rows, weight: Weight, bias: Tensor, following: Weight) -> Rows:  # noqa: ARG002
        """See `VisionOps`."""
        return F.gelu(F.linear(_values(x), _values(weight), bias), approximate="tanh")

    def add_norm(
        self,
        x: Tensor,
        delta: Product,
        weight: Tensor,
        bias: Tensor,
        following: Weight,  # noqa: ARG002
    ) -> tuple[Tensor, Rows]:
        """See `VisionOps`."""
        total = x + delta.rows
        return total, F.layer_norm(total, weight.shape, weight, bias, VISION_LAYER_NORM_EPS)


class FusedVisionOps:
    """For bf16 on CUDA. Needs Triton."""

    def __init__(self, product: BlockProduct | None = None) -> None:
        """Multiply by weights in FP8 with `product`."""
        # Triton is only where CUDA is
        from stages.kernels.activation import bias_gelu  # noqa: PLC0415
        from stages.kernels.codes.row_codes import RowCodes, quantise_rows  # noqa: PLC0415
        from stages.kernels.vision_norms import add_layer_norm  # noqa: PLC0415
        from stages.kernels.vision_rotation import rotate_packed  # noqa: PLC0415

        self._product = product
        self._add_norm, self._rotate, self._bias_gelu = add_layer_norm, rotate_packed, bias_gelu
        self._codes, self._quantise = RowCodes.empty, quantise_rows

    def linear(self, x: Rows, weight: Weight, bias: Tensor) -> Product:
        """See `VisionOps`."""
        if isinstance(weight, Tensor):
            return Product(F.linear(_values(x), weight, bias))
        return Product(self._multiplied(x, weight), bias)

    def attend(self, qkv: Product, head_dim: int, places: BatchPlaces) -> Tensor:
        """See `VisionOps`."""
        rows = _by_head(qkv.rows, head_dim)
        self._rotate(rows, places.cos, places.sin, qkv.bias)
        q, k, v = rows.unbind(1)
        offsets, key_starts, key_lengths = places.tiles
        tiles = offsets, key_starts, key_lengths[:-1]
        return attend_tiles(q, k, v, tiles, max_keys=len(q), is_causal=False).flatten(1)

    def gelu_linear(self, x: Rows, weight: Weight, bias: Tensor, following: Weight) -> Rows:
        """See `VisionOps`. On CUDA torch's operation has the tanh form (on the CPU it has the other)."""
        if isinstance(weight, Tensor):
            return torch._addmm_activation(bias, _values(x), weight.t(), use_gelu=True)  # noqa: SLF001 - no public name
        rows = self._multiplied(x, weight)
        return self._bias_gelu(rows, bias, self._room(rows, following))

    def add_norm(
        self, x: Tensor, delta: Product, weight: Tensor, bias: Tensor, following: Weight
    ) -> tuple[Tensor, Rows]:
        """See `VisionOps`."""
        room = self._room(x, following)
        return self._add_norm(x, delta.rows, weight, bias, VISION_LAYER_NORM_EPS, room, delta.bias)

    def _multiplied(self, x: Rows, weight: Fp8Matrix) -> Tensor:
        assert self._product is not None, "codes are for one"
        return self._product(self._quantise(x) if isinstance(x, Tensor) else x, weight)

    def _room(self, like: Tensor, following: Weight) -> Rows:
        return self._codes(like, like.shape[1]) if isinstance(following, Fp8Matrix) else torch.empty_like(like)


def _values(x: Rows | Weight) -> Tensor:
    assert isinstance(x, Tensor), "codes are for weights in FP8, on a GPU"
    return x


def _by_head(qkv: Tensor, head_dim: int) -> Tensor:
    """Return `[N, 3 * heads * d]` as `[N, 3, heads, d]`."""
    return qkv.view(len(qkv), 3, -1, head_dim)


def choose_vision_ops(attention: Attention, head_dim: int, device: torch.device, dtype: torch.dtype) -> VisionOps:
    """Return the fastest that has the attention's meaning: eager attention was asked for its roundings."""
    is_fusible = device.type == "cuda" and dtype == torch.bfloat16 and head_dim % _FLASH_CHANNELS == 0
    return FusedVisionOps() if is_fusible and not isinstance(attention, EagerAttention) else EagerVisionOps(attention)
