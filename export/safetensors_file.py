"""Writing a safetensors file as a stream: the header first, then tensor after tensor.

The library's own writer wants every tensor in memory. `artifact_files/safetensors_header.py` describes the format.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch

from broker_pipeline.artifact_files.safetensors_header import StoredTensor
from broker_pipeline.errors import DiskSpaceError, ExportError


def digest_tensor(tensor: StoredTensor, chunks: Iterable[torch.Tensor], sink: BinaryIO | None = None) -> str:
    """Return the SHA-256 of a tensor's bytes, in hex, and write them to `sink` if there is one.

    Raises:
        ExportError: the chunks do not add up to the tensor.
    """
    digest = hashlib.sha256()
    num_bytes = 0
    for chunk in chunks:
        raw = chunk.reshape(-1).view(torch.uint8).numpy().data
        digest.update(raw)
        num_bytes += len(raw)
        if sink is not None:
            sink.write(raw)
    if num_bytes != tensor.size_bytes:
        raise ExportError(f"{tensor.name} came to {num_bytes} bytes instead of {tensor.size_bytes}")
    return digest.hexdigest()


def write_file(path: Path, tensors: Iterable[tuple[StoredTensor, Iterable[torch.Tensor]]], header: bytes) -> list[str]:
    """Write a whole file and return its tensors' hashes in order.

    The file has its name only once it is whole and on the disk; until then it is called `NAME.writing`.

    Raises:
        DiskSpaceError: the file system ran full; what was finished before stays.
    """
    unfinished = path.with_name(path.name + ".writing")
    try:
        with unfinished.open("wb") as sink:
            sink.write(header)
            hashes = [digest_tensor(tensor, chunks, sink) for tensor, chunks in tensors]
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    return hashes


def disk_error(error: OSError, path: Path) -> ExportError:
    """Return the error that tells a user what a failed write to `path` means."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskSpaceError(
            f"the disk ran full while writing {path}; make room and run the same command again, "
            "it goes on with the files that are finished"
        )
    return ExportError(f"while writing {path}: {error}")
