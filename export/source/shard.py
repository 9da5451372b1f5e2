"""Reading slices of a safetensors file into memory of our own.

The library checks the file; the bytes are then read with `preadv` rather than through its memory map, since mapped
pages count as this process's memory until the kernel takes them back, and a shard of a large model is several GB.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from broker_pipeline.errors import CheckpointError

TORCH_DTYPES = {
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
METADATA_KEY = "__metadata__"
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """A tensor of a checkpoint, by its header. `dtype` is the safetensors code, such as "BF16"."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]


class _HeaderEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Shard:
    """One open safetensors file; a context manager that closes it.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """

    def __init__(self, path: Path, file: str) -> None:
        self._path = path
        _check_with_library(path)
        self._descriptor = os.open(path, os.O_RDONLY)
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        header = msgspec.json.decode(os.pread(self._descriptor, length, 8), type=dict[str, msgspec.Raw])
        header.pop(METADATA_KEY, None)
        self._data_start = 8 + length
        self._entries = {name: msgspec.json.decode(raw, type=_HeaderEntry) for name, raw in header.items()}
        self.tensors = {
            name: SourceTensor(name, file, entry.dtype, entry.shape) for name, entry in self._entries.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Return `tensor[start:stop]` along the first axis, in memory of its own and the stored dtype."""
        entry = self._entries[name]
        dtype = TORCH_DTYPES[entry.dtype]
        row_shape = entry.shape[1:]
        row_bytes = math.prod(row_shape) * dtype.itemsize
        raw = torch.empty((stop - start) * row_bytes, dtype=torch.uint8)
        self._read_into(raw.numpy().data, self._data_start + entry.data_offsets[0] + start * row_bytes)
        return raw.view(dtype).view(stop - start, *row_shape)

    def _read_into(self, buffer: memoryview, position: int) -> None:
        filled = 0
        while filled < len(buffer):  # the kernel reads at most 2 GiB at once
            count = os.preadv(self._descriptor, [buffer[filled:]], position + filled)
            if count == 0:
                raise CheckpointError(f"{self._path} became shorter while it was read")
            filled += count


def _check_with_library(path: Path) -> None:
    """Let safetensors check header, offsets and size; nothing but the header is read."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            check_no_pointer(path, file.read(len(_LFS_POINTER)))
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}. Download it again.", field=path.name
        ) from error


def check_no_pointer(path: Path, beginning: bytes) -> None:
    """Refuse what a clone without Git LFS has in place of its large files.

    Raises:
        CheckpointError: the file begins like that.
    """
    if beginning.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{path} is a pointer that Git LFS left in place of the file. Fetch the files: git lfs pull",
            field=path.name,
        )
