"""The artifact of a shape: random weights that no file holds. Made by a process, since the core knows no models."""

from __future__ import annotations

import sys
from pathlib import Path

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.processes import ChildProcess

_PROGRAM = "trials.bench.shape_artifact_program"


async def make_shape_artifact(shape: str, num_layers: int | None, directory: Path) -> Path:
    """Write the artifact into `directory` / "artifact" and return that.

    Raises `ServerStartError` with the last words of what failed.
    """
    artifact = directory / "artifact"
    arguments = [shape, str(artifact), *([str(num_layers)] if num_layers else [])]
    argv = [sys.executable, "-m", _PROGRAM, *arguments]
    child = await ChildProcess.spawn("artifact", argv, log_path=directory / "artifact.log")
    try:
        returncode = await child.wait()
    finally:
        await child.destroy()
    if returncode != 0:
        said = "\n".join(child.last_lines())
        raise ServerStartError(f"could not make random weights (exit status {returncode}):\n{said}")
    return artifact
