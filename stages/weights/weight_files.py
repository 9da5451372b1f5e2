"""Reads tensors of an artifact's weight files, and hashes them on their way.

    file ──read──► 16 MiB of private memory ──► SHA-256
                     │   on the CPU: the tensor itself
                     └── else: pinned, and from there to the device

Nothing is mapped: once a tensor is read, what happens to its file cannot reach it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Self

import msgspec
import structlog
import torch
from torch import Tensor

from broker_pipeline.artifact_files.safetensors_header import StoredTensor, header_bytes
from broker_pipeline.artifact_manifest import TensorRecord, WeightsManifest
from broker_pipeline.errors import ArtifactCorruptError, ArtifactError
from stages.weights.verified_files import FileState, VerifiedFiles

log = structlog.get_logger()

_PIECE_BYTES = 16 << 20
_REMEDY = "copy it again from a host where `broker-pipeline export verify` finds nothing, or export again"


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a file should hold: its header, where each tensor begins, and a hash over all that is expected."""

    header: bytes
    offsets: dict[str, int]
    content: str

    @classmethod
    def of(cls, records: Sequence[TensorRecord]) -> Self:
        header = header_bytes([StoredTensor(record.name, record.dtype, record.shape) for record in records])
        offsets, offset = {}, len(header)
        for record in records:
            offsets[record.name] = offset
            offset += record.size_bytes
        hashes = msgspec.json.encode([record.sha256 for record in records])
        return cls(header, offsets, hashlib.sha256(header + hashes).hexdigest())


class WeightFiles:
    """The weight files of one artifact on this host. Any number of threads may read."""

    def __init__(self, directory: Path, manifest: WeightsManifest, verified: VerifiedFiles | None) -> None:
        """Hash what `verified` does not know; None hashes nothing."""
        self._directory = directory
        self._manifest = manifest
        self._records = manifest.by_name()
        self._verified = verified
        self._layouts: dict[str, _Layout] = {}
        self._is_known: dict[tuple[str, FileState], bool] = {}
        self._hashed: defaultdict[tuple[str, FileState], set[str]] = defaultdict(set)

    def read(self, name: str, device: torch.device) -> Tensor:
        """Return a tensor that some file holds, as stored, on `device`.

        Raises:
            ArtifactCorruptError: it is not what the export wrote.
            ArtifactError: the file cannot be read.
        """
        record = self._records[name]
        path, layout = self._directory / record.file, self._layout(record.file)
        try:
            with path.open("rb", buffering=0) as file:
                state = FileState.of(file)
                _check_header(file, path, layout)
                digest = None if self._is_trusted(path, layout, state) else hashlib.sha256()
                file.seek(layout.offsets[name])
                tensor = _read_tensor(file, record, device, digest)
                has_changed = FileState.of(file) != state
        except EOFError as error:
            raise _damaged(path, "it ends before its tensors do") from error
        except OSError as error:
            raise ArtifactError(f"cannot read {path}: {error.strerror}", field=path.name) from error
        if digest is not None:
            _check_hash(path, record, digest.hexdigest())
            self._note(path, layout, state, name)
        elif has_changed:
            raise ArtifactCorruptError(f"{path} was changed while it was read; start again", field=path.name)
        return tensor

    def _layout(self, file: str) -> _Layout:
        if file not in self._layouts:
            self._layouts[file] = _Layout.of(self._manifest.stored_in(file))
        return self._layouts[file]

    def _is_trusted(self, path: Path, layout: _Layout, state: FileState) -> bool:
        key = (path.name, state)
        if key not in self._is_known:
            self._is_known[key] = self._verified is None or self._verified.holds(path, state, layout.content)
        return self._is_known[key]

    def _note(self, path: Path, layout: _Layout, state: FileState, name: str) -> None:
        """Have the file remembered once all of it was hashed in one state."""
        names = self._hashed[path.name, state]
        names.add(name)
        if self._verified is not None and len(names) == len(layout.offsets):
            log.debug("weight_file_verified", file=path.name, num_bytes=state.size_bytes)
            self._verified.add(path, state, layout.content)


def _check_header(file: FileIO, path: Path, layout: _Layout) -> None:
    if file.read(len(layout.header)) != layout.header:
        raise _damaged(path, "its header is not what the export wrote")


def _check_hash(path: Path, record: TensorRecord, found: str) -> None:
    if found != record.sha256:
        hashes = f"SHA-256 {found[:12]}…, in the manifest {record.sha256[:12]}…"
        raise _damaged(path, f"{record.name} is not what the export wrote ({hashes})")


def _damaged(path: Path, what: str) -> ArtifactCorruptError:
    return ArtifactCorruptError(f"{path} is damaged: {what}; {_REMEDY}", field=path.name)


def _read_tensor(file: FileIO, record: TensorRecord, device: torch.device, digest: hashlib._Hash | None) -> Tensor:
    """Read a tensor from where the file stands, piece by piece, and feed `digest` with what was read."""
    tensor = torch.empty(record.shape, dtype=getattr(torch, record.dtype), device=device)
    pieces = torch.split(tensor.view(-1).view(torch.uint8), _PIECE_BYTES)
    is_host = device.type == "cpu"
    staging = None if is_host else torch.empty(len(pieces[0]), dtype=torch.uint8, pin_memory=True)
    for piece in pieces:
        host = piece if staging is None else staging[: len(piece)]
        content = host.numpy().data
        _fill(content, file)
        if digest is not None:
            digest.update(content)
        if staging is not None:
            piece.copy_(host)  # waits, so that the next piece may take its place
    return tensor


def _fill(content: memoryview, file: FileIO) -> None:
    while content:
        count = file.readinto(content)
        if not count:
            raise EOFError
        content = content[count:]
