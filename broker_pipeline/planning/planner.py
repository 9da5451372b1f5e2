"""Which layout gives the most captions per second, of all that fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from broker_pipeline.planning.cut import StageLoad, cut_layers
from broker_pipeline.planning.devices import CONDUCTOR_CAPTION_S, GATEWAY_CAPTION_S, PROCESS_LOAD
from broker_pipeline.planning.forecast import Forecast, asked_sessions, forecast, planned_routes, stage_rooms
from broker_pipeline.planning.layout import Chain, Layout, LayoutRequest, VisionPlace, chain_of, even_chain
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.refusal import check_request, does_not_fit
from broker_pipeline.planning.route_rate import stage_times, step_tokens
from broker_pipeline.planning.site import Site, layers_in
from broker_pipeline.planning.workload import Workload

_SESSION_PARTS = tuple(0.85**power for power in range(40))
"""Of the sessions that are asked for, what to leave room for: a cut for time alone may leave one stage little KV."""
_BETTER = 1.005
"""By how much a layout has to be better than one with more copies, or with vision in fewer places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The layout to run, what it will give, and how many processes it needs around it."""

    layout: Layout
    forecast: Forecast
    num_conductors: int
    num_gateways: int


def choose_plan(model: ModelSizes, site: Site, workload: Workload, request: LayoutRequest) -> Plan:
    """Return the best layout of those that are asked for.

    Raises `ConfigurationError` where none of them fits, with what is missing and what would fit.
    """
    check_request(model, request)
    best: Plan | None = None
    for layout in _layouts(model, site, workload, request):
        found = plan_of(layout, forecast(model, site, workload, layout))
        if best is None or found.forecast.captions_per_s > _BETTER * best.forecast.captions_per_s:
            best = found
    if best is None or not best.forecast.captions_per_s:
        raise does_not_fit(model, site, request)
    return best


def plan_of(layout: Layout, found: Forecast) -> Plan:
    """Add the processes that a rate needs around a layout; a conductor has whole copies."""
    num_conductors = math.ceil(found.captions_per_s * CONDUCTOR_CAPTION_S / PROCESS_LOAD) or 1
    return Plan(
        layout=layout,
        forecast=found,
        num_conductors=min(num_conductors, len(layout.chains)),
        num_gateways=math.ceil(found.captions_per_s * GATEWAY_CAPTION_S / PROCESS_LOAD) or 1,
    )


def cuts(
    model: ModelSizes, site: Site, workload: Workload, frame: Layout, parts: Sequence[float] = _SESSION_PARTS
) -> Iterator[Layout]:
    """Yield layouts whose stages are balanced with room for ever fewer sessions: a faster one may hold fewer."""
    asked = asked_sessions(workload, len(frame.chains), len(frame.chains[0]))
    seen: set[tuple[Chain, ...]] = set()
    for num_sessions in sorted({max(1, int(asked * part)) for part in parts}, reverse=True):
        chains = _balanced(model, site, workload, frame, num_sessions)
        if chains is not None and chains not in seen:
            seen.add(chains)
            yield replace(frame, chains=chains)


def _layouts(model: ModelSizes, site: Site, workload: Workload, request: LayoutRequest) -> Iterator[Layout]:
    """Yield the best cuts of every number of copies, stages and place of vision that is asked for."""
    for num_copies, num_stages in _shapes(model, site, request):
        chain = request.chain or even_chain(model.num_layers, num_stages)
        for vision in _places(site, request, num_copies * num_stages):
            num_left = max(1, len(site.devices) - num_copies * num_stages)
            num_workers = (request.num_vision_workers or num_left) if vision == "separate" else 0
            frame = Layout(chains=(chain,) * num_copies, vision=vision, num_vision_workers=num_workers)
            yield from [frame] if request.chain else cuts(model, site, workload, frame)


def _shapes(model: ModelSizes, site: Site, request: LayoutRequest) -> list[tuple[int, int]]:
    """Return numbers of copies and stages, most copies first."""
    if request.num_copies and request.num_stages:
        return [(request.num_copies, request.num_stages)]
    most = len(site.devices)
    return [(c, s) for c in range(most, 0, -1) for s in range(1, min(most // c, model.num_layers) + 1)]


def _places(site: Site, request: LayoutRequest, num_stages: int) -> list[VisionPlace]:
    """Return where vision may run; by itself a process that only encodes gets a device that nobody else has."""
    if request.vision is not None:
        return [request.vision]
    places: list[VisionPlace] = ["shared", "every"]
    if len(site.devices) > 1:  # on a single one a second process was measured for one model only
        places.append("beside")
    return [*places, "separate"] if num_stages < len(site.devices) else places


def _balanced(
    model: ModelSizes, site: Site, workload: Workload, frame: Layout, num_sessions: int
) -> tuple[Chain, ...] | None:
    """Cut each copy so that its slowest stage is fastest, with room for so many sessions; None for no room."""
    num_stages = len(frame.chains[0])
    num_tokens = step_tokens(workload, num_sessions, num_stages)
    chains = []
    for route in planned_routes(site, frame):
        rooms = stage_rooms(model, site, frame, route)
        shares = route.vision_shares or (0.0,) * num_stages  # pictures that go by load fill what the cut leaves
        stages = stage_times(model, site, workload, replace(route, vision_shares=shares), num_tokens)
        loads = [
            StageLoad(
                *stage.parts(num_tokens),
                layers_in(model, workload, room, num_sessions, is_first=not index, is_last=stage.has_head),
            )
            for index, (stage, room) in enumerate(zip(stages, rooms, strict=True))
        ]
        counts = cut_layers(model.num_layers, loads)
        if counts is None:
            return None
        chains.append(chain_of(counts))
    return tuple(chains)
