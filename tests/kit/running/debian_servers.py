"""Servers of Debian's packages, as somebody else may have started them: older than those of the wheels."""

from __future__ import annotations

import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from tests.kit.waiting import eventually

_PATH = "/usr/sbin:/usr/bin"
PROGRAMS = {name: shutil.which(name, path=_PATH) for name in ("nats-server", "redis-server")}
needs_debians_servers = pytest.mark.skipif(None in PROGRAMS.values(), reason="apt-get install nats-server redis-server")


@asynccontextmanager
async def debians_nats(directory: Path) -> AsyncIterator[str]:
    """A nats-server with JetStream and no settings of its own; its URL."""
    port = free_port()
    flags = ("-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory / "js"))
    async with _running(directory, "nats-server", *flags, port=port):
        yield f"nats://127.0.0.1:{port}"


@asynccontextmanager
async def debians_redis(directory: Path) -> AsyncIterator[str]:
    """A redis-server with an append-only file; its URL."""
    port = free_port()
    flags = ("--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--appendonly", "yes")
    async with _running(directory, "redis-server", *flags, port=port):
        yield f"redis://127.0.0.1:{port}/0"


@asynccontextmanager
async def _running(directory: Path, name: str, *arguments: str, port: int) -> AsyncIterator[None]:
    program = PROGRAMS[name]
    assert program is not None
    child = await ChildProcess.spawn(name, [program, *arguments], log_path=directory / f"{name}.log")
    try:
        await eventually(lambda: is_listening(port))
        yield
    finally:
        await child.stop()


def is_listening(port: int) -> bool:
    """Return whether somebody listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
