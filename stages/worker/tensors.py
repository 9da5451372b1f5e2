"""Tensors between torch and the wire, without copying their bytes.

NumPy has no bfloat16, so bytes pass as uint8 views: `tensor.view(uint8)` out, `frombuffer(dtype)` in.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from broker_pipeline.errors import TensorMismatchError
from broker_pipeline.messages.base import WireDtype
from broker_pipeline.wire.wire_tensor import WireTensor

_NAMES: dict[torch.dtype, WireDtype] = {
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.int32: "int32",
}
_DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in _NAMES.items()}

Shape = tuple[int | None, ...]
"""A shape to check against; None stands for any length."""

# torch warns once per process that a tensor over a read-only buffer must not be written to. Nothing here writes to a
# received tensor; the one warning is spent on purpose so that it cannot end up in a log, or fail a strict test run.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def to_wire(tensor: Tensor) -> WireTensor:
    """Return a tensor's bytes as they travel; they are copied only off a GPU or out of a strided view.

    The result shares memory with `tensor`: do not change it before it is sent.

    Raises:
        TensorMismatchError: the contract has no name for the tensor's dtype.
    """
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise TensorMismatchError(f"dtype {tensor.dtype} cannot travel; use one of {', '.join(_DTYPES)}")
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return WireTensor(name, tuple(tensor.shape), flat.numpy().data)


def from_wire(name: str, wire: WireTensor, *, dtype: torch.dtype, shape: Shape) -> Tensor:
    """Return a CPU tensor over the received bytes; it must not be written to.

    Raises:
        TensorMismatchError: `wire` (called `name` in the message) has another dtype or shape.
    """
    check_wire(name, wire, dtype=dtype, shape=shape)
    if not wire.data.nbytes:
        return torch.empty(wire.shape, dtype=dtype)
    return torch.frombuffer(wire.data, dtype=dtype).reshape(wire.shape)


def check_wire(name: str, wire: WireTensor, *, dtype: torch.dtype, shape: Shape) -> None:
    """Raise TensorMismatchError unless the tensor has this dtype and shape."""
    if _DTYPES.get(wire.dtype) != dtype:
        wanted = _NAMES.get(dtype, str(dtype))
        raise TensorMismatchError(f"tensor {name} is {wire.dtype} and must be {wanted}", field=f"tensors.{name}")
    fits = len(wire.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(wire.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise TensorMismatchError(
            f"tensor {name} has shape {list(wire.shape)} and must have [{wanted}]", field=f"tensors.{name}"
        )
