"""An exported model on this host's disk, from which a worker takes what its part of the model needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from broker_pipeline.artifact_manifest import WeightsManifest, read_manifest
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError, TensorMissingError
from broker_pipeline.model_facts import read_config_bytes
from stages.qwen3_vl.config import ModelConfig
from stages.random_weights import draw_weights

_NUM_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact. `config.dtype` is the artifact's dtype, which an export may have changed."""

    directory: Path
    manifest: WeightsManifest
    config: ModelConfig

    @classmethod
    def open(cls, directory: Path | str) -> Artifact:
        """Read manifest and configuration, and check that what is here has the right size.

        Weight files may be absent, since a host needs those of its own blocks only; `load` asks for them.
        Content is not hashed: that is `broker-pipeline export verify`.

        Raises:
            ArtifactMissingError: there is no artifact, or a tokenizer or processor file is missing.
            ArtifactCorruptError: manifest, configuration or a file is not what the export wrote.
            ModelConfigError: the configuration is not of a model of this family.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        config = ModelConfig.from_json(read_config_bytes(directory, manifest))
        if config.text.num_layers != manifest.num_blocks:
            raise ArtifactCorruptError(f"{directory}: configuration and manifest differ in the number of blocks")
        _check_sizes(directory, manifest)
        return cls(directory, manifest, replace(config, dtype=manifest.dtype))

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, that names the artifact."""
        return self.manifest.fingerprint

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the weights are stored."""
        return torch.float32 if self.manifest.dtype == "float32" else torch.bfloat16

    def path(self, name: str) -> Path:
        """Return the path of a side file, such as "tokenizer.json".

        Raises:
            ArtifactMissingError: the checkpoint had no such file.
        """
        if all(file.name != name for file in self.manifest.side_files):
            raise ArtifactMissingError(f"the checkpoint that became {self.directory} had no {name}", field=name)
        return self.directory / name

    def has(self, name: str) -> bool:
        """Say whether there is a side file of this name."""
        return any(file.name == name for file in self.manifest.side_files)

    def load(
        self, names: Iterable[str], device: torch.device | str = "cpu", dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Return tensors by name, on `device`, in `dtype` (None: as stored).

        Only the files that hold them are opened. On the CPU the tensors are private memory maps of the files: they cost
        no memory until they are read, several processes share it, and writing to one copies the page. For another
        device the bytes go there straight from the map. The head of a tied model and its embedding are one tensor.
        An artifact of random weights has no files: its tensors are drawn on `device` (see `random_weights`).

        Raises:
            TensorMissingError: lists the names that this artifact does not have.
            ArtifactMissingError: lists the files that this host lacks.
        """
        names = list(names)
        records = self.manifest.by_name()
        self._check_names([name for name in names if name not in records])
        stored_names = {name: records[name].tied_to or name for name in names}
        if self.manifest.random_weights is not None:
            shapes = {stored: records[stored].shape for stored in dict.fromkeys(stored_names.values())}
            drawn = draw_weights(shapes, torch.device(device), self.dtype, self.manifest.random_weights.seed)
            return {name: _converted(drawn[stored], dtype) for name, stored in stored_names.items()}
        by_file: defaultdict[str, set[str]] = defaultdict(set)
        for stored in stored_names.values():
            by_file[records[stored].file].add(stored)
        self._check_files(by_file)
        tensors: dict[str, Tensor] = {}
        for file, wanted in by_file.items():
            tensors |= _load_file(self.directory / file, wanted, torch.device(device), dtype)
        return {name: tensors[stored] for name, stored in stored_names.items()}

    def check(self, names: Iterable[str]) -> None:
        """Check that `load` of these names will find them; errors as there."""
        names, records = list(names), self.manifest.by_name()
        self._check_names([name for name in names if name not in records])
        if self.manifest.random_weights is None:
            self._check_files({records[records[name].tied_to or name].file: set() for name in names})

    def _check_names(self, unknown: list[str]) -> None:
        if unknown:
            more = f" and {len(unknown) - _NUM_NAMES_SHOWN} more" if len(unknown) > _NUM_NAMES_SHOWN else ""
            raise TensorMissingError(
                f"{self.directory} has no tensors of these names: {', '.join(unknown[:_NUM_NAMES_SHOWN])}{more}"
            )

    def _check_files(self, by_file: Mapping[str, set[str]]) -> None:
        absent = sorted(file for file in by_file if not (self.directory / file).is_file())
        if absent:
            raise ArtifactMissingError(
                f"{self.directory} lacks files that this part of the model needs: {', '.join(absent)}. "
                "Copy them from where the artifact was exported.",
                field=absent[0],
            )


def _check_sizes(directory: Path, manifest: WeightsManifest) -> None:
    for weights in manifest.weight_files:
        if (directory / weights.name).exists():
            _check_size(directory / weights.name, weights.size_bytes)
    for side in manifest.side_files:
        if not (directory / side.name).is_file():
            raise ArtifactMissingError(f"{directory} lacks {side.name}; copy it again", field=side.name)
        _check_size(directory / side.name, side.size_bytes)


def _check_size(path: Path, expected: int) -> None:
    size_bytes = path.stat().st_size
    if size_bytes != expected:
        raise ArtifactCorruptError(
            f"{path} has {size_bytes} bytes instead of {expected}; copy it again", field=path.name
        )


def _load_file(path: Path, names: set[str], device: torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: _converted(file.get_tensor(name), dtype) for name in sorted(names)}
    except SafetensorError as error:
        raise ArtifactCorruptError(f"{path}: {error}; copy it again", field=path.name) from error


def _converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None else tensor.to(dtype)
