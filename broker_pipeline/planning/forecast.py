"""What a given layout will give: captions per second, what limits them, and how many sessions there is room for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from broker_pipeline.planning.devices import (
    BUSY_SHARE,
    EDGES,
    FURTHER_STAGE_CAPTION_S,
    ROUND_SHARE,
    SYSTEM_CAPTION_S,
)
from broker_pipeline.planning.layout import Layout
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.route_rate import PlannedRoute, RouteRate, route_rate
from broker_pipeline.planning.site import Site, room_bytes, sessions_in
from broker_pipeline.planning.step_time import StageTime, tower_s
from broker_pipeline.planning.traffic import WeightedRoute, link_bytes, network_limits
from broker_pipeline.planning.workload import SESSIONS_PER_STEP, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The prediction for a layout."""

    captions_per_s: float
    limits: dict[str, float]
    """What bounds the rate, and at how many captions per second."""
    copy_sessions: tuple[int, ...]
    """Sessions in flight on each copy."""
    room_sessions: int
    """Sessions whose KV there is room for."""
    is_estimated: bool
    """Whether a device is among them whose rates were not measured."""
    link_bytes: Mapping[tuple[int, int], float]
    """Of one caption, from a host to another one."""

    @property
    def num_sessions(self) -> int:
        """Sessions in flight, on all routes together."""
        return sum(self.copy_sessions)

    @property
    def is_full(self) -> bool:
        """Whether there are as many sessions as there is room for."""
        return self.num_sessions >= self.room_sessions

    @property
    def limit(self) -> str:
        """What bounds the rate most."""
        return min(self.limits, key=self.limits.__getitem__)


@dataclass(frozen=True, slots=True)
class CopyRate:
    """One copy of the model: how many sessions it has room for and holds, and what that gives."""

    route: PlannedRoute
    room_sessions: int
    num_sessions: int
    rate: RouteRate


def forecast(model: ModelSizes, site: Site, workload: Workload, layout: Layout) -> Forecast:
    """Predict a layout; 0 captions per second where it does not fit."""
    copies = copy_rates(model, site, workload, layout)
    rates = [copy.rate for copy in copies]
    weighted = _weighted(copies)
    limits = {
        "the slowest stage": sum(rate.of_stages for rate in rates),
        "the way through all stages": sum(rate.around for rate in rates),
        "a stage's process": sum(rate.of_hosts for rate in rates),
        **_common_limits(model, site, workload, layout, weighted),
    }
    ramp = (workload.round_share(sum(copy.num_sessions for copy in copies)) or ROUND_SHARE) / ROUND_SHARE
    return Forecast(
        captions_per_s=ramp * min(sum(rate.captions_per_s for rate in rates), *limits.values()),
        limits={name: ramp * limit for name, limit in limits.items()},
        copy_sessions=tuple(copy.num_sessions for copy in copies),
        room_sessions=sum(copy.room_sessions for copy in copies),
        is_estimated=any(device.is_estimated for device in site.devices),
        link_bytes=link_bytes(model, site, workload, layout, weighted),
    )


def copy_rates(model: ModelSizes, site: Site, workload: Workload, layout: Layout) -> list[CopyRate]:
    """Predict each copy of a layout by itself."""
    room, routes = partial(sessions_in, model, workload), planned_routes(site, layout)
    found = []
    for route in routes:
        most = min(map(room, stage_rooms(model, site, layout, route), route.chain))
        held = min(asked_sessions(workload, len(routes), len(route.chain)), most)
        found.append(CopyRate(route, most, held, route_rate(model, site, workload, route, held)))
    return found


