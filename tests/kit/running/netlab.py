"""Hosts as network namespaces around a hub, joined by links of a given rate and delay. Needs root and /dev/net/tun.

    hub 10.78.1.1 ══ link ══ 10.78.1.2 h1        a link: two TUN devices, and a process that carries packets from one
        10.78.2.1 ══ link ══ 10.78.2.2 h2        to the other at the rate, after the delay; what finds its queue full
                                                 is dropped

Not every kernel has netem or veth, so the links are of our own: about 2 Gbit/s at most.

    python -m tests.kit.running.netlab --hosts 2 --rate-mbit 1000 --delay-ms 1 -- COMMAND...

runs a command in the hub; in there, `ip netns exec $NETLAB-h1 ...` runs something on a host.
"""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import click

MTU = 9000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 1, 0x1000
_CLONE_NEWNET = 0x40000000
_NAMESPACES = Path("/var/run/netns")
_IP = shutil.which("ip") or "ip"
_NICENESS = -15
"""A wire waits for no processor."""
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class LinkShape:
    """How good links are, one way."""

    rate_mbit: float = 1000.0
    delay_s: float = 0.001
    queue_s: float = 0.008
    """How long what waits for a link may take: 1 MB at 1 Gbit/s, about what a switch has."""

    @property
    def queue_bytes(self) -> float:
        """Return what may wait, in bytes."""
        return self.queue_s * self.rate_mbit * 1e6 / 8

    def seconds_of(self, num_bytes: int) -> float:
        """Return how long a packet occupies the link."""
        return num_bytes * 8 / (self.rate_mbit * 1e6)

    @property
    def goodput(self) -> float:
        """Bytes per second that TCP can carry: packets less 20 bytes of IP and 32 of TCP with timestamps."""
        return self.rate_mbit * 1e6 / 8 * (MTU - 52) / MTU


@dataclass(frozen=True, slots=True)
class Netlab:
    """Hosts that are up."""

    name: str
    num_hosts: int

    def inside(self, host: int, command: Sequence[str]) -> list[str]:
        """Return the command line that runs `command` on a host, numbered from 1; 0 is the hub."""
        return [_IP, "netns", "exec", self.namespace(host), *command]

    def address(self, host: int) -> str:
        """Return the address of a host; that of the hub is one that all hosts reach."""
        return f"10.78.{host}.2" if host else "10.78.1.1"

    @contextmanager
    def entered(self, host: int) -> Iterator[None]:
        """Have this thread, and what it starts, on a host while the context is open."""
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            with (_NAMESPACES / self.namespace(host)).open("rb") as there:
                _set_namespace(there.fileno())
            try:
                yield
            finally:
                _set_namespace(home.fileno())

    def namespace(self, host: int) -> str:
        """Return the name of a host's namespace."""
        return f"{self.name}-h{host}" if host else f"{self.name}-hub"


def is_possible() -> bool:
    """Whether this machine and user can have one."""
    return os.geteuid() == 0 and Path("/dev/net/tun").exists() and Path(_IP).is_absolute()


@contextmanager
def netlab(num_hosts: int, shape: LinkShape) -> Iterator[Netlab]:
    """Have hosts while the context is open, which SIGTERM ends as Ctrl-C does; removes those that a killed one left."""
    lab = Netlab(f"bp{os.getpid()}", num_hosts)
    _remove_left_over()
    with ExitStack() as stack:
        before = signal.signal(signal.SIGTERM, _interrupt)
        stack.callback(signal.signal, signal.SIGTERM, before)
        for host in range(num_hosts + 1):
            _ip("netns", "add", lab.namespace(host))
            stack.callback(_ip, "netns", "del", lab.namespace(host))
            _ip("-n", lab.namespace(host), "link", "set", "lo", "up")
        subprocess.run(lab.inside(0, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]), check=True)
        for host in range(1, num_hosts + 1):
            stack.enter_context(_link(lab, host, shape))
        yield lab


def _interrupt(*_: object) -> None:
    """End in order. Not by SIGINT, which is ignored in what a shell has started in the background."""
    raise KeyboardInterrupt


