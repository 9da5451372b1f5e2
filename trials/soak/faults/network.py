"""A network of its own for every component, to be cut off and joined again.

    hub (this process, a namespace without a name): bridge 10.213.0.1
      ├── veth ═══ namespace of stage-0   10.213.0.2
      ├── veth ═══ namespace of stage-1   10.213.0.3     cut: the hub's end of a veth goes down; packets vanish,
      └── veth ═══ namespace of nats      10.213.0.4          connections neither end nor carry anything

While the network is open, this process and the children that it spawns live in the hub, out of reach of the machine's
own networks; so the addresses cannot clash with any. Namespaces of components have names with this process's id. The
hub has none: when this process dies in whatever way, the hub and all veths go with it, and the names that are left are
swept by the next network that is opened.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from broker_pipeline.errors import ConfigurationError, PipelineError
from broker_pipeline.tools.local.place import Place

PREFIX = "bpsoak"
_NAME = re.compile(rf"{PREFIX}-(\d+)-\S+")
_BRIDGE = "hub"
_SUBNET = "10.213.0"
_MAX_COMPONENTS = 250
_CLONE_NEWNET = 0x40000000


class NetworkError(PipelineError):
    """The kernel, or `ip`, refused something that a network needs."""

    code = "network"


def why_no_network() -> str | None:
    """Return why this process cannot make networks, None when it can."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` here; install iproute2"
    return None


def require_network() -> None:
    """Raise `ConfigurationError` when this process cannot make networks."""
    if (reason := why_no_network()) is not None:
        raise ConfigurationError(
            f"partition faults cannot be made: {reason}. Run as root on Linux with iproute2, "
            "or leave them out: --faults kill,stop,restart",
            field="faults",
        )


class Network:
    """Namespaces for components, around a hub that this process moves into. Open it from the main thread, early."""

    def __init__(self, components: Sequence[str]) -> None:
        """Prepare a namespace for each of `components`, by name."""
        if len(components) > _MAX_COMPONENTS:
            raise ConfigurationError(f"{len(components)} components; a network has room for {_MAX_COMPONENTS}")
        self._numbers = {name: number for number, name in enumerate(components, start=2)}
        self._home: int | None = None

    async def __aenter__(self) -> Self:
        require_network()
        await sweep()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET), "unshare")
            await self._build()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    def place(self, component: str) -> Place:
        """Return the component's address, and how to run a program in its namespace."""
        return Place(self._address(component), (_ip(), "netns", "exec", self._namespace(component)))

    async def cut(self, component: str) -> None:
        """Cut a component off: nothing reaches it, nothing comes from it, and nobody is told."""
        await self._link(component, "down")

    async def mend(self, component: str) -> None:
        """Join a component again."""
        await self._link(component, "up")

    async def _link(self, component: str, state: str) -> None:
        await _run("link", "set", self._veth(component), state)

    def _address(self, component: str) -> str:
        return f"{_SUBNET}.{self._numbers[component]}"

    def _namespace(self, component: str) -> str:
        return f"{PREFIX}-{os.getpid()}-{component}"

    def _veth(self, component: str) -> str:
        return f"veth{self._numbers[component]}"

    async def _build(self) -> None:
        await _run("link", "set", "lo", "up")
        # A bridge forwards at once without a spanning tree, and needs no address learning to be slow about.
        await _run("link", "add", _BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        await _run("addr", "add", f"{_SUBNET}.1/24", "dev", _BRIDGE)
        await _run("link", "set", _BRIDGE, "up")
        for component in self._numbers:
            await self._join(component)

    async def _join(self, component: str) -> None:
        namespace, veth = self._namespace(component), self._veth(component)
        await _run("netns", "add", namespace)
        await _run("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        await _run("link", "set", veth, "master", _BRIDGE, "up")
        await _run("-n", namespace, "link", "set", "lo", "up")
        await _run("-n", namespace, "addr", "add", f"{self._address(component)}/24", "dev", "eth0")
        await _run("-n", namespace, "link", "set", "eth0", "up")

    async def _close(self) -> None:
        """Delete the namespaces and go home; the hub ends with the last process in it."""
        if self._home is None:
            return
        try:
            mine = {self._namespace(component) for component in self._numbers}
            for namespace in sorted(mine & set(await _namespaces())):
                await _run("netns", "delete", namespace)
        finally:
            _check(ctypes.CDLL(None, use_errno=True).setns(self._home, _CLONE_NEWNET), "setns")
            os.close(self._home)
            self._home = None


async def sweep() -> list[str]:
    """Delete the namespaces of networks whose process has died; return their names."""
    dead = [name for name in await _namespaces() if (found := _NAME.fullmatch(name)) and not _is_alive(found.group(1))]
    for name in dead:
        await _run("netns", "delete", name)
    return dead


async def _namespaces() -> list[str]:
    # A line is `NAME`, or `NAME (id: 3)`.
    return [line.split()[0] for line in (await _run("netns", "list")).splitlines() if line.strip()]


def _is_alive(pid: str) -> bool:
    return Path(f"/proc/{pid}").exists()


async def _run(*arguments: str) -> str:
    """Run `ip`; raises `NetworkError` with what it said."""
    process = await asyncio.create_subprocess_exec(
        _ip(),
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaint = await process.communicate()
    if process.returncode != 0:
        raise NetworkError(f"ip {' '.join(arguments)}: {complaint.decode(errors='replace').strip()}")
    return said.decode()


def _ip() -> str:
    found = shutil.which("ip")
    if found is None:
        raise NetworkError("there is no `ip` here; install iproute2")
    return str(Path(found).absolute())


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise NetworkError(f"{call}: {os.strerror(number)}")
