"""What goes wrong in a simulation, to whom, when and for how long: drawn from the seed, and done to the world.

kill     SIGKILL; another instance starts after the time
drain    SIGTERM to a conductor; another instance starts after the time, or once it has ended
stop     SIGSTOP, and SIGCONT after the time
cut      nothing gets through, in either direction; connections are given up when that lasts
slow     a worker's steps, or every message, take many times as long
hang     a worker computes nothing, and goes on saying that it lives
sick     every computation of a worker fails; it is done only to one of several that can do the same
lose     some microbatches never arrive at a stage
leak     some of what a process sends or is sent never arrives, and nobody is told
restart  NATS or Redis is killed and comes back after the time; NATS may have forgotten which jobs are out
power    the same, and the last second that Redis wrote is gone where it writes every second
mute     Redis does what it is told, and often does not get to say so
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "drain", "stop", "cut", "slow", "hang", "sick", "lose", "leak", "restart", "power", "mute"]

_KINDS: dict[str, tuple[Kind, ...]] = {
    "conductor": ("kill", "drain", "stop", "cut", "leak"),
    "stage": ("kill", "stop", "cut", "slow", "hang", "sick", "lose", "leak"),
    "vision": ("kill", "stop", "cut", "slow", "hang", "sick", "leak"),
    "gateway": ("kill", "stop", "cut", "leak"),
    "nats": ("restart", "slow"),
    "redis": ("restart", "power", "mute", "stop", "slow"),
}


_TOGETHER = 0.4
"""Of faults after the first: how many come at the time of the one before, or right after it."""


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


def draw_faults(chance: random.Random, roles: dict[str, str], num: int, until_s: float) -> list[Fault]:
    """Draw faults of any of the components, whose roles are given by name; many of them come together with another."""
    faults: list[Fault] = []
    for _ in range(num):
        fault = _draw_fault(chance, roles, until_s)
        if faults and chance.random() < _TOGETHER:
            near_s = faults[-1].at_s + chance.choice((0.0, 0.002, 0.05)) * chance.random()
            fault = dataclasses.replace(fault, at_s=near_s)
        faults.append(fault)
    return sorted(faults, key=lambda fault: fault.at_s)


def _draw_fault(chance: random.Random, roles: dict[str, str], until_s: float) -> Fault:
    target = chance.choice(list(roles))
    for_s = chance.choice((0.03, 0.1, 0.3, 0.8, 2.0)) * chance.uniform(0.2, 1.8)
    kind = chance.choice(_KINDS[roles[target]])
    return Fault(chance.uniform(0.0, until_s), kind, target, for_s, chance.random())
