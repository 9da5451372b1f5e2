"""One of our own services as a child process: `python -m broker_pipeline COMMAND …`, ready when it says so."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson

from broker_pipeline.errors import ServerStartError
from broker_pipeline.tools.local.processes import ChildProcess, describe_exit

_POLL_S = 0.05
_NUM_LAST_LINES = 12


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
    ) -> None:
        """`arguments` follow `broker-pipeline`; `env` is added to this process's environment."""
        self.name = name
        self.log_path = log_path
        self.facts: dict[str, str] = {}
        """What the service said when it became ready."""
        self._arguments = tuple(arguments)
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
        argv = [sys.executable, "-m", "broker_pipeline", *self._arguments, "--ready-file", str(self._ready_path)]
        started = time.monotonic()
        self._process = await ChildProcess.spawn(self.name, argv, log_path=self.log_path, env=self._env)
        try:
            await self._until_ready(self._process, started + self._start_timeout_s)
        except BaseException:
            await self._process.destroy()
            raise
        self.facts = _read_facts(self._ready_path)
        return f"started in {time.monotonic() - started:.1f} s"

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, and SIGKILL after `grace_s`."""
        if self._process is not None:
            await self._process.stop(grace_s)

    async def _until_ready(self, process: ChildProcess, deadline: float) -> None:
        while not self._ready_path.exists():
            if not process.is_running:
                raise self._start_error(describe_exit(await process.wait()))
            if time.monotonic() > deadline:
                raise self._start_error(f"not ready after {self._start_timeout_s:g} s")
            await asyncio.sleep(_POLL_S)

    def _start_error(self, reason: str) -> ServerStartError:
        lines = [readable(line) for line in self.process.last_lines(_NUM_LAST_LINES)]
        said = "\n".join(f"    {line}" for line in lines) or "    (it wrote nothing)"
        return ServerStartError(f"{self.name} did not start: {reason}. Its last words, from {self.log_path}:\n{said}")


def readable(line: str) -> str:
    """Return a JSON log line as `event  key=value …`; other lines as they are."""
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    if not isinstance(fields, dict) or "event" not in fields:
        return line
    event = fields.pop("event")
    for key in ("timestamp", "service"):
        fields.pop(key, None)
    level = fields.pop("level", "")
    rest = " ".join(f"{key}={value}" for key, value in fields.items() if value is not None)
    return f"{level:<7} {event}  {rest}".rstrip()


def _read_facts(path: Path) -> dict[str, str]:
    lines = path.read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