@contextmanager
def _link(lab: Netlab, host: int, shape: LinkShape) -> Iterator[None]:
    here, there = _SPAWN.Pipe()
    ends = ((lab.namespace(0), f"h{host}"), (lab.namespace(host), "e0"))
    process = _SPAWN.Process(target=_carry, args=(ends, shape, there), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()  # the devices are there
        for (namespace, device), address in zip(ends, (f"10.78.{host}.1/24", f"10.78.{host}.2/24"), strict=True):
            _ip("-n", namespace, "addr", "add", address, "dev", device)
            _ip("-n", namespace, "link", "set", device, "mtu", str(MTU), "up")
        _ip("-n", lab.namespace(host), "route", "add", "default", "via", f"10.78.{host}.1")
        yield
    finally:
        process.kill()
        process.join()


def _remove_left_over() -> None:
    """Remove namespaces of processes that are gone, this one's number included: their own processes ended with them."""
    for path in _NAMESPACES.glob("bp*-h*"):
        number = re.fullmatch(r"bp(\d+)-(hub|h\d+)", path.name)
        if number and (int(number[1]) == os.getpid() or not Path(f"/proc/{number[1]}").exists()):
            _ip("netns", "del", path.name)


def _ip(*arguments: str) -> None:
    subprocess.run([_IP, *arguments], check=True)


# --- the process of a link ---


class _Direction:
    """Packets from one device to the other."""

    def __init__(self, source: int, target: int, shape: LinkShape) -> None:
        self.source, self._target, self._shape = source, target, shape
        self._packets: deque[tuple[float, bytes]] = deque()
        self._num_bytes, self._most_bytes = 0, shape.queue_bytes + shape.delay_s * shape.rate_mbit * 1e6 / 8
        self._free_at = 0.0

    def read(self, now: float) -> None:
        """Queue what has come."""
        while True:
            try:
                packet = os.read(self.source, MTU + 64)
            except BlockingIOError:
                return
            if self._num_bytes + len(packet) <= self._most_bytes:
                self._free_at = max(self._free_at, now) + self._shape.seconds_of(len(packet))
                self._packets.append((self._free_at + self._shape.delay_s, packet))
                self._num_bytes += len(packet)

    def write(self, now: float) -> float | None:
        """Let go what is due; return when the next one will be."""
        while self._packets and self._packets[0][0] <= now:
            _, packet = self._packets.popleft()
            self._num_bytes -= len(packet)
            with suppress(OSError):  # the device is not up yet
                os.write(self._target, packet)
        return self._packets[0][0] if self._packets else None


def _carry(ends: Sequence[tuple[str, str]], shape: LinkShape, pipe: Connection) -> None:
    first, second = (_tun(namespace, device) for namespace, device in ends)
    directions = {first: _Direction(first, second, shape), second: _Direction(second, first, shape)}
    with suppress(OSError):  # where this may not be
        os.nice(_NICENESS)
    poll = select.epoll()
    for descriptor in directions:
        poll.register(descriptor, select.EPOLLIN)
    pipe.send(None)
    poll.register(pipe, select.EPOLLIN)
    timeout_s: float | None = None
    while True:
        for descriptor, _ in poll.poll(timeout_s):
            if descriptor == pipe.fileno():
                return  # whoever wanted the link is gone
            directions[descriptor].read(time.monotonic())
        due = [at for each in directions.values() if (at := each.write(time.monotonic())) is not None]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None


def _tun(namespace: str, device: str) -> int:
    """Return a TUN device of a namespace, in which this process does not stay."""
    with Path("/proc/thread-self/ns/net").open("rb") as home, (_NAMESPACES / namespace).open("rb") as other:
        _set_namespace(other.fileno())
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
        _set_namespace(home.fileno())
    return descriptor


def _set_namespace(descriptor: int) -> None:
    """Enter a network namespace; `os.setns` is there from Python 3.12 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--hosts", default=2, show_default=True)
@click.option("--rate-mbit", default=1000.0, show_default=True)
@click.option("--delay-ms", default=1.0, show_default=True)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(hosts: int, rate_mbit: float, delay_ms: float, command: tuple[str, ...]) -> None:
    """Run a command in the hub of some hosts."""
    with netlab(hosts, LinkShape(rate_mbit, delay_ms / 1e3)) as lab:
        done = subprocess.run(lab.inside(0, command), env={**os.environ, "NETLAB": lab.name}, check=False)
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
