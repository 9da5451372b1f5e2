"""Tiny artifacts for tests, exported once per test run and shared read-only."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from export.exporter import ExportOptions, export_checkpoint
from export.source.checkpoint import LocalCheckpoint
from tests.kit.models.tiny_models import tiny_checkpoint

_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def tiny_artifact(**options: Any) -> Path:
    """Return an artifact of `tiny_checkpoint(**options)`; never write into it."""
    kept = tempfile.TemporaryDirectory(prefix="tiny-artifact-")
    _KEPT.append(kept)  # deleted when the process ends
    target = Path(kept.name) / "artifact"
    source = LocalCheckpoint(tiny_checkpoint(**options))
    export_checkpoint(source, target, ExportOptions(), Console(quiet=True, force_terminal=False))
    return target
