"""How many hosts each published model takes, and what they give: the table in docs/operations.md."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

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
_MOST_HOSTS = 16
_NUM_CORES = 16
_HEADINGS = (
    "model",
    "each host has",
    "hosts, at least",
    "captions/s at 1 Gbit/s",
    "at 10 Gbit/s",
    "busiest link, Mbit/s",
    "limit",
    "captions/s with twice the hosts",
)


def sizing_table() -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    yield _line(_HEADINGS)
    yield "|" + "---|" * len(_HEADINGS)
    for model in map(sizes_of_shape, PUBLISHED):
        for name, memory_gb in _GPUS:
            device = gpu(name, memory_gb * 10**9)
            cells = _cells(model, device) or [f"more than {_MOST_HOSTS}", *("" for _ in _HEADINGS[3:])]
            yield _line(
                [model.name, name.removeprefix("NVIDIA ").removesuffix(" 80GB HBM3") + f", {memory_gb} GB", *cells]
            )


def _cells(model: ModelSizes, device: Device) -> list[str] | None:
    """Return what the fewest hosts that hold the model give, and twice as many; None for too many."""
    slow, fast = _RATES_MBIT
    for count in range(1, _MOST_HOSTS + 1):
        found, narrow = _plan(model, device, count, fast), _plan(model, device, count, slow)
        if found is not None and narrow is not None:
            forecast, twice = found.plan.forecast, _plan(model, device, 2 * count, fast)
            busiest = max(forecast.link_bytes.values(), default=0.0) * forecast.captions_per_s / _MBIT
            rates = [plan.plan.forecast.captions_per_s for plan in (narrow, found, twice) if plan is not None]
            rate, faster, more = (f"{each:.3g}" for each in rates)
            return [str(count), rate, faster, f"{busiest:,.0f}", forecast.limit, more]
    return None


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


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
