"""What one caption costs where hosts are apart: bytes on each link, and each host's processor.

gateway ─picture─► broker ─picture─► vision ─visual rows─► stages
conductor ─envelope─► broker ─► stage ─┬─hidden states─────────────► stage ─ … ─result─► broker ─► conductor
                                       └─envelope─► broker ─► stage
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.planning.devices import (
    BUSY_SHARE,
    CONDUCTOR_CAPTION_S,
    ENVELOPE_TOKEN_BYTES,
    FURTHER_STAGE_CAPTION_S,
    GATEWAY_CAPTION_S,
    PROMPT_TOKEN_BYTES,
    RESULT_TOKEN_BYTES,
    SYSTEM_CAPTION_S,
)
from broker_pipeline.planning.layout import Layout
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.network import Network
from broker_pipeline.planning.route_rate import PlannedRoute, stage_times
from broker_pipeline.planning.site import Site
from broker_pipeline.planning.workload import SESSIONS_PER_STEP, Workload

WeightedRoute = tuple[PlannedRoute, float]
"""A route, and the part of all captions that take it."""
Flow = tuple[list[tuple[int, int]], float]
"""Hops from host to host, and the bytes of a caption that take them."""


def link_bytes(
    model: ModelSizes, site: Site, workload: Workload, layout: Layout, routes: Sequence[WeightedRoute]
) -> dict[tuple[int, int], float]:
    """Return the bytes of one caption, on average, from each host to each other one that gets any."""
    found: defaultdict[tuple[int, int], float] = defaultdict(float)
    if site.network is None:
        return found
    for route, share in routes:
        encoders = _encoders(model, site, workload, layout, route)
        for hops, num_bytes in _flows(model, site.network, workload, _Placed(route, site.hosts, encoders)):
            for hop in hops:
                found[hop] += share * num_bytes
    return {hop: num_bytes for hop, num_bytes in found.items() if num_bytes}


def _encoders(
    model: ModelSizes, site: Site, workload: Workload, layout: Layout, route: PlannedRoute
) -> list[tuple[int, float]]:
    """Return the hosts that encode a route's pictures, and which part of them: near its stages, where they may."""
    if layout.vision == "separate":
        return [(site.hosts[site.index_of(worker)], 1 / len(layout.encoders)) for worker in layout.encoders]
    stages = stage_times(model, site, workload, route, SESSIONS_PER_STEP * workload.tokens_per_step)
    return [(site.hosts[on], stage.vision_share) for on, stage in zip(route.devices, stages, strict=True)]


def network_limits(
    model: ModelSizes, site: Site, workload: Workload, layout: Layout, routes: Sequence[WeightedRoute]
) -> dict[str, float]:
    """Return how many captions per second each link, port and processor of the hosts would allow."""
    network = site.network
    assert network is not None
    names, taken, limits = network.names, link_bytes(model, site, workload, layout, routes), {}
    for (sender, receiver), num_bytes in taken.items():
        rate = BUSY_SHARE * network.link(sender, receiver).bytes_per_s
        limits[f"the link from {names[sender]} to {names[receiver]}"] = rate / num_bytes
    for host, rate in network.ports.items():
        most = max(sum(num for hop, num in taken.items() if hop[end] == host) for end in (0, 1))
        if most:
            limits[f"the port of {names[host]}"] = BUSY_SHARE * rate / most
    for host, seconds in _core_seconds(model, site, network, workload, routes).items():
        limits[f"the processor of {names[host]}"] = BUSY_SHARE * network.num_cores[host] / seconds
    return limits


@dataclass(frozen=True, slots=True)
class _Placed:
    """A route with the host of each device, and of each part of its pictures."""

    route: PlannedRoute
    hosts: Sequence[int]
    encoders: Sequence[tuple[int, float]]


def _flows(model: ModelSizes, network: Network, workload: Workload, placed: _Placed) -> Iterator[Flow]:
    """Yield what one caption of a route sends."""
    row = model.hidden_size * model.dtype_bytes
    envelope = workload.num_output_tokens * ENVELOPE_TOKEN_BYTES + workload.num_prompt_tokens * PROMPT_TOKEN_BYTES
    on = [placed.hosts[device] for device in placed.route.devices]
    yield network.message_way(network.gateway, network.broker), workload.picture_bytes
    yield network.message_way(network.gateway, on[0]), envelope
    yield network.message_way(on[-1], network.gateway), workload.num_output_tokens * RESULT_TOKEN_BYTES
    for sender, receiver in pairwise(on):
        yield network.message_way(sender, receiver), envelope
        yield network.way(sender, receiver), workload.num_computed_tokens * row
    for encoder, part in placed.encoders:
        yield network.message_way(network.broker, encoder), part * workload.picture_bytes
        for blocks, receiver in zip(placed.route.chain, on, strict=True):
            rows = workload.num_visual_tokens * _levels_in(model, blocks)
            yield network.way(encoder, receiver), part * rows * row


def _levels_in(model: ModelSizes, blocks: BlockRange) -> int:
    """Return how many visual rows of a token a stage needs: the embedding's, and one for each of the first blocks."""
    return (blocks.start == 0) + max(0, min(blocks.stop, model.num_levels) - blocks.start)


def _core_seconds(
    model: ModelSizes, site: Site, network: Network, workload: Workload, routes: Sequence[WeightedRoute]
) -> Mapping[int, float]:
    """Return the seconds of a core that one caption takes on each host, on average."""
    found: defaultdict[int, float] = defaultdict(float)
    services = GATEWAY_CAPTION_S + CONDUCTOR_CAPTION_S
    found[network.gateway] += services
    found[network.broker] += SYSTEM_CAPTION_S - FURTHER_STAGE_CAPTION_S - services
    num_tokens, captions = SESSIONS_PER_STEP * workload.tokens_per_step, SESSIONS_PER_STEP / workload.num_output_tokens
    for route, share in routes:
        stages = stage_times(model, site, workload, route, num_tokens)
        for device, stage in zip(route.devices, stages, strict=True):
            host = site.hosts[device]
            found[host] += share * FURTHER_STAGE_CAPTION_S
            if not stage.device.is_gpu:
                cores = network.num_cores[host] / stage.device.num_slots
                found[host] += share * cores * stage.estimate(num_tokens) / captions
    return found
