"""An artifact's small files and manifest, known before its weights are written but for their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import msgspec

from broker_pipeline.artifact_manifest import (
    CONFIG_NAME,
    FORMAT_VERSION,
    MANIFEST_NAME,
    SideFile,
    TensorRecord,
    WeightFile,
    WeightsManifest,
    fingerprint_of,
)
from export.plan import ExportPlan, PlannedFile
from export.side_files.bpe_tokenizer import has_older_files, tokenizer_json
from export.side_files.rehearsal import rehearse_serving
from export.source.checkpoint import Checkpoint
from stages.prompt.tokenizer import TOKENIZER_FILE
from stages.qwen3_vl.tensors import EMBED_TOKENS, LM_HEAD


@dataclass(frozen=True, slots=True)
class PlannedArtifact:
    """What becomes of a checkpoint; `side_files` by name."""

    source: str | None
    config_json: bytes
    side_files: Mapping[str, bytes]
    plan: ExportPlan

    @classmethod
    def of(cls, checkpoint: Checkpoint, plan: ExportPlan) -> Self:
        """Collect the small files and do with them what services will do; no weight is read.

        Raises:
            CheckpointError, ModelConfigError: the artifact could not be served; says why, and what to do.
        """
        artifact = cls(checkpoint.source, checkpoint.config_json, collect_side_files(checkpoint), plan)
        unknown = {file.name: ("0" * 64,) * len(file.tensors) for file in plan.files}
        rehearse_serving(artifact.small_files() | {MANIFEST_NAME: encode_manifest(artifact.manifest(unknown))})
        return artifact

    def small_files(self) -> dict[str, bytes]:
        """Return all files but weights and manifest."""
        return {CONFIG_NAME: self.config_json, **self.side_files}

    def manifest(self, hashes: Mapping[str, tuple[str, ...]]) -> WeightsManifest:
        """Return the manifest of an artifact whose tensors have these hashes (by file, in order)."""
        tensors = [record for file in self.plan.files for record in _records(file, hashes[file.name])]
        if self.plan.has_tied_head:
            embedding = next(record for record in tensors if record.name == EMBED_TOKENS)
            tensors.append(msgspec.structs.replace(embedding, name=LM_HEAD, tied_to=EMBED_TOKENS))
        manifest = WeightsManifest(
            format_version=FORMAT_VERSION,
            fingerprint="0" * 64,
            config_sha256=_sha256(self.config_json),
            dtype=self.plan.dtype,
            num_blocks=self.plan.num_blocks,
            source=self.source,
            weight_files=tuple(WeightFile(file.name, file.size_bytes) for file in self.plan.files),
            side_files=tuple(SideFile(name, len(file), _sha256(file)) for name, file in self.side_files.items()),
            tensors=tuple(tensors),
        )
        return msgspec.structs.replace(manifest, fingerprint=fingerprint_of(manifest))


def collect_side_files(checkpoint: Checkpoint) -> dict[str, bytes]:
    """Return the checkpoint's small files by name, and a `tokenizer.json` where only the older files are.

    Raises:
        CheckpointError, ModelConfigError: `tokenizer.json` cannot be made of the files that the checkpoint has instead.
    """
    files = {name: checkpoint.read_side_file(name) for name in checkpoint.side_files}
    if TOKENIZER_FILE not in files and has_older_files(files):
        files[TOKENIZER_FILE] = tokenizer_json(files)
    return files


def encode_manifest(manifest: WeightsManifest) -> bytes:
    """Return the manifest as it is written: JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def _records(file: PlannedFile, hashes: tuple[str, ...]) -> list[TensorRecord]:
    return [
        TensorRecord(
            name=tensor.name,
            file=file.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            size_bytes=stored.size_bytes,
            sha256=sha256,
            tied_to=None,
            source_files=tensor.source_files,
            source_layout=tensor.layout,
            transposed=tensor.transposed,
        )
        for tensor, stored, sha256 in zip(file.tensors, file.stored, hashes, strict=True)
    ]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
