"""Hosts with cores of their own, which `probe` measures and `plan` is told of, as docs/operations.md says.

    front   gateway, conductor, NATS, Redis      every core
    left    what a plan says                     half of the cores
    right   the same                             the other half

They are network namespaces of one machine: memory is what one says that they have.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from broker_pipeline.tools.local.place import Place
from tests.kit.hosts.page import said_by
from tests.kit.running.netlab import Netlab
from trials.hosts.probe_file import HostProbe, read_probe, write_probe

HOSTS = ("front", "left", "right")
WORKERS = HOSTS[1:]
_PROBE = (sys.executable, "-m", "broker_pipeline", "probe", "--name")


@dataclass(frozen=True, slots=True)
class ProbedHosts:
    """Hosts that are up, and what is measured on them."""

    lab: Netlab
    shape: str
    picture_side: int
    memory_gb: float
    """That each host of workers is said to have."""
    directory: Path
    """For the files of `probe`, and the host file."""

    def cores(self, name: str) -> list[int]:
        """Return the cores that a host may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cores[WORKERS.index(name) :: len(WORKERS)] if name in WORKERS else cores

    def place(self, name: str) -> Place:
        """Return where programs of a host run."""
        number = HOSTS.index(name) + 1
        pinned = ["taskset", "-c", ",".join(map(str, self.cores(name)))]
        return Place(self.lab.address(number), tuple(self.lab.inside(number, pinned)))

    async def measure(self) -> dict[str, list[HostProbe]]:
        """Measure each host alone, with its links, and then the devices of all at once, since they share a memory.

        Returns the probes of both; the files have links of the first and devices of the second.
        """
        async with AsyncExitStack() as stack:
            peers = {name: await stack.enter_async_context(self._listening(name)) for name in HOSTS}
            alone = [await self._probe(name, [peers[each] for each in HOSTS if each != name]) for name in WORKERS]
        together = await asyncio.gather(*(self._probe(name, ()) for name in WORKERS))
        for first, second in zip(alone, together, strict=True):
            said = int(self.memory_gb * 1e9)
            devices = tuple(msgspec.structs.replace(each, free_bytes=said) for each in second.devices)
            whole = msgspec.structs.replace(second, links=first.links, devices=devices)
            write_probe(self.directory / f"{whole.host}.json", whole)
        return {"alone": alone, "together": together}

    def write_hosts_file(self) -> Path:
        """Describe the hosts for `plan`."""
        does = {name: f'probe = "{name}.json"' for name in WORKERS}
        does["front"] = f'roles = ["broker", "gateway"]\ncores = {len(self.cores("front"))}'
        tables = (f'[[hosts]]\nname = "{name}"\naddress = "{self.place(name).host}"\n{does[name]}\n' for name in HOSTS)
        path = self.directory / "hosts.toml"
        path.write_text("".join(tables))
        return path

    def carried(self) -> dict[tuple[str, str], int]:
        """Return the bytes that each host of workers has `sent` and `received`."""
        found = {}
        for name in WORKERS:
            with self.lab.entered(HOSTS.index(name) + 1):
                port = psutil.net_io_counters(pernic=True, nowrap=False)["e0"]  # every host has one of this name
            found |= {(name, "sent"): port.bytes_sent, (name, "received"): port.bytes_recv}
        return found

    async def _probe(self, name: str, peers: Sequence[str]) -> HostProbe:
        path = self.directory / f"{name}.json"
        flags = ["--shape", self.shape, "--picture-side", str(self.picture_side), "--out", str(path)]
        flags += [word for peer in peers for word in ("--peer", peer)]
        await said_by([*self.place(name).prefix, *_PROBE, name, "--device", "cpu", *flags], cwd=self.directory)
        return read_probe(path)

    @asynccontextmanager
    async def _listening(self, name: str) -> AsyncIterator[str]:
        """Have a host answer the others; yields what they are to say as `--peer`."""
        place = self.place(name)
        command = [*place.prefix, *_PROBE, name, "--listen", place.host]
        child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert child.stdout is not None
            said = (await child.stdout.readline()).decode()
            assert said, f"{name} does not listen"
            yield said.split()[-1]
        finally:
            child.send_signal(signal.SIGTERM)
            await child.wait()
