"""The best plan for hosts that need not be alike: which devices form a copy together, and which stay out.

    devices of some hosts, in an order        A0  A1 │ B0 │ C0  C1  C2
    copies are runs of neighbours             └copy┘  out  └──copy───┘      chosen so that their rates add up to most

Every choice of hosts is tried, so that one more host never makes a plan worse; of many hosts, the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from broker_pipeline.planning.devices import Device, Edge
from broker_pipeline.planning.fleet.fleet import Fleet, FleetPlan, Slot
from broker_pipeline.planning.fleet.refusal import fleet_does_not_fit, needed_bytes
from broker_pipeline.planning.forecast import copy_rates, forecast
from broker_pipeline.planning.layout import Chain, Layout, VisionPlace, even_chain
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.planner import cuts, plan_of
from broker_pipeline.planning.site import room_bytes
from broker_pipeline.planning.workload import Workload

_MOST_CHOSEN, _MOST_CHOSEN_DEVICES = 6, 12
"""Hosts, and devices on them, of which all choices are tried."""
_SESSION_PARTS = tuple(0.5**power for power in range(10))
"""Of the sessions that a copy should hold, what its cut leaves room for: fewer are tried than for one host."""
_LONG = 8
"""Stages of a copy that are always tried."""
_CopyKey = tuple[VisionPlace, tuple[Device, ...], tuple[Edge, ...], float]
_Copy = tuple[float, Chain | None]
_Run = tuple[Slot, ...]


def choose_fleet_plan(model: ModelSizes, fleet: Fleet, workload: Workload) -> FleetPlan:
    """Return the plan with the most captions per second.

    Raises `ConfigurationError` where the model fits on no choice of these devices, with what is missing.
    """
    search = _Search(model, fleet, workload)
    best = max(search.plans(), key=lambda plan: plan.plan.forecast.captions_per_s, default=None)
    if best is None or not best.plan.forecast.captions_per_s:
        raise fleet_does_not_fit(model, fleet)
    return best


@dataclass(frozen=True, slots=True)
class _Cut:
    """Runs of devices, each a copy with its stages."""

    runs: tuple[_Run, ...]
    chains: tuple[Chain, ...]


class _Search:
    def __init__(self, model: ModelSizes, fleet: Fleet, workload: Workload) -> None:
        self._model, self._fleet, self._workload = model, fleet, workload
        self._copies: dict[_CopyKey, _Copy] = {}

    def plans(self) -> Iterator[FleetPlan]:
        """Yield plans, those for the fewest hosts first."""
        seen = set()
        for hosts in _choices(self._fleet.hosts_with_devices, lambda host: len(self._fleet.devices[host])):
            kinds = tuple(map(self._fleet.kind, hosts))
            if kinds in seen:
                continue
            seen.add(kinds)
            if self._times_held(self._fleet.slots(hosts)) < 1:
                continue
            for slots in self._orders(self._fleet.slots(hosts)):
                yield from self._plans(slots)

    def _orders(self, slots: tuple[Slot, ...]) -> list[tuple[Slot, ...]]:
        """Return the orders in which devices may form copies: host by host, the largest first, or at both ends.

        A copy's first stage has the embedding and the tower to hold, its last one the head.
        """
        first, *rest = sorted(slots, key=lambda slot: (-self._fleet.device(slot).memory_bytes, slot))
        return list(dict.fromkeys((slots, (first, *rest), (first, *rest[1:], *rest[:1]))))

    def _plans(self, slots: tuple[Slot, ...]) -> Iterator[FleetPlan]:
        for vision in ("shared", "every"):
            yield from self._plan(self._cut(slots, vision), vision, ())
        device = self._fleet.device
        roomy = [slot for slot in slots if room_bytes(self._model, device(slot), has_vision=True) > 0]
        if not roomy:
            return
        smallest = min(roomy, key=lambda slot: device(slot).memory_bytes)
        fastest = max(roomy, key=lambda slot: device(slot).flops_per_s)
        for own in {device(slot): slot for slot in (smallest, fastest)}.values():  # encodes, and holds no layers
            left = tuple(slot for slot in slots if slot != own)
            cut = self._cut(left, "separate")
            staged = {slot for run in cut.runs for slot in run}
            others = (slot for slot in left if slot in roomy and slot not in staged)
            yield from self._plan(cut, "separate", (own, *others))

    def _plan(self, cut: _Cut, vision: VisionPlace, own: tuple[Slot, ...]) -> Iterator[FleetPlan]:
        if not cut.runs:
            return
        slots = (*(slot for run in cut.runs for slot in run), *own)
        layout = Layout(chains=cut.chains, vision=vision, num_vision_workers=len(own))
        found = forecast(self._model, self._fleet.site(slots), self._workload, layout)
        yield FleetPlan(fleet=self._fleet, slots=slots, plan=plan_of(layout, found))

    def _cut(self, slots: tuple[Slot, ...], vision: VisionPlace) -> _Cut:
        """Form copies of neighbours so that their rates add up to most; devices may stay out."""
        best, longest = [(0.0, _Cut((), ()))], self._longest(slots)
        for stop in range(1, len(slots) + 1):
            found = best[-1]
            for start in range(max(0, stop - longest), stop):
                rate, chain = self._copy(slots[start:stop], vision)
                before, cut = best[start]
                if chain is not None and before + rate > found[0]:
                    found = before + rate, _Cut((*cut.runs, slots[start:stop]), (*cut.chains, chain))
            best.append(found)
        return best[-1][1]

    def _longest(self, slots: Sequence[Slot]) -> int:
        """Return the most devices that a copy is tried on: some more than hold it, since each one slows it down."""
        most = self._model.num_layers
        return min(most, max(_LONG, math.ceil(2 * len(slots) / max(1e-3, self._times_held(slots)))))

    def _times_held(self, slots: Sequence[Slot]) -> float:
        """Return how many times devices have room for the model, as if it could be cut anywhere."""
        rooms = (room_bytes(self._model, self._fleet.device(slot), has_vision=False) for slot in slots)
        return sum(max(0.0, room) for room in rooms) / needed_bytes(self._model)

    def _copy(self, run: _Run, vision: VisionPlace) -> _Copy:
        """Return the rate and the stages of one copy on some devices; each kind of run is looked at once."""
        site = self._fleet.site(run)
        hops = tuple(site.hop(sender, receiver) for sender, receiver in pairwise(range(len(run))))
        key = vision, site.devices, hops, site.around_s(0, len(run) - 1)
        if key not in self._copies:
            self._copies[key] = self._best_copy(run, vision) if self._times_held(run) >= 1 else (0.0, None)
        return self._copies[key]

    def _best_copy(self, run: _Run, vision: VisionPlace) -> _Copy:
        own = int(vision == "separate")
        site = self._fleet.site((*run, *run[:own]))  # in place of the device that encodes
        chain = even_chain(self._model.num_layers, len(run))
        frame = Layout(chains=(chain,), vision=vision, num_vision_workers=own)
        best: _Copy = (0.0, None)
        for layout in cuts(self._model, site, self._workload, frame, _SESSION_PARTS):
            [copy] = copy_rates(self._model, site, self._workload, layout)
            best = max(best, (copy.rate.captions_per_s, layout.chains[0]), key=lambda each: each[0])
        return best


def _choices(hosts: Sequence[int], num_devices: Callable[[int], int]) -> Iterator[tuple[int, ...]]:
    """Yield which hosts may compute: all choices of the first ones, and then these with each further one."""
    first = list(hosts[:1])
    for host in hosts[1:_MOST_CHOSEN]:
        if sum(map(num_devices, [*first, host])) > _MOST_CHOSEN_DEVICES:
            break
        first.append(host)
    for count in range(1, len(first) + 1):
        yield from combinations(first, count)
    for count in range(len(first) + 1, len(hosts) + 1):
        yield tuple(hosts[:count])
