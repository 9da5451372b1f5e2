"""Where a program runs: at which address it listens, and what its command line begins with."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """An address, and the command that runs another one there, such as `ip netns exec NAME`; it has to keep the pid."""

    host: str
    prefix: tuple[str, ...] = ()


LOOPBACK = Place("127.0.0.1")


def free_port(host: str = LOOPBACK.host) -> int:
    """Return a port that nobody listens on at this moment."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
