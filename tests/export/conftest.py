"""Checkpoints to export, written as save_pretrained and the hub write them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from export.exporter import Exported, ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from export.synthetic.generated_files import write_processor_files, write_text_files
from export.synthetic.random_checkpoint import random_hf_config, random_weights
from stages.qwen3_vl.config import ModelConfig

Weights = dict[str, torch.Tensor]


@pytest.fixture
def run_export(tmp_path: Path) -> Callable[..., Exported]:
    """Export a directory without a screen; the target is named after the source unless given."""

    def run(source: Path, target: Path | None = None, console: Console | None = None, **options: Any) -> Exported:
        target = target or tmp_path / f"{source.name}.artifact"
        console = console or Console(quiet=True, force_terminal=False)
        return export_checkpoint(LocalCheckpoint(source), target, ExportOptions(**options), console)

    return run


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write configuration and tensors as a checkpoint of one file, or of several with an index."""

    def write(config: Mapping[str, Any], weights: Weights, name: str = "checkpoint", num_shards: int = 1) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        write_text_files(directory)
        write_processor_files(directory)
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4], "top_k": 20}))
        if num_shards == 1:
            save_file(weights, directory / "model.safetensors")
            return directory
        names = list(weights)
        weight_map = {}
        for number in range(num_shards):
            file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
            part = {name: weights[name] for name in names[number::num_shards]}
            save_file(part, directory / file)
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        return directory

    return write


@pytest.fixture
def moe_config() -> dict[str, Any]:
    """A MoE model of three layers: H 64, I 40, 8 experts."""
    return random_hf_config(moe=True, tied=False, num_layers=3, dtype=torch.bfloat16)


@pytest.fixture
def moe_weights(moe_config: dict[str, Any]) -> Weights:
    """Its tensors in the runtime layout."""
    return random_weights(ModelConfig.from_json(moe_config), seed=1, dtype=torch.bfloat16)


@pytest.fixture
def dense_config() -> dict[str, Any]:
    """A dense, tied model of three layers."""
    return random_hf_config(moe=False, tied=True, num_layers=3, dtype=torch.bfloat16)


@pytest.fixture
def dense_weights(dense_config: dict[str, Any]) -> Weights:
    """Its tensors; no head, since that is the embedding."""
    return random_weights(ModelConfig.from_json(dense_config), seed=2, dtype=torch.bfloat16)
