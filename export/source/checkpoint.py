"""Where an export reads from: the tensors and files of a Hugging Face checkpoint, whatever holds them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from broker_pipeline.errors import CheckpointError
from broker_pipeline.model_facts import SIDE_FILES
from export.source.name_groups import group_names
from export.source.shard import Shard, SourceTensor, check_no_pointer
from export.source.weight_listing import INDEX_FILE, check_no_adapter, has_index, parse_index, weight_file_names

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the checkpoint. `version` changes whenever its content may have changed."""

    name: str
    size_bytes: int
    version: str


class Checkpoint(Protocol):
    """A checkpoint; the tensors are known from the files' headers before any of their values is read."""

    source: str | None
    """Repository and commit, where there are such."""
    config_json: bytes
    tensors: dict[str, SourceTensor]
    side_files: tuple[str, ...]
    files: tuple[SourceFile, ...]
    staging_bytes: int
    """Room that downloads take in the target's file system at any one time."""

    def read_side_file(self, name: str) -> bytes:
        """Return a side file's content."""
        ...

    def opened(self, file: str, staging: Path) -> AbstractContextManager[Shard]:
        """Open one safetensors file, fetched into `staging` first if it is not on this host."""
        ...

    def release(self, file: str, staging: Path) -> None:
        """Nobody will open this file again: drop what was fetched."""
        ...


class LocalCheckpoint:
    """A directory as `save_pretrained` or a hub download leaves it: one safetensors file, or shards.

    Raises:
        CheckpointError: a file is missing or damaged, or index and shards differ.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.source: str | None = None
        self.staging_bytes = 0
        names = _file_names(directory)
        check_no_adapter(names)
        self.config_json = self._read(CONFIG_FILE)
        self.side_files = tuple(name for name in SIDE_FILES if name in names)
        index = self._read(INDEX_FILE) if has_index(names) else None
        shards = weight_file_names(names, index)
        self._check_present(shards)
        self.tensors = merge_headers(self._headers(shards), index)
        self.files = tuple(self._identity(name) for name in shards)

    def read_side_file(self, name: str) -> bytes:
        """Return a side file's content."""
        return self._read(name)

    def opened(self, file: str, staging: Path) -> AbstractContextManager[Shard]:  # noqa: ARG002
        """Open one safetensors file of the directory."""
        return Shard(self._directory / file, file)

    def release(self, file: str, staging: Path) -> None:
        """Do nothing: the directory is the user's."""

    def _read(self, name: str) -> bytes:
        try:
            content = (self._directory / name).read_bytes()
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self._directory} is not a Hugging Face checkpoint: it has no {name}{self._hint(name)}", field=name
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot read {self._directory / name}: {error.strerror}") from error
        check_no_pointer(self._directory / name, content)
        return content

    def _hint(self, name: str) -> str:
        """Name the directories below that look like the checkpoint: the hub's cache has it two levels down."""
        below = sorted({found.parent for depth in ("*", "*/*") for found in self._directory.glob(f"{depth}/{name}")})
        return f"; {', '.join(map(str, below[:3]))} has one" if below else ""

    def _check_present(self, shards: list[str]) -> None:
        absent = [name for name in shards if not (self._directory / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{self._directory} lacks {len(absent)} of {len(shards)} weight files: {', '.join(absent)}. "
                "Download it again."
            )

    def _headers(self, shards: list[str]) -> Iterable[dict[str, SourceTensor]]:
        for name in shards:
            with Shard(self._directory / name, name) as shard:
                yield shard.tensors

    def _identity(self, name: str) -> SourceFile:
        status = (self._directory / name).stat()
        return SourceFile(name, status.st_size, f"modified {status.st_mtime_ns}")


def _file_names(directory: Path) -> set[str]:
    try:
        entries = {entry.name: entry.is_file() for entry in directory.iterdir()}
    except OSError as error:
        raise CheckpointError(f"cannot list {directory}: {error.strerror}") from error
    for name in (CONFIG_FILE, *SIDE_FILES):
        if not entries.get(name, True):
            raise CheckpointError(f"{directory / name} is not a regular file, or a link that leads nowhere", field=name)
    return {name for name, is_file in entries.items() if is_file}


def merge_headers(headers: Iterable[dict[str, SourceTensor]], index: bytes | None) -> dict[str, SourceTensor]:
    """Return all tensors of all files by name.

    Raises:
        CheckpointError: a tensor lies in two files, or the index and the files differ; all of them are listed.
    """
    found = [tensor for header in headers for tensor in header.values()]
    by_name = {tensor.name: tensor for tensor in found}
    twice = [name for name, count in Counter(tensor.name for tensor in found).items() if count > 1]
    if twice:
        raise CheckpointError("tensors that lie in two files:\n" + _lines(twice))
    if index is not None:
        listed = parse_index(index)
        wrong = {
            name
            for name in listed.keys() | by_name.keys()
            if name not in listed or name not in by_name or by_name[name].file != listed[name]
        }
        if wrong:
            raise CheckpointError(f"{INDEX_FILE} and the shards differ in these tensors:\n" + _lines(wrong))
    return by_name


def checkpoint_version(checkpoint: Checkpoint) -> str:
    """Return a hash that changes when the configuration, a weight file or its header changes."""
    content = {
        "config": hashlib.sha256(checkpoint.config_json).hexdigest(),
        "files": checkpoint.files,
        "tensors": [checkpoint.tensors[name] for name in sorted(checkpoint.tensors)],
        "side_files": [(name, _sha256(checkpoint, name)) for name in checkpoint.side_files],
    }
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def _sha256(checkpoint: Checkpoint, name: str) -> str:
    return hashlib.sha256(checkpoint.read_side_file(name)).hexdigest()


def _lines(names: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in group_names(names))
