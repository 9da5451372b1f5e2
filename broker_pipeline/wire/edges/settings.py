"""How a process uses edges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from broker_pipeline.messages.edges import EdgeKind
from broker_pipeline.process.host_room import BASE_FILES, SHM, Needs
from broker_pipeline.wire.edges.shm.ring import OnRing

EdgeChoice = Literal["auto", "nats", "shm", "tcp"]
"""Which edges are tried: every kind there is, none, or one."""

_FILES_PER_EDGE = 4
_KINDS: dict[EdgeChoice, tuple[EdgeKind, ...]] = {
    "auto": ("shm", "tcp"),
    "nats": (),
    "shm": ("shm",),
    "tcp": ("tcp",),
}


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """Which edges a process offers and uses, and what they may take. Whatever is chosen, NATS remains behind it."""

    choice: EdgeChoice = "auto"
    ring_bytes: int = 64 * 2**20
    """Shared memory for each process that sends to this one."""
    max_edges: int = 16
    """Processes that may send to this one, by edges of each kind."""
    on_ring: OnRing | None = None
    shm_directory: Path | None = None
    """Where sockets of shared memory are; None for the default."""

    host: str | None = None
    """Address at which other hosts reach this process; None: the one from which it reaches NATS."""
    ports: Sequence[int] = (0,)
    """Ports of which the first that is free is listened on; 0 is any."""
    is_encrypted: bool = True
    """Whether `tcp` edges are encrypted; both ends have to agree."""

    @property
    def kinds(self) -> tuple[EdgeKind, ...]:
        """The kinds in the order in which they are tried."""
        return _KINDS[self.choice]

    @property
    def needs(self) -> Needs:
        """What a worker needs of its host: an edge, of as many as come in and go out, is some connections."""
        num_edges = 2 * self.max_edges if self.kinds else 0
        return Needs(BASE_FILES + num_edges * _FILES_PER_EDGE, (SHM,) if "shm" in self.kinds else ())
