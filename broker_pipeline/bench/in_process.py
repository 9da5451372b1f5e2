"""Rounds of the same work in one process without broker: run, not imported, since the core must not need torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from broker_pipeline.bench.work import InProcessOrder, Round
from broker_pipeline.errors import ServerStartError
from broker_pipeline.local.processes import ChildProcess

PROGRAM = "stages.bench.in_process"
TRANSFORMERS_PROGRAM = "stages.bench.transformers_rounds"


async def run_rounds(program: str, order: InProcessOrder, model: Path, directory: Path) -> list[Round]:
    """Run an order for `model` in a process of its own, which leaves its files in `directory`, and return its rounds.

    Raises `ServerStartError` with the process's last words when it fails.
    """
    asked, answered, log = directory / "order.json", directory / "rounds.json", directory / "in-process.log"
    asked.write_bytes(msgspec.json.encode(msgspec.structs.replace(order, model=str(model))))
    argv = [sys.executable, "-m", program, str(asked), str(answered)]
    env = {"OMP_NUM_THREADS": str(order.num_threads), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    child = await ChildProcess.spawn("in-process", argv, log_path=log, env=env)
    try:
        returncode = await child.wait()
    finally:
        await child.destroy()
    if returncode != 0:
        said = "\n".join(child.last_lines())
        raise ServerStartError(f"computing in one process failed (exit status {returncode}):\n{said}")
    return msgspec.json.decode(answered.read_bytes(), type=list[Round])
