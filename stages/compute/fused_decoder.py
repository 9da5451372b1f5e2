"""The decoder on a card: captured decode steps, and one ragged pass for everything else.

    only single tokens, no pictures     one graph: inputs in, blocks, [norm, head, greedy choice], outputs
    anything with a prefill chunk       the same blocks launched one by one; chunks and rows share every product

Both queue work and return; nobody waits for the device here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from broker_pipeline.tracing.activities import COPY_IN
from stages.compute.card_times import timed
from stages.compute.decoder import Computed, attention_spans
from stages.compute.fused_attention import FusedAttention
from stages.compute.fused_blocks import ExpertBlock, FusedBlocks, PackedBlock, Unsummed
from stages.compute.host_copy import pinned, to_device
from stages.compute.kv_cache import KVCache
from stages.compute.logit_scan import LogitScan
from stages.compute.microbatch import Microbatch
from stages.compute.step_graphs import StepGraphs, StepOutput, graph_sizes
from stages.compute.step_inputs import DeviceInputs, StepInputs, StepSizes, step_inputs
from stages.compute.visual_injection import VisualInjection
from stages.kernels.logit_scan import scan
from stages.kernels.rotation import rotation
from stages.qwen3_vl.config import TextConfig
from stages.qwen3_vl.moe import Linear
from stages.qwen3_vl.rope import frequency_axes, text_frequencies


@dataclass(frozen=True, slots=True)
class FusedWeights:
    """A stage's tensors, packed: `embed` `[V, H]` at the first stage, `norm` `[H]` and `head` `[V, H]` at the last."""

    blocks: tuple[PackedBlock, ...]
    embed: Tensor | None = None
    norm: Tensor | None = None
    head: Tensor | None = None


