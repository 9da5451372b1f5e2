"""Hosts with their devices, and a plan that says which of them does what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from broker_pipeline.planning.devices import Device
from broker_pipeline.planning.network import Network
from broker_pipeline.planning.planner import Plan
from broker_pipeline.planning.site import Site


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """One device of one host: room for one worker."""

    host: int
    device: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What there is to run on. Hosts are numbered as in `network`."""

    devices: tuple[tuple[Device, ...], ...]
    """Of each host; none where a host has services only."""
    network: Network

    @property
    def hosts_with_devices(self) -> tuple[int, ...]:
        """The hosts that can compute, in order."""
        return tuple(host for host, devices in enumerate(self.devices) if devices)

    def slots(self, hosts: Sequence[int]) -> tuple[Slot, ...]:
        """Return the devices of some hosts, host by host."""
        return tuple(Slot(host, device) for host in hosts for device in range(len(self.devices[host])))

    def device(self, slot: Slot) -> Device:
        """Return what computes there."""
        return self.devices[slot.host][slot.device]

    def kind(self, host: int) -> object:
        """Return what a host is to a plan: equal for hosts that may stand for each other."""
        network = self.network
        if host in {network.broker, network.gateway, *(end for pair in network.links for end in pair)}:
            return host
        return self.devices[host], network.num_cores[host], network.ports.get(host)

    def site(self, slots: Sequence[Slot]) -> Site:
        """Return the site whose workers take these devices in this order."""
        return Site(
            devices=tuple(map(self.device, slots)),
            num_cores=sum(self.network.num_cores),
            hosts=tuple(slot.host for slot in slots),
            network=self.network,
        )

    def with_more_like(self, host: int, count: int) -> Fleet:
        """Return these hosts and `count` more like one of them, which only compute."""
        network = self.network
        names = tuple(f"{network.names[host]} again, {number}" for number in range(1, count + 1))
        ports = {len(self.devices) + number: network.ports[host] for number in range(count) if host in network.ports}
        more = replace(
            network,
            names=network.names + names,
            num_cores=network.num_cores + (network.num_cores[host],) * count,
            ports={**network.ports, **ports},
        )
        return Fleet(devices=self.devices + (self.devices[host],) * count, network=more)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """What to run where, and what it will give."""

    fleet: Fleet
    slots: tuple[Slot, ...]
    """Of each stage of `plan.layout`, copy by copy, and then of each separate vision worker."""
    plan: Plan

    def sessions_on(self, stage: int) -> int:
        """Return the most sessions that a stage holds at a time."""
        copies = [copy for copy, chain in enumerate(self.plan.layout.chains) for _ in chain]
        return self.plan.forecast.copy_sessions[copies[stage]]
