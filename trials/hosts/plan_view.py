"""A plan for several hosts, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from broker_pipeline.planning.fleet.fleet import FleetPlan, Slot
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.site import weight_bytes
from broker_pipeline.planning.workload import Workload
from broker_pipeline.tools.fitting_table import FittingTable
from trials.hosts.described import DescribedHosts

_GB, _MBIT = 1e9, 1e6 / 8
_HEADINGS = ("host", "device", "runs", "weights, GB", "KV, GB")


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan beside what it was made of."""

    model: ModelSizes
    described: DescribedHosts
    found: FleetPlan
    workload: Workload

    def print(self, console: Console) -> None:
        """Print what runs where, what each link carries, and what is predicted."""
        console.print(FittingTable(_HEADINGS, list(self._rows())))
        if links := list(self._links()):
            console.print(FittingTable(("link", "needs, Mbit/s", "has, Mbit/s"), links))
        for line in self._summary():
            console.print(line, markup=False, soft_wrap=True)

    def _rows(self) -> Iterator[tuple[str, ...]]:
        network = self.found.fleet.network
        for host, name in enumerate(network.names):
            services = {"broker": network.broker, "gateway and conductor": network.gateway}
            if here := [service for service, at in services.items() if at == host]:
                yield name, "", ", ".join(here), "", ""
            for slot in self.found.fleet.slots([host]):
                device = self.found.fleet.device(slot)
                known = f"{self.described.names[host][slot.device]}: {device.name}, {device.memory_bytes / _GB:.3g} GB"
                yield name, known, *self._work(slot)

    def _work(self, slot: Slot) -> tuple[str, str, str]:
        """Return what a device does, and what that takes of its memory."""
        model, layout = self.model, self.found.plan.layout
        if slot not in self.found.slots:
            return "nothing: the rest is faster without it", "", ""
        number = self.found.slots.index(slot)
        if number >= len(layout.stages):
            return f"vision-{number - len(layout.stages)}", f"{model.tower_bytes / _GB:.1f}", ""
        blocks, has_vision = layout.stages[number], number in layout.vision_stages
        weights = weight_bytes(model, blocks) + has_vision * model.tower_bytes
        tokens = self.found.sessions_on(number) * self.workload.num_session_tokens
        what = f"stage-{number}, blocks {blocks.start}:{blocks.stop}" + ", vision" * has_vision
        return what, f"{weights / _GB:.1f}", f"{tokens * len(blocks) * model.kv_bytes / _GB:.1f}"

    def _links(self) -> Iterator[tuple[str, str, str]]:
        network, forecast = self.found.fleet.network, self.found.plan.forecast
        for (sender, receiver), num_bytes in sorted(forecast.link_bytes.items()):
            needs = num_bytes * forecast.captions_per_s / _MBIT
            has = network.link(sender, receiver).bytes_per_s / _MBIT
            yield f"{network.names[sender]} to {network.names[receiver]}", f"{needs:,.1f}", f"{has:,.0f}"

    def _summary(self) -> Iterator[str]:
        plan = self.found.plan
        forecast = plan.forecast
        guess = "; estimated, not every device was measured" if forecast.is_estimated else ""
        yield (
            f"{self.model.name}, {plan.layout}: predicted {forecast.captions_per_s:.3g} captions/s of "
            f"{self.workload.num_output_tokens} tokens with {forecast.num_sessions:,} sessions (room for "
            f"{forecast.room_sessions:,}); limit: {forecast.limit}{guess}"
        )
        if plan.num_conductors > 1 or plan.num_gateways > 1:
            yield f"takes {plan.num_conductors} conductors and {plan.num_gateways} processes of the gateway"
