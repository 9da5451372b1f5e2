"""Servers and services that run where they are placed: on the loopback interface, or in a namespace of their own."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.tools.local.service import LocalService

LOOPBACK = "127.0.0.1"
_PROBE_S = 1.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program runs: its address, and what its command line begins with."""

    address: str = LOOPBACK
    within: tuple[str, ...] = ()


class PlacedNats(EmbeddedNats):
    """nats-server at a place of its own, on a given port."""

    def __init__(self, directory: Path, place: Place, *, port: int, log_path: Path) -> None:
        super().__init__(directory, port=port, log_path=log_path)
        self._place = place
        self._listen_port = port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{self.scheme}://{self._place.address}:{self._listen_port}"

    def _prepare(self, port: int | None) -> Sequence[str]:
        argv = super()._prepare(port)
        config = self.directory / "nats-server.conf"
        config.write_text(re.sub(r'listen: "[^"]*"', f'listen: "{self._place.address}:{port}"', config.read_text()))
        return [*self._place.within, *argv]

    async def _probe(self, process: ChildProcess) -> int | None:  # noqa: ARG002 - the port is ours alone
        banner = await _ask(self._place.address, self._listen_port, b"")
        return self._listen_port if orjson.loads(banner.removeprefix(b"INFO ")).get("jetstream") else None


class PlacedRedis(EmbeddedRedis):
    """Redis at a place of its own, on a given port."""

    def __init__(self, directory: Path, place: Place, *, port: int, log_path: Path) -> None:
        super().__init__(directory, port=port, log_path=log_path)
        self._place = place
        self._listen_port = port

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{self.scheme}://{self._place.address}:{self._listen_port}"

    def _prepare(self, port: int | None) -> Sequence[str]:
        argv = super()._prepare(port)
        # Without a password it answers strangers on the loopback interface only; here all who can reach it are ours.
        placed = [self._place.address if word == LOOPBACK else word for word in argv]
        return [*self._place.within, *placed, "--protected-mode", "no"]

    async def _probe(self, process: ChildProcess) -> int | None:  # noqa: ARG002 - the port is ours alone
        answer = await _ask(self._place.address, self._listen_port, b"PING\r\n")
        return self._listen_port if answer == b"+PONG\r\n" else None


class PlacedService(LocalService):
    """A service of ours at a place of its own."""

    def __init__(
        self, name: str, place: Place, arguments: Sequence[str], *, directory: Path, env: Mapping[str, str]
    ) -> None:
        super().__init__(
            name,
            arguments,
            log_path=directory / "logs" / f"{name}.log",
            ready_path=directory / "run" / f"{name}.ready",
            env=env,
            start_timeout_s=120.0,
        )
        self._place = place

    async def start(self) -> str:
        """Start and wait until it is ready. Raises `ServerStartError` with its last words."""
        self._ready_path.parent.mkdir(parents=True, exist_ok=True)
        self._ready_path.unlink(missing_ok=True)
        command = [sys.executable, "-m", "broker_pipeline", *self._arguments, "--ready-file", str(self._ready_path)]
        started = time.monotonic()
        argv = [*self._place.within, *command]
        self._process = await ChildProcess.spawn(self.name, argv, log_path=self.log_path, env=self._env)
        try:
            await self._until_ready(self._process, started + self._start_timeout_s)
        except BaseException:
            await self._process.destroy()
            raise
        return f"started in {time.monotonic() - started:.1f} s"


async def _ask(host: str, port: int, question: bytes) -> bytes:
    """Connect, send `question`, return the first line of the answer."""
    async with asyncio.timeout(_PROBE_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(question)
            return await reader.readuntil(b"\r\n")
        finally:
            writer.close()
