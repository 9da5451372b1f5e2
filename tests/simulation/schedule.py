"""What a seed stands for: a pipeline, jobs, and faults."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.simulation.faults import Fault, draw_faults

_LAYOUTS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, 6),),
    ((0, 3), (3, 6)),
    ((0, 2), (2, 4), (4, 6)),
    ((0, 6), (0, 6)),
    ((0, 3), (3, 6), (3, 6)),
    ((0, 2), (2, 6), (0, 6)),
    ((0, 6), (0, 6), (0, 6)),
)
_JOBS_S = 0.6
_FAULTS_S = 1.0
_EVERY_SECOND = 0.5
_SHARED = 0.7
"""Of those pipelines whose stages have the whole model each."""
_SEVERAL = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    at_s: float
    num_prompt: int
    max_tokens: int
    is_poison: bool = False
    """Whether every computation that it takes part in fails."""
    cancelled_at_s: float | None = None
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Schedule:
    seed: int
    stages: tuple[tuple[int, int], ...]
    """Blocks of each."""
    has_shares: bool
    """Whether each stage is a share of its own, for one conductor at a time."""
    kv: int
    step_s: float
    num_vision: int
    num_conductors: int
    jobs: tuple[Job, ...]
    loses_second: bool
    """Whether Redis writes every second, and so loses that when its host loses power; else it writes always."""
    faults: tuple[Fault, ...]
    num_drafts: int = 0
    """Tokens that conductors draft for a session."""

    @property
    def quiet_from_s(self) -> float:
        """When the last fault is over and the last job is there."""
        return max(
            (0.0, *(job.cancelled_at_s or job.at_s for job in self.jobs), *(fault.ends_s for fault in self.faults))
        )

    @property
    def may_fail(self) -> bool:
        """Whether a worker is sick while something ails all others that can do the same."""
        ailing = {fault.target for fault in self.faults}
        return any(_others(fault.target, self) <= ailing for fault in self.faults if fault.kind == "sick")

    @property
    def roles(self) -> dict[str, str]:
        return _roles(len(self.stages), self.num_vision, self.num_conductors)


def draw(seed: int) -> Schedule:
    """Return the schedule of a seed."""
    chance = random.Random(seed)
    stages = chance.choice(_LAYOUTS)
    has_shares = set(stages) == {(0, 6)} and chance.random() < _SHARED
    num_vision, num_conductors = chance.choice((1, 1, 2)), chance.randint(1, 2)
    roles = _roles(len(stages), num_vision, num_conductors)
    jobs = tuple(_draw_job(chance) for _ in range(chance.randint(1, 4)))
    num_faults = chance.choice((0, 1, 2, 2, 3, 4))
    faults = draw_faults(chance, roles, num_faults, _FAULTS_S)
    schedule = Schedule(
        seed=seed,
        stages=stages,
        has_shares=has_shares,
        kv=chance.choice((80, 160, 1000)),
        step_s=chance.choice((0.002, 0.02, 0.06)),
        num_vision=num_vision,
        num_conductors=num_conductors,
        jobs=jobs,
        loses_second=chance.random() < _EVERY_SECOND,
        faults=(),
    )
    schedule = dataclasses.replace(schedule, jobs=tuple(_of_tenants(jobs, 3 if chance.random() < _SEVERAL else 1)))
    can_be = [fault for fault in faults if fault.kind != "sick" or _others(fault.target, schedule)]
    return dataclasses.replace(schedule, faults=tuple(can_be), num_drafts=chance.choice((0, 1, 3)))


def _draw_job(chance: random.Random) -> Job:
    at_s = chance.uniform(0, _JOBS_S)
    is_poison, is_cancelled = chance.random() < 0.05, chance.random() < 0.05
    cancelled_at_s = at_s + chance.uniform(0.02, 0.8) if is_cancelled else None
    return Job(at_s, chance.randint(1, 60), chance.randint(1, 6), is_poison, cancelled_at_s)


def _of_tenants(jobs: tuple[Job, ...], num_tenants: int) -> Iterator[Job]:
    """Yield jobs of so many tenants in turn: prompts of one begin alike, and copy from each other."""
    tenants = ("", "a", "b")[:num_tenants]
    for number, job in enumerate(jobs):
        yield dataclasses.replace(job, tenant=tenants[number % num_tenants])


def _roles(num_stages: int, num_vision: int, num_conductors: int) -> dict[str, str]:
    return {
        **{f"conductor-{number}": "conductor" for number in range(num_conductors)},
        **{f"stage-{number}": "stage" for number in range(num_stages)},
        **{f"vision-{number}": "vision" for number in range(num_vision)},
        "gateway": "gateway",
        "nats": "nats",
        "redis": "redis",
    }


def _others(worker: str, schedule: Schedule) -> set[str]:
    """Return who can do what a worker does, without it."""
    role, _, number = worker.partition("-")
    if role == "vision":
        able = list(range(schedule.num_vision))
    else:
        able = [index for index, blocks in enumerate(schedule.stages) if blocks == schedule.stages[int(number)]]
    return {f"{role}-{index}" for index in able} - {worker}
