"""How many tokens of KV a stage can promise."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from broker_pipeline.errors import ConfigurationError
from stages.device.hardware import free_bytes
from stages.qwen3_vl.text_config import TextConfig

_GPU_SHARE = 0.80  # the rest is for activations, and for the allocator's own losses
_CPU_SHARE = 0.25  # a CPU host runs other things: brokers, other stages, the page cache that holds the weights
_MOST_CPU_TOKENS = 65_536
MOST_GPU_TOKENS = 2**20  # with a small model memory is not what limits the number of sessions
_FEWEST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class KVRoom:
    """How much KV a stage is to have: `num_tokens`, or what fits.

    `share` is the part of the free memory to take, None for the default. `reserved_bytes` of a GPU are others' within
    this process: visual rows, and a vision tower's needs.
    """

    num_tokens: int | None = None
    share: float | None = None
    reserved_bytes: int = 0

    def fit(self, token_bytes: int, device: torch.device) -> int:
        """Return the tokens to hold, alongside weights that are loaded already; errors as of `default_kv_tokens`."""
        return self.num_tokens or default_kv_tokens(token_bytes, device, self.share, self.reserved_bytes)

    def least_tokens(self) -> int:
        """Return the tokens that are to be held at least."""
        return self.num_tokens or _FEWEST_TOKENS


def kv_token_bytes(text: TextConfig, num_layers: int, dtype: torch.dtype, *, in_fp8: bool = False) -> int:
    """Return the bytes of keys and values of one token in `num_layers` layers."""
    head_bytes = text.head_dim + 2 if in_fp8 else text.head_dim * dtype.itemsize
    return 2 * num_layers * text.num_kv_heads * head_bytes


def default_kv_tokens(
    token_bytes: int, device: torch.device, share: float | None = None, reserved_bytes: int = 0
) -> int:
    """Return how many tokens fit alongside the weights, which are loaded already, and `reserved_bytes` of a GPU.

    `share` is the part of the free memory to take; None takes 0.8 of a GPU's and 0.25 of a host's.

    Raises:
        ConfigurationError: there is no room for even a short prompt.
    """
    on_cpu = device.type == "cpu"
    free = free_bytes(device) - (0 if on_cpu else reserved_bytes)
    num_tokens = int(free * (share or (_CPU_SHARE if on_cpu else _GPU_SHARE))) // token_bytes
    require_room(num_tokens, token_bytes, free, device)
    return min(num_tokens, _MOST_CPU_TOKENS if on_cpu else MOST_GPU_TOKENS)


def require_room(num_tokens: int, token_bytes: int, free: int, device: torch.device) -> None:
    """Raise ConfigurationError unless `num_tokens` are enough for a short prompt; `free` bytes are told to the user."""
    if num_tokens < _FEWEST_TOKENS:
        raise ConfigurationError(
            f"no room for KV: {free / 2**20:.0f} MiB are free on {device} and a token takes {token_bytes} bytes; "
            "give this stage fewer blocks, or set --kv-share or --kv-tokens",
            field="kv_tokens",
        )
