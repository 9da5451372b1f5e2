"""Mixed microbatches as graphs: prefill chunks, pictures and decode tokens together, in fixed numbers of tokens.

    tokens   [ chunk a | chunk b | token c | token d | beyond ]    n, the next size of a few
                 │ visual rows in          │                       attention of at most C tiles and D decode tokens

A pass of several hundred tokens computes for less time than its kernels take to be launched one by one. Larger ones do
not, but their launches keep Python's lock from all other threads; beyond the largest they are launched (see `decoder`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.compute.fused.attention import AttentionKernels
from stages.compute.fused.blocks import VisualAddition
from stages.compute.fused.graph_set import GraphPool, GraphSet, StepOutput, sizes_up_to
from stages.compute.fused.model import FusedModel
from stages.compute.fused.step_inputs import DeviceInputs, Layout, StepSizes, TileRule, step_block
from stages.compute.microbatch import Microbatch
from stages.compute.visual_injection import VisualInjection
from stages.device.host_copy import Staging, pinned
from stages.kernels.sampling.logit_scan import scan
from stages.kernels.visual_rows import add_rows, replace_rows

_STRIDES = ((1024, 64), (4096, 128))
_MOST_TOKENS = _STRIDES[-1][0]


def pass_sizes(max_tokens: int) -> tuple[int, ...]:
    """Return of how many tokens there are passes."""
    return sizes_up_to(min(max_tokens, _MOST_TOKENS), _STRIDES)


def most_wanted(size: int, max_sessions: int) -> int:
    """Return of how many tokens of a pass there are logits: of decode tokens, and of the last ones of prompts."""
    return min(size, max_sessions + TileRule().most_tiles(size))


class CapturedPasses:
    """The mixed microbatches of one stage, of up to `max_tokens` tokens, `max_sessions` of them decode tokens."""

    def __init__(
        self,
        model: FusedModel,
        max_tokens: int,
        max_sessions: int,
        pool: GraphPool,
        attention: AttentionKernels,
        *,
        only_largest: bool = False,
    ) -> None:
        self._model = model
        self._attention = attention
        self._max_sessions = max_sessions
        sizes = pass_sizes(max_tokens)
        config, most = model.config, sizes[-1]
        self._block = torch.zeros(self._sizes(most).num_ints, dtype=torch.int32, device=model.device)
        self._staging = Staging(self._block)
        self._hidden = self._buffer(0 if model.is_first and model.is_last else most, config.hidden_size)
        self._embeds = self._buffer(most if model.is_first else 0, config.hidden_size)
        self._levels = {layer: self._buffer(most, config.hidden_size) for layer in model.deepstack_layers}
        self._logits = self._buffer(self._sizes(most).num_wanted, config.vocab_size)
        self._graphs = GraphSet(sizes[-1:] if only_largest else sizes, self._pass, pool)

    def size_for(self, layout: Layout, num_wanted: int) -> int | None:
        """Return the size of the graph that a microbatch takes, with logits of so many tokens; None if none does."""
        size = self._graphs.size_for(layout.num_tokens)
        if size is None or len(layout.decode_tokens) > self._max_sessions:
            return None
        sizes = self._sizes(size)
        fits = len(layout.chunks) <= sizes.num_chunks and num_wanted <= sizes.num_wanted
        return size if fits else None

    def replay(
        self,
        batch: Microbatch,
        layout: Layout,
        size: int,
        spare_slot: int,
        injection: VisualInjection | None,
        wanted: tuple[int, ...],
    ) -> StepOutput:
        """Queue the pass; of its logits, the first are those of `wanted`."""
        visual = None if injection is None else injection.places
        block = step_block(
            layout,
            self._sizes(size),
            batch.positions,
            batch.token_ids,
            spare_slot=spare_slot,
            visual=visual,
            wanted=wanted,
            out=self._staging.next(),
        )
        self._staging.send(len(block))
        if batch.hidden is not None:
            self._hidden[: layout.num_tokens].copy_(pinned(batch.hidden), non_blocking=True)
        if injection is not None:
            self._take_visual_rows(injection)
        return self._graphs.replay(size)

    def _buffer(self, length: int, width: int) -> Tensor:
        return torch.zeros(length, width, dtype=self._model.dtype, device=self._model.device)

    def _take_visual_rows(self, injection: VisualInjection) -> None:
        if injection.embeds is not None:
            self._embeds[: len(injection.embeds)].copy_(injection.embeds)
        for layer, level in injection.levels.items():
            self._levels[layer][: len(level)].copy_(level)

    def _sizes(self, size: int) -> StepSizes:
        """Return the sections of a pass of `size` tokens; those beyond the microbatch's count as decode tokens."""
        has_visual = self._model.is_first or bool(self._model.deepstack_layers)
        stride = next(stride for limit, stride in _STRIDES if size <= limit)
        return StepSizes(
            num_tokens=size,
            num_decode_tokens=min(size, self._max_sessions + stride),
            num_chunks=self._attention.tiles.most_tiles(size),
            num_visual=size if has_visual else 0,
            num_wanted=most_wanted(size, self._max_sessions) if self._model.is_last else 0,
        )

    def _pass(self, size: int) -> StepOutput:
        inputs = DeviceInputs.over(self._block, self._sizes(size))
        most_keys = self._model.config.max_position_embeddings  # how many there are is said on the GPU
        attention = self._attention.over(inputs, max_chunk_keys=most_keys)
        x, wanted = self._enter(inputs, size), inputs.wanted if self._model.is_last else None
        state = self._model.forward(x, inputs, attention, self._add(inputs), wanted)
        if wanted is None:
            out = self._hidden[:size]  # one for all sizes: what a graph returns by itself would stay taken for each
            return StepOutput(hidden=out.copy_(state.summed()))
        logits = self._model.logits(state, out=self._logits[: len(wanted)])
        return StepOutput(None, logits, scan(logits))

    def _enter(self, inputs: DeviceInputs, size: int) -> Tensor:
        if not self._model.is_first:
            return self._hidden[:size]
        x = self._model.embed(inputs.token_ids)
        replace_rows(x, inputs.visual, self._embeds)
        return x

    def _add(self, inputs: DeviceInputs) -> VisualAddition:
        def add(x: Tensor, layer: int) -> Tensor:
            add_rows(x, inputs.visual, self._levels[layer])
            return x

        return add
