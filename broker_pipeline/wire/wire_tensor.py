"""A tensor as it travels: dtype, shape and the bytes themselves, never a copy of them."""

from __future__ import annotations

import math
import sys
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from broker_pipeline.errors import ConfigurationError, TensorMismatchError
from broker_pipeline.messages.base import WireDtype

ITEM_BYTES: dict[str, int] = {"bfloat16": 2, "float32": 4, "int32": 4}
_NUMPY_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4")}
_WIRE_DTYPES: dict[np.dtype[Any], WireDtype] = {np.dtype("<f4"): "float32", np.dtype("<i4"): "int32"}

if sys.byteorder != "little":
    raise ConfigurationError("broker-pipeline sends tensors as this machine holds them, and needs a little-endian one")


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes a tensor of this dtype and shape has."""
    return math.prod(shape) * ITEM_BYTES[dtype]


class WireTensor(msgspec.Struct, frozen=True):
    """One tensor. `data` holds exactly its bytes: little-endian, C-contiguous.

    Made from an array, `data` is a view of that array, which must not change until the message is sent. Taken from a
    message, it is a view of the receive buffer (read-only when the message is small), which lives as long as the view.

    Raises `TensorMismatchError` when the bytes do not fit dtype and shape.
    """

    dtype: WireDtype
    shape: tuple[int, ...]
    data: memoryview

    def __post_init__(self) -> None:
        data = self.data
        if self.dtype not in ITEM_BYTES:
            raise TensorMismatchError(f"dtype {self.dtype!r} does not travel; use one of {', '.join(ITEM_BYTES)}")
        if data.format != "B" or data.ndim != 1 or not data.contiguous:
            raise TensorMismatchError("a tensor's data must be a contiguous view of bytes")
        expected = tensor_bytes(self.dtype, self.shape)
        if data.nbytes != expected:
            raise TensorMismatchError(
                f"{self.dtype} {list(self.shape)} needs {expected} bytes, but there are {data.nbytes}"
            )

    @classmethod
    def from_numpy(cls, array: npt.NDArray[Any]) -> WireTensor:
        """Wrap an int32 or float32 array without copying it; it must be C-contiguous."""
        dtype = _WIRE_DTYPES.get(array.dtype)
        if dtype is None:
            raise TensorMismatchError(f"numpy arrays travel as int32 or float32, not {array.dtype}")
        if not array.flags.c_contiguous:
            raise TensorMismatchError("the array is not C-contiguous; call numpy.ascontiguousarray on it first")
        return cls(dtype, array.shape, _bytes_of(array))

    def to_numpy(self) -> npt.NDArray[Any]:
        """Return an int32 or float32 tensor as an array over the same bytes."""
        dtype = _NUMPY_DTYPES.get(self.dtype)
        if dtype is None:
            raise TensorMismatchError(f"numpy has no {self.dtype}; read the bytes in `data`")
        if not self.data.nbytes:
            return np.empty(self.shape, dtype)
        return np.frombuffer(self.data, dtype).reshape(self.shape)


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    # A memoryview with a zero in its shape cannot be cast, so that nothing is a view of nothing.
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
