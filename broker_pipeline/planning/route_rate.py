"""What one route gives: its stages under a steady workload, and the rate that they and the way around them allow."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise

from broker_pipeline.planning.cut import shares_by_load
from broker_pipeline.planning.devices import (
    BUSY_SHARE,
    CONDUCTOR_ROUND_S,
    ENCODING_STAGE_S,
    LAUNCH_S,
    PICTURE_HOST_S,
    STAGE_HOST_S,
)
from broker_pipeline.planning.layout import Chain
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.site import Site
from broker_pipeline.planning.step_time import StageTime, tower_s
from broker_pipeline.planning.workload import MAX_STEP_TOKENS, SESSIONS_PER_STEP, Workload
from broker_pipeline.scheduling.step_cost import SharedDevice, choose_num_microbatches


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRoute:
    """One copy of the model: its stages, where they run, and who encodes its pictures."""

    chain: Chain
    devices: tuple[int, ...]
    """Of each stage, the index of its device."""
    vision_shares: tuple[float, ...] | None
    """Part of the route's pictures that each stage's device encodes; None shares them out by load."""
    encodes: tuple[bool, ...] = ()
    """Of each stage, whether its own process may encode pictures; empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRate:
    """Captions per second that each of four things would allow by itself."""

    of_stages: float = 0.0
    """The slowest stage, or the fullest device."""
    around: float = 0.0
    """The way of a microbatch through all stages and back, with as many under way as the scheduler would have."""
    of_hosts: float = math.inf
    """The process of a stage that has most to launch and to encode."""
    of_links: float = math.inf
    """The slowest link between hosts on the way through the stages."""

    @property
    def captions_per_s(self) -> float:
        """All of them together."""
        return min(self.of_stages, self.around, self.of_hosts, self.of_links)


def route_rate(model: ModelSizes, site: Site, workload: Workload, route: PlannedRoute, num_sessions: int) -> RouteRate:
    """Predict a route with so many sessions, by the rules of the scheduler."""
    if num_sessions == 0:
        return RouteRate()
    num_tokens, size = num_sessions * workload.tokens_per_step, step_tokens(workload, num_sessions, len(route.chain))
    stages, shared = stage_times(model, site, workload, route, size), _shared_devices(site, route)
    outside_s, most = _outside_s(model, site, size, route), _most_tokens(workload)
    count = choose_num_microbatches(num_sessions, num_tokens, stages, outside_s, shared, max_tokens=most)
    in_step = min(most, num_tokens / count)
    in_one = in_step / workload.num_computed_tokens
    captions = BUSY_SHARE * in_one
    steps = [stage.estimate(in_step) for stage in stages]
    crowds = [sum(steps[index] for index in device.stages) / device.num_slots for device in shared]
    own = route.encodes or (False,) * len(stages)
    hosts = [
        LAUNCH_S + encodes * in_one * stage.vision_share * PICTURE_HOST_S
        for encodes, stage in zip(own, stages, strict=True)
        if stage.device.is_gpu
    ]
    return RouteRate(
        of_stages=captions / max(*steps, *crowds, 0.0),
        around=captions * count / (sum(steps) + outside_s),
        of_hosts=in_one / max(hosts) if hosts else math.inf,
        of_links=BUSY_SHARE * _link_rate(site, route) / (workload.num_computed_tokens * _row_bytes(model)),
    )


def step_tokens(workload: Workload, num_sessions: int, num_stages: int) -> float:
    """Return the tokens of a microbatch where one is at every stage and one on its way."""
    return min(_most_tokens(workload), num_sessions * workload.tokens_per_step / (num_stages + 1))


def stage_times(
    model: ModelSizes, site: Site, workload: Workload, route: PlannedRoute, num_tokens: float
) -> list[StageTime]:
    """Return the stages of a route whose microbatches have so many tokens."""
    stages = [
        StageTime(
            model=model,
            device=site.devices[device],
            workload=workload,
            num_layers=len(blocks),
            has_head=blocks.stop == model.num_layers,
            vision_share=route.vision_shares[index] if route.vision_shares else 0.0,
        )
        for index, (device, blocks) in enumerate(zip(route.devices, route.chain, strict=True))
    ]
    if route.vision_shares is not None:
        return stages
    num_visual_tokens = num_tokens / workload.num_computed_tokens * workload.num_visual_tokens
    whole = [tower_s(model, stage.device, num_visual_tokens) for stage in stages]
    shares = shares_by_load([stage.estimate(num_tokens) for stage in stages], whole)
    return [replace(stage, vision_share=share) for stage, share in zip(stages, shares, strict=True)]


def _most_tokens(workload: Workload) -> float:
    return min(MAX_STEP_TOKENS, SESSIONS_PER_STEP * workload.tokens_per_step)


def _outside_s(model: ModelSizes, site: Site, num_tokens: float, route: PlannedRoute) -> float:
    hops = [site.hop(sender, receiver) for sender, receiver in pairwise(route.devices)]
    payload = num_tokens * _row_bytes(model)
    hops_s = sum(hop.latency_s + payload / hop.bytes_per_s for hop in hops)
    around_s = CONDUCTOR_ROUND_S + site.around_s(route.devices[0], route.devices[-1])
    return around_s + len(route.chain) * STAGE_HOST_S + sum(route.encodes) * ENCODING_STAGE_S + hops_s


def _link_rate(site: Site, route: PlannedRoute) -> float:
    """Return the bytes per second of the slowest link between hosts on a route."""
    return min((site.link_rate(*pair) for pair in pairwise(route.devices)), default=math.inf)


def _row_bytes(model: ModelSizes) -> int:
    """Return the bytes of one token's hidden state."""
    return model.hidden_size * model.dtype_bytes


def _shared_devices(site: Site, route: PlannedRoute) -> tuple[SharedDevice, ...]:
    stages: defaultdict[int, list[int]] = defaultdict(list)
    for index, device in enumerate(route.devices):
        stages[device].append(index)
    slots = {device: site.devices[device].num_slots for device in stages}
    return tuple(SharedDevice(tuple(on), slots[device]) for device, on in stages.items() if len(on) > slots[device])
