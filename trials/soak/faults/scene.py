"""Where faults can be done: a running pipeline, and what its programs were started with so that they can be ill.

command of a service:  ip netns exec NAME   env LD_PRELOAD=…   python -m …sick_worker FILE   python -m broker_pipeline
                       partition            clock              sick
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.place import LOOPBACK, Place
from broker_pipeline.tools.local.plan import LocalSettings, role_of
from trials.soak.faults import clocks, sickness
from trials.soak.faults.network import Network
from trials.soak.faults.plan import FaultKind


@dataclass(frozen=True, slots=True)
class Scene:
    """A cluster, and the means to disturb it."""

    cluster: LocalCluster
    network: Network | None
    directory: Path

    def others(self, name: str) -> frozenset[str]:
        """Return who can do what a component does, without it."""
        return others(self.cluster.settings, name)


def others(settings: LocalSettings, name: str) -> frozenset[str]:
    """Return the components that can do what one does, without it."""
    role, _, number = name.partition("-")
    if role == "stage":
        shares = settings.shares or ("",) * len(settings.stages)
        tasks = list(zip(settings.stages, shares, strict=True))
        able = [f"stage-{index}" for index, task in enumerate(tasks) if task == tasks[int(number)]]
    else:
        able = [each for each in settings.services if role_of(each) == role]
    return frozenset(able) - {name}


def sickness_path(directory: Path, name: str) -> Path:
    """Return the file that has a worker be sick."""
    return directory / f"{name}.sickness"


def clock_path(directory: Path, name: str) -> Path:
    """Return the file that sets a service's clock."""
    return directory / f"{name}.clock"


def places_for(
    names: Collection[str], kinds: Collection[FaultKind], network: Network | None, directory: Path
) -> Mapping[str, Place]:
    """Return where, and with what in front, each component runs so that these kinds can be done to it."""
    directory.mkdir(parents=True, exist_ok=True)
    return {name: _place(name, kinds, network, directory) for name in names}


def _place(name: str, kinds: Collection[FaultKind], network: Network | None, directory: Path) -> Place:
    place = LOOPBACK if network is None else network.place(name)
    prefix = list(place.prefix)
    if "clock" in kinds and role_of(name) not in ("nats", "redis"):
        path = clock_path(directory, name)
        clocks.set_clock(path, 0)
        prefix += ["env", *(f"{key}={value}" for key, value in clocks.environment(path).items())]
    if "sick" in kinds and role_of(name) in ("stage", "vision"):
        prefix += sickness.command(sickness_path(directory, name))
    return Place(place.host, tuple(prefix))
