"""Makes the demo's artifact: from the trained model that ships with the package, else from random weights.

Both need torch, which this process does without: each step is a process of its own.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.processes import ChildProcess

NUM_RANDOM_LAYERS = 6

_WRITE_RANDOM = """
import sys
from pathlib import Path
from export.synthetic.random_checkpoint import write_random_checkpoint
write_random_checkpoint(Path(sys.argv[1]), num_layers=int(sys.argv[2]))
"""


async def make_artifact(directory: Path, checkpoint: Path | None) -> Path:
    """Export `checkpoint`, or a random one where it is None; returns the artifact's directory inside `directory`."""
    if importlib.util.find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    if checkpoint is None:
        checkpoint = directory / "checkpoint"
        await _run(["-c", _WRITE_RANDOM, str(checkpoint), str(NUM_RANDOM_LAYERS)], directory / "checkpoint.log")
    artifact = directory / "artifact"
    await _run(["-m", "broker_pipeline", "export", str(checkpoint), str(artifact)], directory / "export.log")
    return artifact


async def _run(arguments: Sequence[str], log_path: Path) -> None:
    child = await ChildProcess.spawn(log_path.stem, [sys.executable, *arguments], log_path=log_path)
    try:
        returncode = await child.wait()
    finally:
        await child.destroy()
    if returncode != 0:
        said = "\n".join(child.last_lines())
        raise ServerStartError(f"could not make the demo's model ({log_path.stem}, exit status {returncode}):\n{said}")
