"""A stage's blocks as few large launches: joined projections, fused kernels between them, the flat cache.

    x ─► norm ─► qkv product ─► norm, rotate, store k v ─► attention ─► o product ─► add, norm ─► gate|up product
    ▲                                                                       │                          │
    └──────────────── the next block's norm adds it first ◄── down product ◄┴── silu · up ◄────────────┘

Nothing here waits for the device or depends on values there, so that a whole step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.artifact_manifest import FP8_BLOCK
from stages.compute.fused.attention import AttentionStep
from stages.compute.fused.linear_backends import LinearBackend
from stages.compute.kv.cache import KVCache
from stages.kernels.cache_entry import enter_cache
from stages.kernels.codes.row_codes import R, Rows
from stages.kernels.norms import add_rms_norm, rms_norm
from stages.qwen3_vl.text_config import TextConfig
from stages.weights.fp8_matrix import Weight, joined, plain


@dataclass(frozen=True, slots=True)
class PackedMlp:
    """A dense MLP: gate and up one above the other `[2I, H]`, down `[H, I]`."""

    gate_up: Weight
    down: Weight

    @property
    def first(self) -> Weight:
        """What normed rows are multiplied by first."""
        return self.gate_up


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """A router `[E, H]` and its experts: gate and up `[E, 2I, H]`, down `[E, H, I]`."""

    router: Tensor
    gate_up: Weight
    down: Weight

    @property
    def first(self) -> Weight:
        """What normed rows are multiplied by first."""
        return self.router


ExpertBlock = Callable[[Tensor, PackedExperts, int], Tensor]
"""Normed hidden states `[n, H]`, experts, the number chosen of them -> `[n, H]`, or `[n, k, H]` still to be summed."""


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """A block's tensors with the projections of one input joined: `qkv` `[(heads + 2 kv_heads) d, H]`."""

    input_norm: Tensor
    qkv: Weight
    q_norm: Tensor
    k_norm: Tensor
    o: Weight
    post_attention_norm: Tensor
    mlp: PackedMlp | PackedExperts

    @classmethod
    def pack(cls, tensors: Mapping[str, Weight], dtype: torch.dtype, *, sparse: bool) -> PackedBlock:
        """Join copies of a layer's tensors, under their names in it; give these up, or matrices are held twice.

        Matrices in FP8 stay so; all else is of `dtype`.
        """

        def vector(name: str) -> Tensor:
            return plain(tensors[f"{name}.weight"], dtype)

        def join(part: str, names: str) -> Weight:
            return joined([tensors[f"{part}.{name}_proj.weight"] for name in names.split()], dtype)

        mlp: PackedMlp | PackedExperts
        if sparse:
            gate_up, down = tensors["mlp.experts.gate_up_proj"], tensors["mlp.experts.down_proj"]
            is_whole = gate_up.shape[1] % (2 * FP8_BLOCK) == 0  # else a block of scales spans gate and up
            mlp = PackedExperts(vector("mlp.gate"), gate_up if is_whole else plain(gate_up, dtype), down)
        else:
            mlp = PackedMlp(join("mlp", "gate up"), tensors["mlp.down_proj.weight"])
        return cls(
            input_norm=vector("input_layernorm"),
            qkv=join("self_attn", "q k v"),
            q_norm=vector("self_attn.q_norm"),
            k_norm=vector("self_attn.k_norm"),
            o=tensors["self_attn.o_proj.weight"],
            post_attention_norm=vector("post_attention_layernorm"),
            mlp=mlp,
        )

    def matrices(self) -> list[Weight]:
        """Return what rows are multiplied by, but for experts."""
        dense = [] if isinstance(self.mlp, PackedExperts) else [self.mlp.down]
        return [self.qkv, self.o, self.mlp.first, *dense]


VisualAddition = Callable[[Tensor, int], Tensor]
"""Hidden states `[n, H]` behind a layer, and the layer -> the same with that layer's visual rows added."""


