"""`weights.pt`: the whole artifact as one state dict for `torch.load`, for runtimes that want it so."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import torch

from broker_pipeline.artifact_files.contents import hash_file
from broker_pipeline.artifact_files.safetensors_header import StoredTensor, header_bytes
from broker_pipeline.artifact_manifest import (
    FP8_DTYPE,
    PACKED_NAME,
    PACKED_RECORD_NAME,
    PackedRecord,
    TensorRecord,
    WeightsManifest,
)
from export.safetensors_file import disk_error
from export.workspace import write_durably

_NUMPY_DTYPES = {"bfloat16": np.uint16, "float32": np.float32, FP8_DTYPE: np.uint8}


def write_packed(directory: Path, manifest: WeightsManifest) -> PackedRecord:
    """Write `weights.pt` and its record into an artifact whose weight files are all there.

    Tensors have the artifact's names; a tied head shares the embedding's storage. The values pass through the page
    cache only: each tensor is a memory map of its own, so the process needs memory for none of them.

    Raises:
        DiskSpaceError: the file system ran full.
    """
    path = directory / PACKED_NAME
    unfinished = path.with_name(PACKED_NAME + ".writing")
    tensors = mapped_tensors(directory, manifest)
    try:
        with unfinished.open("wb") as sink:
            torch.save(tensors, sink)
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # torch says of a failed write that it is at an unexpected place
        unfinished.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        raise disk_error(cause if isinstance(cause, OSError) else OSError(str(error)), path) from error
    record = PackedRecord(PACKED_NAME, path.stat().st_size, hash_file(path, lambda _: None), manifest.fingerprint)
    write_durably(directory / PACKED_RECORD_NAME, msgspec.json.format(msgspec.json.encode(record)))
    return record


def mapped_tensors(directory: Path, manifest: WeightsManifest) -> dict[str, torch.Tensor]:
    """Map every tensor of the artifact by itself, so that each storage is exactly one tensor."""
    mapped: dict[str, torch.Tensor] = {}
    for file in manifest.weight_files:
        records = manifest.stored_in(file.name)
        stored = [StoredTensor(record.name, record.dtype, record.shape) for record in records]
        offset = len(header_bytes(stored))
        for record in records:
            mapped[record.name] = _map(directory / file.name, record, offset)
            offset += record.size_bytes
    return mapped | {record.name: mapped[record.tied_to] for record in manifest.tensors if record.tied_to is not None}


def _map(path: Path, record: TensorRecord, offset: int) -> torch.Tensor:
    dtype = _NUMPY_DTYPES[record.dtype]
    values = np.memmap(path, dtype=dtype, mode="c", offset=offset, shape=record.shape)
    return torch.from_numpy(values).view(getattr(torch, record.dtype))
