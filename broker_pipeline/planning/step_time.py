"""Seconds of a microbatch on a stage, computed from sizes and rates: what `StepCost` learns, before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from broker_pipeline.planning.devices import Device
from broker_pipeline.planning.model_sizes import ModelSizes
from broker_pipeline.planning.workload import Workload


def layer_s(model: ModelSizes, device: Device, work: Workload, num_tokens: float, num_sessions: float) -> float:
    """Return the seconds of one layer for `num_tokens`, with the KV of `num_sessions` to read."""
    experts = model.num_experts_read(num_tokens, work.experts_share) * model.expert_weights
    reading = (model.layer_weights + experts) * model.layer_value_bytes / device.bytes_per_s
    gain, expert_gain = (device.fp8_gain, device.fp8_expert_gain) if model.is_fp8 else (1.0, 1.0)
    computing = 2 * num_tokens * model.layer_weights / (gain * device.flops_per_s)
    if model.num_experts:
        chosen = model.num_experts_per_token * model.expert_weights
        computing += 2 * num_tokens * chosen / (expert_gain * device.expert_flops_per_s(model.expert_weights))
    read = model.kv_values * model.dtype_bytes  # as if not in FP8: decode steps gain what prompts lose
    kv = num_sessions * work.mean_context * read / (device.bytes_per_s * device.kv_share)
    return math.hypot(reading, computing) + kv + (device.expert_layer_s if model.num_experts else device.layer_s)


def head_s(model: ModelSizes, device: Device, num_rows: float) -> float:
    """Return the seconds of the head for so many sampled tokens."""
    reading = model.embed_weights * model.dtype_bytes / device.bytes_per_s
    return math.hypot(reading, 2 * num_rows * model.embed_weights / device.flops_per_s)


def tower_s(model: ModelSizes, device: Device, num_visual_tokens: float) -> float:
    """Return the seconds of the tower for so many visual tokens, as part of a large batch."""
    return 2 * num_visual_tokens * model.tower_token_multiplications / (device.flops_per_s * device.tower_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """One stage under a steady workload: `StepTime` for the scheduler's rules."""

    model: ModelSizes
    device: Device
    workload: Workload
    num_layers: int
    has_head: bool
    vision_share: float = 0.0
    """Part of all pictures of its route that this stage's process encodes."""
    is_known: bool = True

    def estimate(self, num_tokens: float) -> float:
        """Return the seconds of a microbatch of the workload's mix, with the pictures that come with it."""
        fixed, each = self.parts(num_tokens)
        return fixed + self.num_layers * each

    def parts(self, num_tokens: float) -> tuple[float, float]:
        """Return the seconds beside the layers, and those of one layer."""
        work = self.workload
        num_sessions = num_tokens / work.tokens_per_step
        each = layer_s(self.model, self.device, work, num_tokens, num_sessions)
        head = head_s(self.model, self.device, num_sessions) if self.has_head else 0.0
        num_pictures = num_sessions / work.num_output_tokens * self.vision_share
        return head + num_pictures * tower_s(self.model, self.device, work.num_visual_tokens), each