@dataclass(frozen=True, slots=True)
class Unsummed:
    """Hidden states as two parts, `x` `[n, H]` and what the last block adds: `[n, H]`, `[n, k, H]`, or nothing."""

    x: Tensor
    delta: Tensor | None

    def summed(self) -> Tensor:
        """Return hidden states `[n, H]`."""
        if self.delta is None:
            return self.x
        if self.delta.dim() == self.x.dim():
            return self.x + self.delta
        total = self.delta[:, 0]
        for index in range(1, self.delta.shape[1]):
            total = total + self.delta[:, index]
        return self.x + total

    def normed(self, weight: Tensor, eps: float, out: R) -> tuple[Tensor, R]:
        """Return hidden states and their norm, which is in `out` as values or codes."""
        if self.delta is None:
            return self.x, rms_norm(self.x, weight, eps, out)
        return add_rms_norm(self.x, self.delta, weight, eps, out)

    def tokens(self, index: Tensor) -> Unsummed:
        """Return those of some tokens only, int64 `[r]`."""
        return Unsummed(self.x[index], None if self.delta is None else self.delta[index])


class FusedBlocks:
    """Decoder layers `first_layer` and following."""

    def __init__(
        self,
        config: TextConfig,
        first_layer: int,
        blocks: Sequence[PackedBlock],
        kv: KVCache,
        *,
        linears: LinearBackend,
        experts: ExpertBlock,
        deepstack_layers: Collection[int] = (),
    ) -> None:
        self._deepstack_layers = frozenset(deepstack_layers)
        self._config = config
        self._first_layer = first_layer
        self._blocks = tuple(blocks)
        self._kv = kv
        self._linears = linears
        self._experts = experts

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        step: AttentionStep,
        additions: VisualAddition | None = None,
        wanted: Tensor | None = None,
    ) -> Unsummed:
        """Take hidden states `[n, H]` through all blocks; `rotation` as of `stages.qwen3_vl.rope.text_rotation`.

        `additions` is asked behind each of `deepstack_layers`. Of the last block come only the tokens at `wanted`,
        int64 `[r]`: of a prompt all others are done once their keys and values are in the cache.
        """
        state, last = Unsummed(x, None), len(self._blocks) - 1
        for index, block in enumerate(self._blocks):
            layer = self._first_layer + index
            adds = additions is not None and layer in self._deepstack_layers
            state = self._block(index, block, state, rotation, step, None if adds or index < last else wanted)
            if adds and additions is not None:
                state = Unsummed(additions(state.summed(), layer), None)
                state = state if wanted is None or index < last else state.tokens(wanted)
        return state

    def _block(
        self,
        index: int,
        block: PackedBlock,
        state: Unsummed,
        rotation: tuple[Tensor, Tensor],
        step: AttentionStep,
        wanted: Tensor | None,
    ) -> Unsummed:
        eps = self._config.rms_norm_eps
        keys, values = self._kv.keys(index), self._kv.values(index)
        x, normed = state.normed(block.input_norm, eps, self._linears.rows_for(state.x, block.qkv))
        qkv = self._linears.linear(normed, block.qkv)
        q = enter_cache(qkv, (block.q_norm, block.k_norm), rotation, eps, keys, values, step.slots)
        attended = step.attend(q, keys, values).flatten(1)
        if wanted is not None:
            x, attended = x[wanted], attended[wanted]
        added, rows = self._linears.linear(attended, block.o), self._linears.rows_for(x, block.mlp.first)
        x, normed = add_rms_norm(x, added, block.post_attention_norm, eps, rows)
        return Unsummed(x, self._feed_forward(block.mlp, normed))

    def _feed_forward(self, mlp: PackedMlp | PackedExperts, normed: Rows) -> Tensor:
        if isinstance(mlp, PackedMlp):
            return self._linears.linear(self._linears.gated(normed, mlp.gate_up, mlp.down), mlp.down)
        assert isinstance(normed, Tensor), "a router is not in FP8"
        return self._experts(normed, mlp, self._config.num_experts_per_tok)
