"""Weights of random numbers, made where they are used: their values say nothing, their sizes all.

    (seed, name) ──SHA-256──► the seed of this tensor ──► its values, drawn on the device that holds it

Every tensor has a seed of its own, so that it does not matter which other tensors a process draws, or in which order:
every cut of a model gets the same weights, in every run, on the same kind of device. (Another kind of device draws
other numbers from the same seed.)

On the CPU, large tensors repeat one stretch of drawn values, since drawing eight billion takes minutes there. The
stretch is as long as a prime, so that the rows of a matrix begin at different places of it and no two are equal.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor

from broker_pipeline.artifact_manifest import scale_name, scale_shape
from stages.qwen3_vl.tensors import EMBED_TOKENS, Shapes
from stages.weights.fp8_matrix import LARGEST_CODE, Fp8Matrix, Weight

_STRETCH = 1_048_573
"""The largest prime below 2^20."""
_PIECE = 2**26
_EMBEDDING_DEVIATION = 0.02
"""Small alongside what the layers add: else a model whose head is its embedding would say its last token for ever."""
_CODE_DEVIATION = 100.0
"""Of FP8 codes: the largest of a block of normal numbers, some 4.5 deviations, has the largest code."""
_SHARPNESS = 1.5
"""Scale of normalised queries and keys: attention then prefers some tokens to others."""


def draw_weights(shapes: Shapes, device: torch.device, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Draw tensors by name on `device`: matrices that keep the size of signals, norms near one, biases zero."""
    chance = torch.Generator(device)
    return {
        name: _draw(name, shape, chance.manual_seed(tensor_seed(seed, name)), dtype) for name, shape in shapes.items()
    }


class DrawnTensors(Mapping[str, Weight]):
    """The same, each drawn when it is asked for and kept by nobody here: for models that fill a device."""

    def __init__(
        self,
        shapes: Shapes,
        device: torch.device,
        dtype: torch.dtype,
        seed: int = 0,
        *,
        in_fp8: Collection[str] = (),
    ) -> None:
        """Draw codes and scales of the matrices named in `in_fp8`, values of `dtype` of all else."""
        self._shapes = shapes
        self._device = device
        self._dtype = dtype
        self._seed = seed
        self._in_fp8 = frozenset(in_fp8)

    def __getitem__(self, name: str) -> Weight:
        if name in self._in_fp8:
            return _draw_fp8(name, self._shapes[name], self._device, self._seed)
        return draw_weights({name: self._shapes[name]}, self._device, self._dtype, self._seed)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def num_bytes(self) -> int:
        """Of all of them together."""
        return sum(self._num_bytes(name, shape) for name, shape in self._shapes.items())

    def _num_bytes(self, name: str, shape: tuple[int, ...]) -> int:
        if name in self._in_fp8:
            return math.prod(shape) + 4 * math.prod(scale_shape(shape))
        return self._dtype.itemsize * math.prod(shape)


def tensor_seed(seed: int, name: str) -> int:
    """Return the seed of one tensor, at least 0 and below 2^63."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _draw(name: str, shape: tuple[int, ...], chance: torch.Generator, dtype: torch.dtype) -> Tensor:
    tensor = torch.empty(shape, device=chance.device, dtype=dtype)
    if len(shape) == 1:
        return tensor.fill_(_vector_value(name))
    deviation = _deviation(name, shape)
    if tensor.device.type != "cpu" or tensor.numel() <= _STRETCH:
        return tensor.normal_(0.0, deviation, generator=chance)
    stretch = torch.empty(_STRETCH, dtype=dtype).normal_(0.0, deviation, generator=chance)
    return _repeat(tensor, stretch)


def _draw_fp8(name: str, shape: tuple[int, ...], device: torch.device, seed: int) -> Fp8Matrix:
    """Draw codes, and for each block another scale, so that values are about as large as those of `_draw`."""
    chance = torch.Generator(device).manual_seed(tensor_seed(seed, name))
    codes = torch.empty(shape, dtype=torch.uint8, device=device)
    num_drawn = codes.numel() if device.type != "cpu" else min(codes.numel(), _STRETCH)
    drawn = codes.view(-1)[:num_drawn]
    for piece in torch.split(drawn, _PIECE):  # their values take twice the memory of codes
        values = torch.empty(len(piece), dtype=torch.bfloat16, device=device)
        values.normal_(0.0, _CODE_DEVIATION, generator=chance).clamp_(-LARGEST_CODE, LARGEST_CODE)
        piece.copy_(values.to(torch.float8_e4m3fn).view(torch.uint8))
    if num_drawn < codes.numel():
        _repeat(codes, drawn.clone())
    chance.manual_seed(tensor_seed(seed, scale_name(name)))
    scales = torch.empty(scale_shape(shape), device=device).uniform_(0.5, 1.5, generator=chance)
    return Fp8Matrix(codes.view(torch.float8_e4m3fn), scales.mul_(_deviation(name, shape) / _CODE_DEVIATION))


def _vector_value(name: str) -> float:
    if name.endswith(".bias"):
        return 0.0
    return _SHARPNESS if name.endswith(("q_norm.weight", "k_norm.weight")) else 1.0


def _deviation(name: str, shape: tuple[int, ...]) -> float:
    if name == EMBED_TOKENS:
        return _EMBEDDING_DEVIATION
    if name.endswith("pos_embed.weight"):
        return 0.5
    fan_in = shape[-1] if ".experts." in name else math.prod(shape[1:])
    return 1 / math.sqrt(fan_in)


def _repeat(tensor: Tensor, stretch: Tensor) -> Tensor:
    flat = tensor.view(-1)
    num_whole = flat.numel() // stretch.numel()
    end = num_whole * stretch.numel()
    flat[:end].view(num_whole, -1).copy_(stretch)
    flat[end:].copy_(stretch[: flat.numel() - end])
    return tensor
