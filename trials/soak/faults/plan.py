"""Which fault comes when, to whom: a pure function of a seed.

Faults are drawn from an urn that holds every possible pair of target and kind once; when it is empty, it is filled
again. So a run of as many faults as there are pairs has met every component in every way, whatever the seed.

    urn: (stage-0, kill) (stage-0, stop) … (redis, garbled)  ──shuffled──►  pause, fault, pause, fault, fault, pause, …
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.tools.local.plan import role_of

FaultKind: TypeAlias = Literal[
    "kill", "stop", "partition", "restart", "slow", "sick", "clock", "shm", "consumer", "stream", "garbled", "strange"
]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)

_SERVICES = frozenset({"gateway", "conductor", "vision", "stage"})
_ROLES: Mapping[FaultKind, frozenset[str]] = {
    "sick": frozenset({"stage", "vision"}),
    "clock": _SERVICES,
    "shm": frozenset({"stage"}),
    "consumer": frozenset({"nats"}),
    "stream": frozenset({"nats"}),
    "garbled": frozenset({"redis"}),
    "strange": frozenset({"redis"}),
}
"""Who can be hit by a kind; by the others, everybody."""

# How long a stopped or cut-off component stays away, by role: longer than it takes the others to notice. A conductor
# is noticed when its lease ends, after five seconds; a worker when its heartbeats do, after two or three.
_AWAY_S: Mapping[str, tuple[float, float]] = {
    "conductor": (6.0, 9.0),
    "stage": (4.0, 9.0),
    "vision": (4.0, 9.0),
    "gateway": (2.0, 6.0),
    "nats": (2.0, 6.0),
    "redis": (2.0, 6.0),
}
_LASTING = frozenset({"stop", "partition", "slow", "sick", "clock", "shm"})
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.4, 1.6
"""Bounds of a pause, as shares of the mean one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `pause_s` seconds after the last one began, `target` is hit.

    `away_s` is for how long it lasts; 0 for kinds that end by themselves. `detail`, from 0 to 1, chooses within a kind.
    """

    number: int
    pause_s: float
    target: str
    kind: FaultKind
    away_s: float = 0.0
    detail: float = 0.0


def parse_kinds(text: str) -> tuple[FaultKind, ...]:
    """Read `kill,stop`, or `all`; raises `ConfigurationError` for what is no kind of fault, and for a repeat."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == ["all"]:
        return FAULT_KINDS
    unknown = [word for word in words if word not in FAULT_KINDS]
    if unknown:
        raise ConfigurationError(
            f"--faults {text}: {unknown[0]} is none of {', '.join(FAULT_KINDS)}; separate several by commas",
            field="faults",
        )
    if len(set(words)) != len(words):
        raise ConfigurationError(f"--faults {text} names a kind twice", field="faults")
    return cast("tuple[FaultKind, ...]", tuple(words))


def plan_faults(
    seed: int,
    targets: Iterable[str],
    kinds: Iterable[FaultKind],
    *,
    every_s: float,
    together: float = 0.0,
    spared: Collection[str] = (),
) -> Iterator[Fault]:
    """Yield faults without end, `every_s` seconds apart on average; nothing when there is no target or no kind.

    `together` is the share of faults that come with the one before, `spared` those that nobody could stand in for:
    they are not made sick.
    """
    chance = random.Random(f"faults-{seed}")
    urn = [(target, kind) for target in targets for kind in kinds if _can_be(target, kind, spared)]
    number = 0
    while urn:
        for target, kind in _shuffled(urn, chance):
            number += 1
            pause_s = every_s * chance.uniform(_SHORTEST_PAUSE, _LONGEST_PAUSE) / (1 - together)
            if together and number > 1 and chance.random() < together:
                pause_s = 0.0
            yield Fault(number, pause_s, target, kind, _away_s(target, kind, chance), chance.random())


def _can_be(target: str, kind: FaultKind, spared: Collection[str]) -> bool:
    if kind == "sick" and target in spared:
        return False
    return kind not in _ROLES or role_of(target) in _ROLES[kind]


def _away_s(target: str, kind: FaultKind, chance: random.Random) -> float:
    drawn = chance.uniform(*_AWAY_S[role_of(target)])
    return drawn if kind in _LASTING else 0.0


def _shuffled(urn: Sequence[tuple[str, FaultKind]], chance: random.Random) -> list[tuple[str, FaultKind]]:
    return chance.sample(urn, len(urn))
