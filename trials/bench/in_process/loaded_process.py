"""Rounds of the same work in one process without broker: run, not imported, since a benchmark must not need torch.

    here      order.json ─► start                    go-0 ─►                    go-1 ─►
    process                 load, warm up ─► ready           work ─► round-0            work ─► round-1 …

Between rounds the process sleeps, so that rounds of others can lie in between on the same cores.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from broker_pipeline.tools.local.processes import ChildProcess
from trials.bench.work import InProcessOrder, Round

PROGRAM = "trials.bench.in_process.continuous"
TRANSFORMERS_PROGRAM = "trials.bench.in_process.transformers_generate"

ORDER_NAME, READY_NAME = "order.json", "ready"
POLL_S = 0.02


def go_name(number: int) -> str:
    """Return the name of the file that has round `number` begin."""
    return f"go-{number}"


def round_name(number: int) -> str:
    """Return the name of the file that tells of round `number`."""
    return f"round-{number}.json"


class LoadedProcess:
    """A process that has loaded the model and is warm. Made by `open`."""

    def __init__(self, child: ChildProcess, directory: Path) -> None:
        """Talk to `child` by files in `directory`."""
        self._child = child
        self._directory = directory

    @classmethod
    @asynccontextmanager
    async def open(cls, program: str, order: InProcessOrder, directory: Path) -> AsyncIterator[LoadedProcess]:
        """Start it in a fresh `directory` and wait until it is warm; leaving ends it and frees what it holds.

        Raises `ServerStartError` with the process's last words when it fails; so does `run`.
        """
        _write_order(order, directory)
        argv = [sys.executable, "-m", program, str(directory)]
        env = {"OMP_NUM_THREADS": str(order.num_threads), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        child = await ChildProcess.spawn("one process", argv, log_path=directory / "in-process.log", env=env)
        try:
            process = cls(child, directory)
            await process._until(READY_NAME)
            yield process
        finally:
            await child.destroy()

    async def run(self, number: int) -> Round:
        """Do the order's round `number`; each can be done once."""
        (self._directory / go_name(number)).touch()
        path = await self._until(round_name(number))
        return msgspec.json.decode(path.read_bytes(), type=Round)

    async def _until(self, name: str) -> Path:
        path = self._directory / name
        while not path.exists():
            if not self._child.is_running:
                raise self._child.failure("failed")
            await asyncio.sleep(POLL_S)
        return path


def _write_order(order: InProcessOrder, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / ORDER_NAME).write_bytes(msgspec.json.encode(order))
