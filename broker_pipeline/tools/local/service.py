"""One of our own services as a child process: `python -m broker_pipeline COMMAND …`, ready when it says so."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from broker_pipeline.tools.local.place import LOOPBACK, Place
from broker_pipeline.tools.local.processes import ChildProcess

_POLL_S = 0.05


class LocalService:
    """Starts a service and waits for the file that it writes once it takes work."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log_path: Path,
        ready_path: Path,
        env: Mapping[str, str],
        start_timeout_s: float,
        place: Place = LOOPBACK,
    ) -> None:
        """Prepare a service: `arguments` follow `broker-pipeline`, `env` is added to this process's environment."""
        self.name = name
        self.log_path = log_path
        self.facts: dict[str, str] = {}
        """What the service said when it became ready."""
        command = (sys.executable, "-m", "broker_pipeline", *arguments, "--ready-file", str(ready_path))
        self._argv = (*place.prefix, *command)
        self._ready_path = ready_path
        self._env = dict(env)
        self._start_timeout_s = start_timeout_s
        self._process: ChildProcess | None = None

    @property
    def process(self) -> ChildProcess:
        """The latest process."""
        if self._process is None:
            raise RuntimeError(f"{self.name} has not been started")
        return self._process

    async def start(self) -> str:
        """Start and wait until it is ready. Raises `ServerStartError` with its last words."""
        self._ready_path.parent.mkdir(parents=True, exist_ok=True)
        self._ready_path.unlink(missing_ok=True)
        started = time.monotonic()
        self._process = await ChildProcess.spawn(self.name, self._argv, log_path=self.log_path, env=self._env)
        try:
            await self._until_ready(self._process, started + self._start_timeout_s)
        except BaseException:
            await self._process.destroy()
            raise
        self.facts = _read_facts(self._ready_path)
        return f"started in {time.monotonic() - started:.1f} s"

    async def stop(self, grace_s: float) -> None:
        """End it in order, by force after `grace_s`."""
        if self._process is not None:
            await self._process.stop(grace_s)

    async def trouble(self) -> None:
        """Say nothing: a service of ours in trouble ends by itself."""

    async def _until_ready(self, process: ChildProcess, deadline: float) -> None:
        while not self._ready_path.exists():
            if not process.is_running:
                returncode = await process.wait()
                failure = process.failure("did not start")
                failure.exit_code = returncode
                raise failure
            if time.monotonic() > deadline:
                raise process.failure(f"did not start: not ready after {self._start_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)


def _read_facts(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
