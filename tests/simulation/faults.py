"""What goes wrong in a simulation, to whom, when and for how long: drawn from the seed, and done to the world.

kill     SIGKILL; another instance starts after the time
drain    SIGTERM to a conductor; another instance starts after the time, or once it has ended
stop     SIGSTOP, and SIGCONT after the time
cut      nothing gets through, in either direction; connections are given up when that lasts
slow     a worker's steps, or every message, take many times as long
hang     a stage computes nothing, and goes on saying that it lives
lose     some microbatches never arrive at a stage
restart  NATS or Redis is killed and comes back after the time; NATS may have forgotten which jobs are out
power    the same, and the last second that Redis wrote is gone
mute     Redis does what it is told, and often does not get to say so
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "drain", "stop", "cut", "slow", "hang", "lose", "restart", "power", "mute"]

_KINDS: dict[str, tuple[Kind, ...]] = {
    "conductor": ("kill", "drain", "stop", "cut"),
    "stage": ("kill", "stop", "cut", "slow", "hang", "lose"),
    "vision": ("kill", "stop", "cut", "slow"),
    "nats": ("restart", "slow"),
    "redis": ("restart", "power", "mute"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    kind: Kind
    target: str
    for_s: float
    detail: float
    """From 0 to 1: how bad it is, in whatever way its kind can be."""

    @property
    def synced_s(self) -> float:
        """When a Redis that loses power last wrote to its disk."""
        return max(0.0, self.at_s - self.detail)

    @property
    def ends_s(self) -> float:
        return self.at_s + self.for_s

    def __str__(self) -> str:
        return f"{self.at_s:.3f} s  {self.kind} {self.target} for {self.for_s:.3f} s ({self.detail:.2f})"


def draw_fault(chance: random.Random, roles: dict[str, str], until_s: float) -> Fault:
    """Draw one for any of the components, whose roles are given by name."""
    target = chance.choice(list(roles))
    for_s = chance.choice((0.05, 0.5, 2.0, 6.0)) * chance.uniform(0.2, 1.8)
    kind = chance.choice(_KINDS[roles[target]])
    return Fault(chance.uniform(0.0, until_s), kind, target, for_s, chance.random())
