"""The unfinished export alongside its target: what is done so far, and who is at it.

TARGET.partial/
├── lock            held by the export that runs now
├── plan.json       what is being exported, so that a later run only goes on with the same
├── finished/       one record per finished weight file: its tensors' hashes
├── download/       shards fetched from the hub, dropped as soon as they are used up
└── artifact/       becomes TARGET by one rename once everything in it is on the disk
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from broker_pipeline.artifact_manifest import MANIFEST_NAME
from broker_pipeline.errors import ExportError, ExportStateError, TargetExistsError
from export.safetensors_file import disk_error


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides an artifact's bytes: the checkpoint's version, and the options."""

    program_version: str
    checkpoint_version: str
    dtype: str
    expert_layout: str
    quantize: str | None = None


class FinishedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finished weight file: SHA-256 of each tensor, in the file's order."""

    hashes: tuple[str, ...]


class Workspace:
    """The directory `TARGET.partial`; made by `acquire_workspace` only."""

    def __init__(self, root: Path, target: Path) -> None:
        self._root = root
        self._target = target
        self.artifact = root / "artifact"
        self.download = root / "download"
        self._finished = root / "finished"

    def prepare(self, plan: PlanRecord, *, restart: bool) -> None:
        """Make the directories, keeping earlier work if it was for the same plan.

        Raises:
            ExportStateError: the earlier work was for another plan and `restart` is not set.
        """
        plan_file = self._root / "plan.json"
        if plan_file.exists() and not restart and _read_plan(plan_file) != plan:
            raise ExportStateError(
                f"{self._root} holds an unfinished export of another checkpoint or with other options. "
                "Choose another TARGET, or pass --restart to drop the unfinished export."
            )
        if restart or not plan_file.exists():
            for part in (self.artifact, self.download, self._finished):
                shutil.rmtree(part, ignore_errors=True)
            write_durably(plan_file, msgspec.json.encode(plan))
        for part in (self.artifact, self.download, self._finished):
            part.mkdir(exist_ok=True)

    def finished_file(self, name: str) -> FinishedFile | None:
        """Return the record of a weight file that an earlier run finished."""
        record = self._finished / f"{name}.json"
        try:
            return msgspec.json.decode(record.read_bytes(), type=FinishedFile)
        except (FileNotFoundError, msgspec.DecodeError):  # a damaged record costs one file written again
            return None

    def record_finished(self, name: str, hashes: list[str]) -> FinishedFile:
        """Remember that a weight file is whole and on the disk."""
        record = FinishedFile(tuple(hashes))
        sync_directory(self.artifact)
        write_durably(self._finished / f"{name}.json", msgspec.json.encode(record))
        return record

    def publish(self, manifest: bytes) -> None:
        """Write the manifest and turn the directory into TARGET: it appears whole, or not at all.

        Raises:
            TargetExistsError: something has appeared at TARGET since the export began.
        """
        write_durably(self.artifact / MANIFEST_NAME, manifest)
        try:
            self.artifact.rename(self._target)
        except OSError as error:  # somebody put something there meanwhile; an empty directory would be replaced
            raise TargetExistsError(f"{self._target} is in the way: {error.strerror}", field="target") from error
        sync_directory(self._target.parent)
        self.remove()

    def remove(self) -> None:
        """Remove the whole workspace."""
        shutil.rmtree(self._root, ignore_errors=True)


@contextmanager
def acquire_workspace(target: Path) -> Iterator[Workspace]:
    """Take TARGET.partial for this process; it stays where it is when the export does not finish.

    Raises:
        ExportStateError: another process is exporting to the same target.
    """
    root = partial_path(target)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise disk_error(error, root) from error
    try:
        _lock(lock, root)
        yield Workspace(root, target)
    finally:
        os.close(lock)


def partial_path(target: Path) -> Path:
    """Return the path of the unfinished export of `target`."""
    return target.with_name(target.name + ".partial")


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole, or not at all, even after a power cut."""
    unfinished = path.with_name(path.name + ".writing")
    try:
        with unfinished.open("wb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        unfinished.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error


def sync_directory(directory: Path) -> None:
    """Make renames in a directory last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, root: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ExportStateError(f"another export is writing {root} right now; wait for it or stop it") from error


def _read_plan(path: Path) -> PlanRecord:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PlanRecord)
    except (OSError, msgspec.DecodeError) as error:
        raise ExportError(f"{path} cannot be read ({error}); pass --restart to drop the unfinished export") from error
