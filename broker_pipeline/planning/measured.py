"""A device's rates from steps that were timed on it, so that the planner's formula gives these times again.

a prompt       hypot(weights / bytes_per_s, multiplications / flops_per_s)       mostly the second: flops_per_s
decode steps   the same, with few tokens and much KV                             mostly the first: bytes_per_s
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from broker_pipeline.planning.devices import Device
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.step_time import layer_s, tower_s
from broker_pipeline.planning.workload import Workload

_ROUNDS, _HALVINGS = 20, 60
_SLOWEST, _FASTEST = 1e6, 1e18


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimes:
    """Seconds of one layer on a device, and of the tower."""

    num_sessions: int
    """Of a decode step."""
    context: int
    """Tokens of KV that each of them has."""
    decode_s: float
    num_prompt_tokens: int
    """Of a prefill, all prompts together."""
    prefill_s: float
    num_visual_tokens: int = 0
    tower_s: float | None = None
    """For so many visual tokens; None where that was not timed."""


def measured_device(base: Device, model: ModelSizes, times: LayerTimes) -> Device:
    """Return `base` with the rates that give these times for this model; what was not timed stays as it is."""
    fixed = "expert_layer_s" if model.num_experts else "layer_s"
    least_s = min(getattr(base, fixed), times.decode_s / 2, times.prefill_s / 2)
    device = replace(base, **{fixed: least_s}, is_estimated=False)
    work = Workload(num_prompt_tokens=times.context, num_output_tokens=0, experts_share=1.0)

    def prefill_s(flops: float) -> float:
        return layer_s(model, replace(device, flops_per_s=flops), work, times.num_prompt_tokens, 0)

    def decode_s(rate: float) -> float:
        return layer_s(model, replace(device, bytes_per_s=rate), work, times.num_sessions, times.num_sessions)

    for _ in range(_ROUNDS):  # each depends a little on the other
        device = replace(device, flops_per_s=_solve(prefill_s, times.prefill_s))
        device = replace(device, bytes_per_s=_solve(decode_s, times.decode_s))
    if times.tower_s is None:
        return device
    whole_s = tower_s(model, replace(device, tower_share=1.0), times.num_visual_tokens)
    return replace(device, tower_share=whole_s / times.tower_s)


def _solve(seconds: Callable[[float], float], wanted_s: float) -> float:
    """Return the rate at which something takes so long, or the nearest that there is; a faster one takes less."""
    low, high = math.log(_SLOWEST), math.log(_FASTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds(math.exp(middle)) > wanted_s else (low, middle)
    return math.exp(high)
