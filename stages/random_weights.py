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
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from stages.qwen3_vl.tensors import EMBED_TOKENS, Shapes

_STRETCH = 1_048_573
"""The largest prime below 2^20."""
_EMBEDDING_DEVIATION = 0.02
"""Small alongside what the layers add: else a model whose head is its embedding would say its last token for ever."""
_SHARPNESS = 1.5
"""Scale of normalised queries and keys: attention then prefers some tokens to others."""


def draw_weights(shapes: Shapes, device: torch.device, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Draw tensors by name on `device`: matrices that keep the size of signals, norms near one, biases zero."""
    chance = torch.Generator(device)
    return {
        name: _draw(name, shape, chance.manual_seed(tensor_seed(seed, name)), dtype) for name, shape in shapes.items()
    }


class DrawnTensors(Mapping[str, Tensor]):
    """The same, each drawn when it is asked for and kept by nobody here: for models that fill a device."""

    def __init__(self, shapes: Shapes, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self._shapes = shapes
        self._device = device
        self._dtype = dtype
        self._seed = seed

    def __getitem__(self, name: str) -> Tensor:
        return draw_weights({name: self._shapes[name]}, self._device, self._dtype, self._seed)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def num_bytes(self) -> int:
        """Of all of them together."""
        return self._dtype.itemsize * sum(math.prod(shape) for shape in self._shapes.values())


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
