"""What stands in front of the values in a safetensors file: it follows from names, dtypes and shapes.

Format: 8 bytes of header length (little-endian), the header as JSON padded with spaces to a multiple of 8, the tensors'
bytes without gaps (https://huggingface.co/docs/safetensors/index#format).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from broker_pipeline.artifact_manifest import DTYPE_BYTES, FP8_DTYPE, StoredDtype

SAFETENSORS_CODES = {"bfloat16": "BF16", "float32": "F32", FP8_DTYPE: "F8_E4M3"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Name, dtype and shape of a tensor in a file."""

    name: str
    dtype: StoredDtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def header_bytes(tensors: Sequence[StoredTensor]) -> bytes:
    """Return everything that stands before the values; the same tensors give the same bytes everywhere."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": SAFETENSORS_CODES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (offset, offset + tensor.size_bytes),
        }
        offset += tensor.size_bytes
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def file_size_bytes(tensors: Sequence[StoredTensor]) -> int:
    """Return the size of a file of these tensors."""
    return len(header_bytes(tensors)) + sum(tensor.size_bytes for tensor in tensors)
