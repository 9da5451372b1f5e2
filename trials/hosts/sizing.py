"""How many hosts each published model takes, and what they give: the table in docs/operations.md."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.errors import ConfigurationError
from broker_pipeline.planning.devices import Device, gpu
from broker_pipeline.planning.fleet.fleet import Fleet, FleetPlan
from broker_pipeline.planning.fleet.search import choose_fleet_plan
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.network import Link, Network
from broker_pipeline.planning.workload import Workload
from trials.hosts.described import GOODPUT
from trials.hosts.named_model import PUBLISHED, sizes_of_shape

_MBIT = 1e6 / 8
_GPUS = (("NVIDIA GeForce RTX 4090", 24), ("NVIDIA L40S", 48), ("NVIDIA H100 80GB HBM3", 80))
_RATES_MBIT = (1_000, 10_000)
_MOST_HOSTS = 40
_NUM_CORES = 16
_HEADINGS = ("model", "a GPU of each host", "hosts", "captions/s at 1 Gbit/s", "limit", "at 10 Gbit/s", "limit")


def sizing_table() -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    yield _line(_HEADINGS)
    yield "|" + "---|" * len(_HEADINGS)
    for model in map(sizes_of_shape, PUBLISHED):
        for name, memory_gb in _GPUS:
            yield _line(_cells(model, gpu(name, memory_gb * 10**9), f"{name.removeprefix('NVIDIA ')}, {memory_gb} GB"))


def _cells(model: ModelSizes, device: Device, title: str) -> list[str]:
    for count in range(1, _MOST_HOSTS + 1):
        plans = [_plan(model, device, count, rate) for rate in _RATES_MBIT]
        if all(plans):
            shown = [cell for plan in plans if plan for cell in _shown(plan)]
            return [model.name, title, str(count), *shown]
    return [model.name, title, f"more than {_MOST_HOSTS}", "", "", "", ""]


def _shown(found: FleetPlan) -> tuple[str, str]:
    forecast = found.plan.forecast
    return f"{forecast.captions_per_s:.3g}", forecast.limit.partition(" from ")[0]


def _plan(model: ModelSizes, device: Device, count: int, rate_mbit: float) -> FleetPlan | None:
    network = Network(
        names=tuple(f"gpu-{number}" for number in range(count)),
        num_cores=(_NUM_CORES,) * count,
        default=Link(latency_s=0.0005, bytes_per_s=GOODPUT * rate_mbit * _MBIT),
        links={},
        ports=dict.fromkeys(range(count), GOODPUT * rate_mbit * _MBIT),
    )
    try:
        return choose_fleet_plan(model, Fleet(devices=((device,),) * count, network=network), Workload())
    except ConfigurationError:
        return None


def _line(cells: Iterator[str] | tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
