"""One block of the text decoder, as weights and pure functions.

A block falls into two halves with attention between them, so that an engine can compile or capture each half, and so
that attention and KV stay behind their own seams:

    x ─► project_qkv ─► q, k, v ─► cache k, v; attend ─► finish_block(x, attended) ─► x
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.qwen3_vl.moe import ExpertCompute, Linear, route
from stages.qwen3_vl.rope import rotate
from stages.qwen3_vl.text_config import TextConfig


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """A dense block's MLP: gate and up `[I, H]`, down `[H, I]`."""

    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """A sparse block's router `[E, H]` and experts: gate_up `[E, 2I, H]`, down `[E, H, I]`."""

    router: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True, slots=True)
class BlockWeights:
    """The tensors of one decoder block; matrices are `[out, in]`."""

    input_norm: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    q_norm: Tensor
    k_norm: Tensor
    o: Tensor
    post_attention_norm: Tensor
    mlp: MlpWeights | ExpertWeights

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], prefix: str, *, sparse: bool) -> BlockWeights:
        """Pick the block's tensors by their hub names, which all start with `prefix`."""

        def get(name: str) -> Tensor:
            return tensors[prefix + name]

        mlp: MlpWeights | ExpertWeights
        if sparse:
            experts = get("mlp.experts.gate_up_proj"), get("mlp.experts.down_proj")
            mlp = ExpertWeights(get("mlp.gate.weight"), *experts)
        else:
            gate, up, down = (get(f"mlp.{part}_proj.weight") for part in ("gate", "up", "down"))
            mlp = MlpWeights(gate, up, down)
        return cls(
            input_norm=get("input_layernorm.weight"),
            q=get("self_attn.q_proj.weight"),
            k=get("self_attn.k_proj.weight"),
            v=get("self_attn.v_proj.weight"),
            q_norm=get("self_attn.q_norm.weight"),
            k_norm=get("self_attn.k_norm.weight"),
            o=get("self_attn.o_proj.weight"),
            post_attention_norm=get("post_attention_layernorm.weight"),
            mlp=mlp,
        )


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm by the root mean square in fp32, cast back to x's dtype, and only then multiply by the weight."""
    wide = x.to(torch.float32)
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def project_qkv(
    block: BlockWeights, x: Tensor, rotation: tuple[Tensor, Tensor], config: TextConfig, linear: Linear = F.linear
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the first half: queries `[n, heads, d]`, keys and values `[n, kv_heads, d]` of hidden states `[n, H]`.

    Queries and keys are normed per head, then rotated; values are left alone.
    """
    normed = rms_norm(x, block.input_norm, config.rms_norm_eps)
    q = linear(normed, block.q).view(-1, config.num_heads, config.head_dim)
    k = linear(normed, block.k).view(-1, config.num_kv_heads, config.head_dim)
    v = linear(normed, block.v).view(-1, config.num_kv_heads, config.head_dim)
    q = rotate(rms_norm(q, block.q_norm, config.rms_norm_eps), *rotation)
    k = rotate(rms_norm(k, block.k_norm, config.rms_norm_eps), *rotation)
    return q, k, v


def finish_block(
    block: BlockWeights,
    x: Tensor,
    attended: Tensor,
    config: TextConfig,
    experts: ExpertCompute,
    linear: Linear = F.linear,
) -> Tensor:
    """Do the second half: output projection of `attended` `[n, heads, d]`, MLP or experts, both residuals."""
    x = x + linear(attended.flatten(1), block.o)
    normed = rms_norm(x, block.post_attention_norm, config.rms_norm_eps)
    return x + _feed_forward(block.mlp, normed, config, experts, linear)


def _feed_forward(
    mlp: MlpWeights | ExpertWeights, x: Tensor, config: TextConfig, experts: ExpertCompute, linear: Linear
) -> Tensor:
    if isinstance(mlp, ExpertWeights):
        chosen, weights = route(x, mlp.router, config.num_experts_per_tok, linear)
        return experts(x, chosen, weights, mlp.gate_up, mlp.down)
    return linear(F.silu(linear(x, mlp.gate)) * linear(x, mlp.up), mlp.down)
