"""A service of a compose file as a process of a host: what Docker would give it, made with unshare, mount and chroot.

    ip netns exec HOST ── unshare --mount ── sh: root of its own, then ── chroot, setpriv ── the service, same pid
                                              tmpfs, read-only in the end     no root, no capabilities, nothing to gain
                                              /usr, /etc, Python: of this machine
                                              volumes, tmpfs: as the file says

What stands in for the images is this machine's Python environment, which has nats-server, and Debian's redis-server,
which knows TLS. Command line, variables, user, mounts and health check are the file's. Memory limits are not set, as
control groups need not be writable here.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker_pipeline.tools.local.processes import ChildProcess
from tests.kit.documents import ROOT
from tests.kit.hosts.compose_file import COMPOSE
from tests.kit.running.netlab import Netlab

_OF_THE_IMAGE = ("/usr", sys.base_prefix, sys.prefix, str(ROOT))
_MOUNTS_OF_ROOT = ("bin", "lib", "lib64", "sbin")
_PATH = f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin"
_MARK = ".container"
_PATIENCE_S = 120.0


@dataclass
class Container:
    """One service, started and stopped as often as a test wants."""

    lab: Netlab
    host: int
    name: str
    service: dict[str, Any]
    directory: Path
    """For its root, its named volumes and its log."""
    process: ChildProcess | None = field(default=None, init=False)

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.name}.log"

    async def start(self) -> None:
        """Start it as `docker compose up --wait` does: until its health check is content."""
        self.process = await self._spawn()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not await self.is_healthy():
                    if not self.process.is_running:
                        raise self.process.failure("did not start")
                    await asyncio.sleep(0.3)
        except TimeoutError as error:
            raise self.process.failure("is not healthy") from error

    async def run_to_its_end(self) -> str:
        """Run it as `docker compose run` does; return what it says, and raise `ServerStartError` where it fails."""
        process = await self._spawn()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if await process.wait() != 0:
                    raise process.failure("failed")
        finally:
            await process.destroy()
        return self.log_path.read_text()

    async def stop(self) -> int:
        """SIGTERM, and SIGKILL when the file's grace is over."""
        assert self.process is not None
        return await self.process.stop(float(self.service["stop_grace_period"].removesuffix("s")))

    async def is_healthy(self) -> bool:
        """Run the file's health check inside, as `docker exec` would."""
        assert self.process is not None
        if not self._is_inside(self.process.pid):
            return False
        kind, *test = self.service["healthcheck"]["test"]
        return await self.run(*(["/bin/sh", "-c", *test] if kind == "CMD-SHELL" else test)) == 0

    async def run(self, *command: str) -> int:
        """Run a command inside it and return its exit status."""
        assert self.process is not None
        inside = ["nsenter", f"--target={self.process.pid}", "--mount", "--net", "--root", "--wd=/", *self._as_user()]
        child = await asyncio.create_subprocess_exec(
            *inside, *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        return await child.wait()

    async def _spawn(self) -> ChildProcess:
        shell = ["/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-euc", self._script()]
        return await ChildProcess.spawn(self.name, self.lab.inside(self.host, shell), log_path=self.log_path)

    def _is_inside(self, pid: int) -> bool:
        """Whether the process has its own root already."""
        return Path(f"/proc/{pid}/root/{_MARK}").exists()

    def _command(self) -> list[str]:
        entrypoint = self.service.get("entrypoint") or _entrypoint_of_the_image()
        return [*entrypoint, *self.service.get("command", ())]

    def _as_user(self) -> list[str]:
        user, group = self.service["user"].split(":")
        assert self.service["cap_drop"] == ["ALL"]
        rights = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
        variables = {"PATH": _PATH, "HOME": "/home/broker", **self.service.get("environment", {})}
        variables |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # of two processors; this checkout
        return [
            "/usr/bin/setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", *rights,
            "/usr/bin/env", "-i", *(f"{key}={value}" for key, value in variables.items()),
        ]  # fmt: skip

    def _script(self) -> str:
        root = self.directory / f"{self.name}.root"
        root.mkdir(exist_ok=True)
        lines = [f"mount -t tmpfs -o mode=755 tmpfs {root}", f"cd {root}", f"mkdir -p tmp proc dev home/broker {_MARK}"]
        lines += [f"ln -s usr/{name} {name}" for name in _MOUNTS_OF_ROOT]
        lines += ["mount --rbind /proc proc", "mount --rbind /dev dev", f"mount --bind {self._shared_memory()} dev/shm"]
        lines.append("cp -a /etc .")  # not mounted, since files may have volumes in it
        for mount in self.service.get("tmpfs", ()):
            target, options = mount.split(":")
            lines.append(f"mount -t tmpfs -o {options.removesuffix(',exec')} tmpfs .{target}")
        for path in _OF_THE_IMAGE:
            lines += _bind(path, path, read_only=True)
        for volume in self.service.get("volumes", ()):
            lines += _bind(str(self._source(volume)), volume["target"], read_only=volume.get("read_only", False))
        if self.service["read_only"]:
            lines.append("mount -o remount,ro .")
        command = [*self._as_user(), *self._command()]
        return "\n".join([*lines, f"exec chroot . {' '.join(map(shlex.quote, command))}"])

    def _shared_memory(self) -> Path:
        """Return what is this host's /dev/shm, or this container's own."""
        owner = self.lab.namespace(self.host) if self.service.get("ipc") == "host" else self.name
        path = self.directory / f"{owner}.shm"
        path.mkdir(exist_ok=True)
        path.chmod(0o1777)
        return path

    def _source(self, volume: dict[str, Any]) -> Path:
        if volume["type"] == "bind":
            return COMPOSE / volume["source"]
        path = self.directory / f"{self.name}.{volume['source']}"
        path.mkdir(exist_ok=True)
        os.chown(path, 10001, 10001)  # as the image's directory in its place is
        return path


def _bind(source: str, target: str, *, read_only: bool) -> list[str]:
    lines = [f"mkdir -p .{target}", f"mount --rbind {shlex.quote(source)} .{target}"]
    return [*lines, f"mount -o remount,bind,ro .{target}"] if read_only else lines


def _entrypoint_of_the_image() -> list[str]:
    found = re.search(r'^ENTRYPOINT \["(.*)"\]$', (COMPOSE / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found[1].split('", "')
