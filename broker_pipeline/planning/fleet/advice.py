"""What would meet a target that a plan does not meet: faster links, or more hosts."""

from __future__ import annotations

import math
from dataclasses import replace

from broker_pipeline.planning.fleet.fleet import Fleet, FleetPlan
from broker_pipeline.planning.fleet.search import choose_fleet_plan
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.network import Link
from broker_pipeline.planning.workload import Workload

_MORE_HOSTS = (1, 2, 3, 4, 6, 8)
_FASTER_LINKS = (2, 4, 10)


def advise(model: ModelSizes, found: FleetPlan, workload: Workload, target: float) -> str:
    """Say what would give so many captions per second; the first thing that does, and the least of it."""
    fleet = found.fleet
    for factor in _FASTER_LINKS if _is_of_network(found.plan.forecast.limit) else ():
        if _rate(model, _with_faster_links(fleet, factor), workload) >= target:
            return f"links and ports {factor} times as fast would do"
    best = max(fleet.hosts_with_devices, key=lambda host: sum(each.flops_per_s for each in fleet.devices[host]))
    name = fleet.network.names[best]
    for count in _MORE_HOSTS:
        if _rate(model, fleet.with_more_like(best, count), workload) >= target:
            return f"{count} more host{'s' * (count > 1)} like {name} would do"
    most = _rate(model, fleet.with_more_like(best, _MORE_HOSTS[-1]), workload)
    return f"even {_MORE_HOSTS[-1]} more hosts like {name} would give {most:.3g}: see what limits them then"


def _rate(model: ModelSizes, fleet: Fleet, workload: Workload) -> float:
    return choose_fleet_plan(model, fleet, workload).plan.forecast.captions_per_s


def _is_of_network(limit: str) -> bool:
    return limit.startswith(("the link", "the port"))


def _with_faster_links(fleet: Fleet, factor: float) -> Fleet:
    def faster(link: Link) -> Link:
        return replace(link, bytes_per_s=link.bytes_per_s * factor)

    network = fleet.network
    more = replace(
        network,
        default=faster(network.default),
        links={pair: faster(link) for pair, link in network.links.items()},
        ports={host: rate * factor for host, rate in network.ports.items() if math.isfinite(rate)},
    )
    return replace(fleet, network=more)
