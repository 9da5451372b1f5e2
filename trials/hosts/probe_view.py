"""What was measured on a host, as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console

from broker_pipeline.tools.fitting_table import FittingTable
from trials.bench.spread import shown
from trials.hosts.probe_file import HostProbe

_LAYERS = ("device", "free memory, GB", "a layer of", "sessions", "tokens", "ms")
_LINKS = ("peer", "NATS, 8 KiB and an answer, ms", "NATS, Mbit/s", "edge, ms", "edge, Mbit/s")


def print_probe(console: Console, probe: HostProbe) -> None:
    """Print layer times, the tower, and links."""
    console.print(FittingTable(_LAYERS, list(_layers(probe))))
    for each in probe.devices:
        tower = f"{each.device}: {each.name}; a picture takes {shown(each.picture_s * 1e3)} ms of the tower"
        console.print(tower, markup=False, soft_wrap=True)
    if probe.links:
        console.print(FittingTable(_LINKS, list(_links(probe))))
    console.print(f"{probe.host}, {probe.shape}; {probe.machine}", markup=False, soft_wrap=True)


def _layers(probe: HostProbe) -> Iterator[tuple[str, ...]]:
    for each in probe.devices:
        memory = f"{each.free_bytes / 1e9:.1f} of {each.total_bytes / 1e9:.1f}"
        for kind, steps in (("a decode step", each.decode), ("a prefill", each.prefill)):
            for step in steps:
                counts = f"{step.num_sessions:,}", f"{step.num_tokens:,}"
                yield each.device, memory, kind, *counts, shown(step.layer_s * 1e3)


def _links(probe: HostProbe) -> Iterator[tuple[str, ...]]:
    for link in probe.links:
        rates = (f"{rate * 8e-6:,.0f}" for rate in (link.nats_bytes_per_s, link.edge_bytes_per_s))
        trips = (shown(trip * 1e3) for trip in (link.nats_trip_s, link.edge_trip_s))
        yield link.peer, *(cell for pair in zip(trips, rates, strict=True) for cell in pair)
