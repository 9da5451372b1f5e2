"""An exported model on this host's disk, from which a worker takes what its part of the model needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from broker_pipeline.artifact_files.selection import fetch_command
from broker_pipeline.artifact_manifest import FP8_DTYPE, TensorRecord, WeightsManifest, read_manifest, scale_name
from broker_pipeline.errors import ArtifactCorruptError, ArtifactMissingError, TensorMissingError
from broker_pipeline.model_facts import check_side_files, read_config_bytes
from stages.lazy_tensors import LazyTensors
from stages.qwen3_vl.config import ModelConfig
from stages.random_weights import DrawnTensors
from stages.weights.fp8_matrix import Fp8Matrix, Weight
from stages.weights.verified_files import VerifiedFiles
from stages.weights.weight_files import WeightFiles

_NUM_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact. `config.dtype` is the artifact's dtype, which an export may have changed."""

    directory: Path
    manifest: WeightsManifest
    config: ModelConfig

    @classmethod
    def open(cls, directory: Path | str) -> Artifact:
        """Read manifest and configuration, and check small files whole, and large ones for their size.

        Weight files may be absent, since a host needs those of its own blocks only; `reading` asks for them.

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
        check_side_files(directory, manifest)
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
        self,
        names: Iterable[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        verify: bool = True,
    ) -> dict[str, Tensor]:
        """Return tensors by name, as `reading` gives them, but FP8 dequantised, in the artifact's dtype for None.

        The head of a tied model and its embedding are one.
        """
        records = self._records(names)
        stored = {name: record.tied_to or name for name, record in records.items()}
        with self.reading(dict.fromkeys(stored.values()), device, dtype, verify=verify) as tensors:
            loaded = {
                name: tensor if isinstance(tensor, Tensor) else tensor.dequantised(dtype or self.dtype)
                for name, tensor in tensors.items()
            }
        return {name: loaded[stored_name] for name, stored_name in stored.items()}

    def reading(
        self,
        names: Iterable[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        *,
        verify: bool = True,
    ) -> LazyTensors[Weight]:
        """Return tensors by name, on `device`, in `dtype` (None: as stored), to be asked for within their context.

        A matrix in FP8 comes with its scales, as `Fp8Matrix`, whatever the dtype.
        Only the files that hold them are opened. What is read is compared with the manifest, unless all of its file was
        before and the file has not changed since (`VerifiedFiles`), or `verify` is off. It is memory of this process,
        or of the device: nothing refers to the files afterwards.
        An artifact of random weights has no files: its tensors are drawn on `device` (see `random_weights`).

        Raises:
            TensorMissingError: lists the names that this artifact does not have.
            ArtifactMissingError: lists the files that this host lacks.
            ArtifactCorruptError (when asked for a tensor): what lies there is not what was exported.
        """
        records, device = self._records(names), torch.device(device)
        read_stored = self._reader(device, verify=verify)
        self._check_files(records.values())
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

        def read(name: str) -> Weight:
            with torch.cuda.stream(stream):  # also on other threads, so that memory is not taken anew while it is read
                weight = read_stored(records[name].tied_to or name)
                return weight if dtype is None or isinstance(weight, Fp8Matrix) else weight.to(dtype)

        return LazyTensors({name: record.size_bytes for name, record in records.items()}, read)

    def _reader(self, device: torch.device, *, verify: bool) -> Callable[[str], Weight]:
        records, random = self.manifest.by_name(), self.manifest.random_weights
        if random is not None:
            drawn = DrawnTensors(
                {name: record.shape for name, record in records.items()},
                device,
                self.dtype,
                random.seed,
                in_fp8=[name for name, record in records.items() if record.dtype == FP8_DTYPE],
            )
            return drawn.__getitem__
        files = WeightFiles(self.directory, self.manifest, VerifiedFiles.in_cache() if verify else None)

        def read(name: str) -> Weight:
            tensor = files.read(name, device)
            is_fp8 = records[name].dtype == FP8_DTYPE
            return Fp8Matrix(tensor, files.read(scale_name(name), device)) if is_fp8 else tensor

        return read

    def _records(self, names: Iterable[str]) -> dict[str, TensorRecord]:
        names, records = list(names), self.manifest.by_name()
        if unknown := [name for name in names if name not in records]:
            more = f" and {len(unknown) - _NUM_NAMES_SHOWN} more" if len(unknown) > _NUM_NAMES_SHOWN else ""
            raise TensorMissingError(
                f"{self.directory} has no tensors of these names: {', '.join(unknown[:_NUM_NAMES_SHOWN])}{more}"
            )
        return {name: records[name] for name in names}

    def _check_files(self, records: Iterable[TensorRecord]) -> None:
        files = {record.file for record in records} if self.manifest.random_weights is None else set()
        absent = sorted(file for file in files if not (self.directory / file).is_file())
        if absent:
            raise ArtifactMissingError(
                f"{self.directory} lacks files that this part of the model needs: {', '.join(absent)}. "
                f"`{fetch_command(self.manifest, absent, self.directory)}` brings them; FROM is where the whole "
                "artifact is, a directory or a URL.",
                field=absent[0],
            )


def _check_sizes(directory: Path, manifest: WeightsManifest) -> None:
    for weights in manifest.weight_files:
        path = directory / weights.name
        if path.exists() and (size_bytes := path.stat().st_size) != weights.size_bytes:
            raise ArtifactCorruptError(
                f"{path} has {size_bytes} bytes instead of {weights.size_bytes}; copy it again", field=path.name
            )
