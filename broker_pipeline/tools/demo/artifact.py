"""Makes an artifact of a small checkpoint. That needs torch, which this process does without: another one does it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from broker_pipeline.tools.local.processes import run_python


async def make_artifact(directory: Path, checkpoint: Path, options: Sequence[str] = ()) -> Path:
    """Export `checkpoint` with options of the command; return the artifact's directory, inside `directory`."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    artifact = directory / "artifact"
    command = ["-m", "broker_pipeline", "export", *options, str(checkpoint), str(artifact)]
    await run_python("export", command, log_path=directory / "export.log")
    return artifact
