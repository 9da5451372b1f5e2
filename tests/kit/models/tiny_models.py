"""Tiny checkpoints for tests, made once per test run and shared read-only."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

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
) -> Path:
    """Return a directory that transformers and our exporter both read; never write into it."""
    kept = tempfile.TemporaryDirectory(prefix="tiny-checkpoint-")
    _KEPT.append(kept)  # deleted when the process ends
    return write_random_checkpoint(
        Path(kept.name),
        moe=moe,
        tied=tied,
        num_layers=num_layers,
        seed=seed,
        dtype=dtype,
        expert_layout=expert_layout,
    )