class FusedDecoder:
    """Implements `Decoder` with the kernels of `stages.kernels`."""

    def __init__(
        self,
        config: TextConfig,
        first_layer: int,
        weights: FusedWeights,
        kv: KVCache,
        *,
        linear: Linear,
        experts: ExpertBlock,
        is_deterministic: bool = False,
    ) -> None:
        self.device = weights.blocks[0].qkv.device
        self.dtype = weights.blocks[0].qkv.dtype
        self._config = config
        self._weights = weights
        self._kv = kv
        self._linear = linear
        self._is_deterministic = is_deterministic
        self._blocks = FusedBlocks(config, first_layer, weights.blocks, kv, linear=linear, experts=experts)
        self._frequencies = text_frequencies(config, self.device)
        self._axes = frequency_axes(config, self.device)
        self._graphs: StepGraphs | None = None
        self._graph_inputs = torch.empty(0, dtype=torch.int32, device=self.device)
        self._graph_hidden = torch.empty(0, config.hidden_size, dtype=self.dtype, device=self.device)
        self._graph_logits = torch.empty(0, config.vocab_size, dtype=self.dtype, device=self.device)

    # --- Decoder ------------------------------------------------------------------------------------------------------

    def step(self, batch: Microbatch, injection: VisualInjection | None, wanted: Sequence[int]) -> Computed:
        """See `Decoder`."""
        if not batch.segments:
            return Computed(hidden=torch.empty(0, self._config.hidden_size, dtype=self.dtype, device=self.device))
        size = self._graph_size(batch, injection)
        if size is not None:
            return self._replay(batch, size, wanted)
        state = self._pass(batch, injection)
        if self._weights.head is None:
            return Computed(hidden=state.summed())
        if not wanted:
            return Computed()
        logits = self._logits(state.rows(self._index(wanted)))
        return Computed(logits=logits, scan=LogitScan(*scan(logits)))

    def forward(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        """See `Decoder`."""
        return self._pass(batch, injection).summed()

    def logits(self, hidden: Tensor, rows: Sequence[int]) -> Tensor:
        """See `Decoder`."""
        return self._logits(Unsummed(hidden[self._index(rows)], None))

    # --- the ragged pass ----------------------------------------------------------------------------------------------

    def _pass(self, batch: Microbatch, injection: VisualInjection | None) -> Unsummed:
        host = self._host_inputs(batch)
        inputs = DeviceInputs.over(to_device(torch.from_numpy(host.block), self.device), host.sizes)
        step = FusedAttention.of(inputs, host, has_fixed_parts=self._is_deterministic)
        if batch.hidden is None:
            x = self._embed(inputs)
            x = x if injection is None else injection.replace(x)
        else:
            x = to_device(batch.hidden, self.device)
        return self._blocks.forward(x, self._rotation(inputs), step, injection)

    def _host_inputs(self, batch: Microbatch, padded_to: int | None = None) -> StepInputs:
        return step_inputs(
            attention_spans(batch.segments, self._kv),
            batch.positions,
            batch.token_ids,
            every_token_alone=self._is_deterministic or padded_to is not None,
            padded_to=padded_to,
            spare_slot=self._kv.spare_slot,
        )

    def _embed(self, inputs: DeviceInputs) -> Tensor:
        assert self._weights.embed is not None, "a first stage has the embedding"
        return F.embedding(inputs.token_ids, self._weights.embed)

    def _rotation(self, inputs: DeviceInputs) -> tuple[Tensor, Tensor]:
        return rotation(inputs.positions, self._frequencies, self._axes, self.dtype)

    def _logits(self, state: Unsummed) -> Tensor:
        assert self._weights.norm is not None, "only the last stage has the final norm"
        assert self._weights.head is not None, "only the last stage has the head"
        _, normed = state.normed(self._weights.norm, self._config.rms_norm_eps)
        return self._linear(normed, self._weights.head)

    def _index(self, rows: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(rows, dtype=torch.int64), self.device)

    # --- captured steps -----------------------------------------------------------------------------------------------

    def capture(self, most_rows: int) -> None:
        """Captures decode steps of up to `most_rows` rows; afterwards they are used wherever they fit."""
        most_rows = graph_sizes(most_rows)[-1]
        sizes = StepSizes(most_rows, most_rows, 0)
        self._graph_inputs = torch.zeros(sizes.num_ints, dtype=torch.int32, device=self.device)
        if self._weights.embed is None:
            self._graph_hidden = torch.zeros(most_rows, self._config.hidden_size, dtype=self.dtype, device=self.device)
        if self._weights.head is not None:
            self._graph_logits = torch.empty(most_rows, self._config.vocab_size, dtype=self.dtype, device=self.device)
        self._graphs = StepGraphs(self._captured, most_rows)

    def _captured(self, size: int) -> StepOutput:
        """The step of `size` single tokens over the fixed buffers."""
        inputs = DeviceInputs.over(self._graph_inputs, StepSizes(size, size, 0))
        x = self._graph_hidden[:size] if self._weights.embed is None else self._embed(inputs)
        step = FusedAttention(inputs, has_fixed_parts=self._is_deterministic)
        state = self._blocks.forward(x, self._rotation(inputs), step)
        if self._weights.head is None:
            return StepOutput(hidden=state.summed())
        logits = self._graph_logits[:size]
        self._head_into(state, logits)
        greedy, is_finite = scan(logits)
        return StepOutput(logits=logits, greedy=greedy, is_finite=is_finite)

    def _head_into(self, state: Unsummed, logits: Tensor) -> None:
        assert self._weights.norm is not None, "only the last stage has the final norm"
        assert self._weights.head is not None, "only the last stage has the head"
        _, normed = state.normed(self._weights.norm, self._config.rms_norm_eps)
        if self._linear is cublas:
            torch.mm(normed, self._weights.head.t(), out=logits)
        else:
            logits.copy_(self._linear(normed, self._weights.head))

    def _graph_size(self, batch: Microbatch, injection: VisualInjection | None) -> int | None:
        if self._graphs is None or injection is not None or any(segment.count > 1 for segment in batch.segments):
            return None
        return self._graphs.size_for(len(batch.segments))

    def _replay(self, batch: Microbatch, size: int, wanted: Sequence[int]) -> Computed:
        assert self._graphs is not None, "a size was found"
        host = self._host_inputs(batch, padded_to=size)
        num_rows = len(batch.segments)
        block, hidden = pinned(torch.from_numpy(host.block)), None if batch.hidden is None else pinned(batch.hidden)
        with timed(COPY_IN, self.device):
            self._graph_inputs[: block.shape[0]].copy_(block, non_blocking=True)
            if hidden is not None:
                self._graph_hidden[:num_rows].copy_(hidden, non_blocking=True)
        output = self._graphs.replay(size)
        if output.logits is None:
            assert output.hidden is not None, "a captured step gives one or the other"
            return Computed(hidden=output.hidden[:num_rows].clone())
        assert output.greedy is not None, "captured with the logits"
        assert output.is_finite is not None, "captured with the logits"
        found = Computed(
            logits=output.logits[:num_rows], scan=LogitScan(output.greedy[:num_rows], output.is_finite[:num_rows])
        )
        return found if len(wanted) == num_rows else found.rows(self._index(wanted))


def cublas(x: Tensor, weight: Tensor) -> Tensor:
    """The library's product: fast, and free to add up in another order for another number of rows."""
    return F.linear(x, weight)
