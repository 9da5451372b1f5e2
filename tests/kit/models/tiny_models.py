"""Tiny checkpoints for tests, made once per test run and shared read-only."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.kit.models.random_checkpoints import ExpertLayout, write_random_checkpoint

_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def tiny_checkpoint(
    *,
    moe: bool = False,
    tied: bool = True,
    num_layers: int = 6,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    expert_layout: ExpertLayout = "hub",
    changes: str = "{}",
) -> Path:
    """Return a directory that transformers and our exporter both read; never write into it.

    `changes`, a JSON object, is merged into `config.json`, section by section; the weights must fit it as they are.
    """
    kept = tempfile.TemporaryDirectory(prefix="tiny-checkpoint-")
    _KEPT.append(kept)  # deleted when the process ends
    directory = write_random_checkpoint(
        Path(kept.name),
        moe=moe,
        tied=tied,
        num_layers=num_layers,
        seed=seed,
        dtype=dtype,
        expert_layout=expert_layout,
    )
    config = json.loads((directory / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps(merged(config, json.loads(changes))))
    return directory


def merged(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `config` with `changes` merged into it, section by section."""
    return config | {
        key: merged(config[key], value) if isinstance(value, dict) and key in config else value
        for key, value in changes.items()
    }
