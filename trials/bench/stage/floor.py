"""What a step cannot be faster than: bytes over the memory's rate, operations over the arithmetic's.

Both rates are measured on the device, in the run that they are compared with.

    memory    the weights that the step uses once, and the keys and values of every session
    compute   two operations for every weight and token, and attention's products
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import torch

from stages.qwen3_vl.text_config import TextConfig

_COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
_NUM_REPEATS = 10


class DeviceRates(msgspec.Struct, frozen=True, kw_only=True):
    """The best of some measurements."""

    bytes_per_s: float
    """Of a large copy, bytes read and bytes written both counted."""
    flops_per_s: float
    """Of a large matrix product in the dtype that the stage computes in."""


@dataclass(frozen=True, slots=True)
class StepNeeds:
    """What one step has to read and to compute."""

    num_bytes: float
    num_flops: float

    def floor(self, rates: DeviceRates) -> tuple[float, str]:
        """Return the least number of seconds, and what sets it: "memory" or "compute"."""
        memory_s = self.num_bytes / rates.bytes_per_s
        compute_s = self.num_flops / rates.flops_per_s
        return (memory_s, "memory") if memory_s >= compute_s else (compute_s, "compute")


class ItemSizes(NamedTuple):
    """Bytes of one value: of a layer's weights, of keys and values, and of all else."""

    weight: float
    kv: float
    other: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> DeviceRates:
    """Copy and multiply, some times each."""
    num_bytes = _COPY_BYTES[device.type]
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best(lambda: target.copy_(source), device)
    side = _MATRIX_SIDE[device.type]
    left = torch.randn(side, side, device=device).to(dtype)
    right = torch.randn(side, side, device=device).to(dtype)
    product_s = _best(lambda: left @ right, device)
    return DeviceRates(bytes_per_s=2 * num_bytes / copy_s, flops_per_s=2 * side**3 / product_s)


def step_needs(
    config: TextConfig,
    num_layers: int,
    *,
    num_tokens: int,
    num_cached_tokens: int,
    num_pairs: int,
    num_sampled: int,
    itemsizes: ItemSizes,
) -> StepNeeds:
    """Return what `num_tokens` new tokens need on the first `num_layers` layers.

    `num_cached_tokens` are the tokens of all sessions whose keys and values are read, `num_pairs` counts each once for
    every new token that looks at it; `num_sampled` tokens go through the head, 0 where the stage has none.
    """
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    bytes_read, flops = 0.0, 0.0
    for layer in range(num_layers):
        read, used = _mlp_weights(config, layer, num_tokens)
        bytes_read += (attention + read) * itemsizes.weight
        flops += 2 * num_tokens * (attention + used)
    bytes_read += 2 * num_cached_tokens * num_layers * config.num_kv_heads * config.head_dim * itemsizes.kv
    flops += 4 * num_pairs * num_layers * config.num_heads * config.head_dim
    if num_sampled:
        bytes_read += config.vocab_size * config.hidden_size * itemsizes.other
        flops += 2 * num_sampled * config.vocab_size * config.hidden_size
    return StepNeeds(bytes_read, flops)


def _mlp_weights(config: TextConfig, layer: int, num_tokens: int) -> tuple[float, float]:
    """Count the weights that have to be read, and those that each token is multiplied with."""
    if not config.layer_is_sparse(layer):
        dense = 3.0 * config.hidden_size * config.intermediate_size
        return dense, dense
    expert = 3.0 * config.hidden_size * config.moe_intermediate_size
    router = config.hidden_size * config.num_experts
    per_token = config.num_experts_per_tok
    # Tokens choose independently, so that an expert is left alone by all of them with this probability.
    idle = (1 - per_token / config.num_experts) ** num_tokens
    return router + config.num_experts * (1 - idle) * expert, router + per_token * expert


def _best(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_NUM_REPEATS + 2):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[2:])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
