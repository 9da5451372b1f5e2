"""Comparisons of tiny checkpoints with their artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from click.testing import CliRunner

from export.command import command
from export.parity.receipt import Receipt
from tests.kit.models.random_checkpoints import write_random_checkpoint

Compared = tuple[int, Receipt, str]
"""Exit code, receipt, and what was printed on both streams."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A MoE model of four layers in bfloat16, as the hub stores it."""
    return write_random_checkpoint(tmp_path / "source", moe=True, tied=False, num_layers=4, dtype=torch.bfloat16)


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., Compared]:
    """Compare an artifact with a checkpoint, by default without generating tokens."""

    def run(artifact: Path, checkpoint: Path, *options: Any) -> Compared:
        receipt = tmp_path / "receipt.json"
        arguments = ["verify", artifact, "--parity", checkpoint, "--receipt", receipt, *(options or ("--tokens", 0))]
        result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
        return result.exit_code, msgspec.json.decode(receipt.read_bytes(), type=Receipt), result.output

    return run
