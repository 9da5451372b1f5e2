"""Moving the weights: several files at once, each a stream from the checkpoint's shards to one artifact file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Lock
from types import TracebackType
from typing import Self

import torch

from broker_pipeline.artifact_files.contents import FileContent, find_damage
from broker_pipeline.artifact_files.safetensors_header import StoredTensor, header_bytes
from broker_pipeline.artifact_manifest import EMBED_FILE
from broker_pipeline.errors import CheckpointError, ExportError
from broker_pipeline.tools.file_progress import ProgressReport
from export.layout import PlannedTensor
from export.plan import ExportPlan, PlannedFile
from export.safetensors_file import digest_tensor, write_file
from export.source.checkpoint import Checkpoint
from export.source.shard import Shard, SourceTensor
from export.workspace import Workspace

Hashes = dict[str, tuple[str, ...]]
"""SHA-256 of each tensor, by file, in the file's order."""


class _StoppedError(ExportError):
    """Another thread failed; this one gave up."""


class SourceReader:
    """Reads the checkpoint's tensors for one artifact file; opens shards when they are first needed."""

    def __init__(self, checkpoint: Checkpoint, staging: Path) -> None:
        self._checkpoint = checkpoint
        self._staging = staging
        self._stack = ExitStack()
        self._shards: dict[str, Shard] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read_rows(self, tensor: SourceTensor, start: int, stop: int) -> torch.Tensor:
        """Return `tensor[start:stop]` along the first axis.

        Raises:
            CheckpointError: the file is not the one whose header was read when the export was planned.
        """
        shard = self._shards.get(tensor.file)
        if shard is None:
            shard = self._stack.enter_context(self._checkpoint.opened(tensor.file, self._staging))
            self._shards[tensor.file] = shard
        if shard.tensors.get(tensor.name) != tensor:
            raise CheckpointError(f"{tensor.file} changed while it was exported", field=tensor.file)
        return shard.read_rows(tensor.name, start, stop)


class Transfer:
    """Makes the weight files of one plan. Finished files of an earlier run are checked and kept."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: ExportPlan,
        workspace: Workspace,
        report: ProgressReport,
        *,
        num_workers: int,
    ) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._workspace = workspace
        self._report = report
        self._num_workers = num_workers
        self._stop = Event()
        self._lock = Lock()
        self._num_uses = Counter(name for file in plan.files for name in self._needs(file))
        self.num_kept = 0

    def run(self) -> Hashes:
        """Write, or check, every file and return their hashes.

        Raises:
            ExportError: the first failure; the other threads stop at their next chunk.
        """
        with ThreadPoolExecutor(self._num_workers, thread_name_prefix="export") as pool:
            futures = {pool.submit(self._make, file): file.name for file in self._plan.files}
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        _raise_first(list(futures))
        return {name: future.result() for future, name in futures.items()}

    def _make(self, file: PlannedFile) -> tuple[str, ...]:
        hashes = self._kept(file)
        if hashes is None:
            hashes = self._write(file)
            self._report.file_done(file.name, file.size_bytes, "wrote")
        self._release(file)
        return hashes

    def _kept(self, file: PlannedFile) -> tuple[str, ...] | None:
        finished = self._workspace.finished_file(file.name)
        path = self._workspace.artifact / file.name
        if finished is None or len(finished.hashes) != len(file.tensors):
            return None
        content = FileContent.of_tensors(file.name, file.stored, finished.hashes)
        if find_damage(path, content, lambda _: self._check_running()):
            return None
        with self._lock:
            self.num_kept += 1
        self._report.advance(file.size_bytes)
        self._report.file_done(file.name, file.size_bytes, "kept")
        return finished.hashes

    def _write(self, file: PlannedFile) -> tuple[str, ...]:
        header = header_bytes(file.stored)
        self._report.advance(len(header))
        with SourceReader(self._checkpoint, self._workspace.download) as reader:
            streams = (
                (stored, self._chunks(tensor, reader)) for stored, tensor in zip(file.stored, file.tensors, strict=True)
            )
            hashes = write_file(self._workspace.artifact / file.name, streams, header)
            if file.name == EMBED_FILE:
                self._check_head_copy(reader, hashes[0])
        return self._workspace.record_finished(file.name, hashes).hashes

    def _chunks(self, tensor: PlannedTensor, reader: SourceReader) -> Iterator[torch.Tensor]:
        for chunk in tensor.recipe.chunks(reader, getattr(torch, tensor.dtype)):
            self._check_running()
            yield chunk
            self._report.advance(chunk.nbytes)

    def _check_head_copy(self, reader: SourceReader, embedding_hash: str) -> None:
        """Refuse a tied model whose checkpoint has a head of its own: one of the two would be lost."""
        copy = self._plan.head_copy
        if copy is None:
            return
        stored = StoredTensor(copy.name, copy.dtype, copy.shape)
        if digest_tensor(stored, copy.recipe.chunks(reader, getattr(torch, copy.dtype))) != embedding_hash:
            raise CheckpointError(
                f"config.json ties the output head to the embedding, but {copy.name} differs from it: set "
                "tie_word_embeddings to false in config.json if the head is meant, or remove the tensor",
                field=copy.name,
            )

    def _needs(self, file: PlannedFile) -> set[str]:
        copy = self._plan.head_copy
        return file.source_files | (set(copy.source_files) if copy and file.name == EMBED_FILE else set())

    def _release(self, file: PlannedFile) -> None:
        with self._lock:
            for name in self._needs(file):
                self._num_uses[name] -= 1
                if self._num_uses[name] == 0:
                    self._checkpoint.release(name, self._workspace.download)

    def _check_running(self) -> None:
        if self._stop.is_set():
            raise _StoppedError("stopped")


def digest_plan(
    checkpoint: Checkpoint, plan: ExportPlan, staging: Path, report: ProgressReport
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the name and the hashes of each file that the plan would write, writing nothing."""
    for file in plan.files:
        with SourceReader(checkpoint, staging) as reader:
            hashes = tuple(
                digest_tensor(stored, tensor.recipe.chunks(reader, getattr(torch, tensor.dtype)))
                for stored, tensor in zip(file.stored, file.tensors, strict=True)
            )
        report.advance(file.size_bytes)
        report.file_done(file.name, file.size_bytes, "compared")
        yield file.name, hashes


def _raise_first(futures: list[Future[tuple[str, ...]]]) -> None:
    errors = [
        error for future in futures if not future.cancelled() for error in [future.exception()] if error is not None
    ]
    causes = [error for error in errors if not isinstance(error, _StoppedError)]
    if errors:
        raise (causes or errors)[0]
