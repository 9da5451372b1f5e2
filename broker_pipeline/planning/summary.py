"""A plan in two lines: what runs where and why it fits, and what it will give."""

from __future__ import annotations

from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.planner import Plan
from broker_pipeline.planning.site import Site
from broker_pipeline.planning.workload import Workload

_GB = 1e9
_VISION = {
    "shared": "vision with the first stage",
    "every": "vision on every stage",
    "beside": "vision beside every stage",
    "separate": "vision by itself",
}


def describe_plan(model: ModelSizes, site: Site, workload: Workload, plan: Plan) -> tuple[str, str]:
    """Return the two lines."""
    layout, found = plan.layout, plan.forecast
    whole = (2 - model.is_tied) * model.embed_weights * model.dtype_bytes
    needed = (model.num_layers * model.layer_bytes + model.tower_bytes + whole) / _GB
    device = min(site.devices, key=lambda each: each.memory_bytes)
    has = f"{len(site.devices)} x {device.name} with {device.memory_bytes / _GB:.1f} GB"
    vision = _VISION[layout.vision] if len(layout.chains[0]) > 1 or layout.encoders else "vision in the same process"
    first = f"{layout}, {vision}: {model.name} has {needed:.1f} GB of weights; {has}"
    second = (
        f"predicted {found.captions_per_s:.3g} captions/s of {workload.num_output_tokens} tokens with "
        f"{found.num_sessions:,} sessions (room for {found.room_sessions:,}); limit: {found.limit}"
    )
    if plan.num_conductors > 1:
        second += f"; {plan.num_conductors} conductors"
    return first, second + ("; estimated, this device was not measured" if found.is_estimated else "")