def asked_sessions(workload: Workload, num_copies: int, num_stages: int) -> int:
    """Return the sessions that each copy should have in flight."""
    if workload.num_sessions is None:
        return SESSIONS_PER_STEP * (num_stages + 1)
    return -(-workload.num_sessions // num_copies)


def planned_routes(site: Site, layout: Layout) -> list[PlannedRoute]:
    """Place a layout's workers on devices: stages first, then separate vision workers, round-robin."""
    routes, first = [], 0
    encoding = Counter(map(site.index_of, layout.encoders))
    for chain in layout.chains:
        devices = tuple(site.index_of(first + index) for index in range(len(chain)))
        shares: tuple[float, ...] | None = None
        if layout.vision == "shared":
            shares = (1.0, *(0.0 for _ in chain[1:]))
        elif layout.vision == "separate":  # what shares a device with a stage takes its time
            shares = tuple(len(layout.chains) * encoding[device] / layout.num_vision_workers for device in devices)
        encodes = [index in layout.vision_stages for index in range(first, first + len(chain))]
        routes.append(PlannedRoute(chain=chain, devices=devices, vision_shares=shares, encodes=tuple(encodes)))
        first += len(chain)
    return routes


def caption_bytes(model: ModelSizes, workload: Workload, layout: Layout) -> float:
    """Return the bytes of hidden states and visual rows that leave their process, for one caption."""
    row = model.hidden_size * model.dtype_bytes
    hidden = (len(layout.chains[0]) - 1) * workload.num_computed_tokens * row
    rows = workload.num_visual_tokens * row * (1 + model.num_levels)
    staying = 1 / len(layout.vision_stages) if layout.vision_stages else 0.0
    return hidden + rows * (1 - staying)


def stage_rooms(model: ModelSizes, site: Site, layout: Layout, route: PlannedRoute) -> list[float]:
    """Return the bytes that each stage of a route has for its weights and KV."""
    num_sharers = -(-(len(layout.stages) + layout.num_vision_workers) // len(site.devices))
    rooms = []
    for blocks, device in zip(route.chain, route.devices, strict=True):
        has_vision = layout.vision in {"every", "beside"} or (layout.vision == "shared" and blocks.start == 0)
        rooms.append(room_bytes(model, site.devices[device], has_vision=has_vision) / num_sharers)
    return rooms


def _weighted(copies: Sequence[CopyRate]) -> list[WeightedRoute]:
    """Return each route with the part of all captions that it takes."""
    whole = sum(copy.rate.captions_per_s for copy in copies) or 1.0
    return [(copy.route, copy.rate.captions_per_s / whole) for copy in copies]


def _common_limits(
    model: ModelSizes, site: Site, workload: Workload, layout: Layout, routes: Sequence[WeightedRoute]
) -> dict[str, float]:
    """Return what all routes share: separate vision workers, edges or links, processors."""
    limits = {}
    if layout.vision == "separate":
        on = (site.devices[site.index_of(worker)] for worker in layout.encoders)
        limits["vision"] = sum(BUSY_SHARE / tower_s(model, device, workload.num_visual_tokens) for device in on)
    if site.network is not None:
        return limits | network_limits(model, site, workload, layout, routes)
    if num_bytes := caption_bytes(model, workload, layout):
        limits["the edges"] = EDGES[site.edge].total_bytes_per_s / num_bytes
    processor_s = SYSTEM_CAPTION_S + (len(layout.chains[0]) - 1) * FURTHER_STAGE_CAPTION_S
    if not site.devices[0].is_gpu:
        processor_s += _computing_s(model, site, workload)
    limits["the host's processor"] = BUSY_SHARE * site.num_cores / processor_s
    return limits


def _computing_s(model: ModelSizes, site: Site, workload: Workload) -> float:
    """Return the core seconds that the computation of one caption takes on a processor."""
    stage = StageTime(
        model=model,
        device=site.devices[0],
        workload=workload,
        num_layers=model.num_layers,
        has_head=True,
        vision_share=1.0,
    )
    captions = SESSIONS_PER_STEP / workload.num_output_tokens
    return stage.estimate(SESSIONS_PER_STEP * workload.tokens_per_step) / captions
