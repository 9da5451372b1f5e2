"""A stage's layers on the GPU, from what is told of a microbatch to hidden states or logits. Queues work, no more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from stages.compute.fused.attention import AttentionStep
from stages.compute.fused.blocks import ExpertBlock, FusedBlocks, PackedBlock, Unsummed, VisualAddition
from stages.compute.fused.linear_backends import LinearBackend
from stages.compute.fused.step_inputs import DeviceInputs
from stages.compute.kv.cache import KVCache
from stages.kernels.rotation import rotation
from stages.qwen3_vl.rope import TextRope
from stages.qwen3_vl.text_config import TextConfig
from stages.weights.fp8_matrix import Fp8Matrix, Weight


@dataclass(frozen=True, slots=True)
class FusedWeights:
    """A stage's tensors, packed: `embed` `[V, H]` at the first stage, `norm` `[H]` and `head` `[V, H]` at the last."""

    blocks: tuple[PackedBlock, ...]
    embed: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None

    @property
    def is_fp8(self) -> bool:
        """Whether matrices are in FP8."""
        return any(isinstance(block.o, Fp8Matrix) for block in self.blocks)

    def matrices(self) -> list[Weight]:
        """Return what rows are multiplied by, but for experts."""
        found = [] if self.head is None else [self.head]
        return [matrix for block in self.blocks for matrix in block.matrices()] + found


class FusedModel:
    """The stage that owns decoder layers `first_layer` and following."""

    def __init__(
        self,
        config: TextConfig,
        first_layer: int,
        weights: FusedWeights,
        kv: KVCache,
        *,
        linears: LinearBackend,
        experts: ExpertBlock,
        num_deepstack_levels: int,
    ) -> None:
        self.config = config
        self.device = weights.blocks[0].input_norm.device
        self.dtype = weights.blocks[0].input_norm.dtype
        self.layers = range(first_layer, first_layer + len(weights.blocks))
        self._weights = weights
        self._linears = linears
        self.deepstack_layers = tuple(layer for layer in self.layers if layer < num_deepstack_levels)
        """Layers behind which visual rows are added."""
        self._blocks = FusedBlocks(
            config,
            first_layer,
            weights.blocks,
            kv,
            linears=linears,
            experts=experts,
            deepstack_layers=self.deepstack_layers,
        )
        self._rope = TextRope.of(config, self.device)

    @property
    def is_first(self) -> bool:
        """Whether tokens come in rather than hidden states."""
        return self._weights.embed is not None

    @property
    def is_last(self) -> bool:
        """Whether logits come out rather than hidden states."""
        return self._weights.head is not None

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return hidden states `[n, H]` of int32 token ids `[n]`."""
        assert self._weights.embed is not None, "a first stage has the embedding"
        return F.embedding(token_ids, self._weights.embed)

    def forward(
        self,
        x: Tensor,
        inputs: DeviceInputs,
        attention: AttentionStep,
        additions: VisualAddition | None = None,
        wanted: Tensor | None = None,
    ) -> Unsummed:
        """Take hidden states `[n, H]` through all blocks; only those of tokens at `wanted` `[r]` come out."""
        rope = self._rope
        turned = rotation(inputs.positions, rope.frequencies, rope.axes, rope.scale, self.dtype)
        return self._blocks.forward(x, turned, attention, additions, wanted)

    def logits(self, state: Unsummed, out: Tensor | None = None) -> Tensor:
        """Return logits `[r, V]` of `state`, in `out` where that is given."""
        assert self._weights.norm is not None, "only the last stage has the final norm"
        assert self._weights.head is not None, "only the last stage has the head"
        _, normed = state.normed(self._weights.norm, self.config.rms_norm_eps, torch.empty_like(state.x))
        if out is None:
            return self._linears.linear(normed, self._weights.head)
        self._linears.linear_into(out, normed, self._weights.head)
        return out
