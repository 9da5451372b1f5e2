"""The decoder on a GPU. Queues work and returns: nobody waits for the device here.

single tokens, with drafts  a decode step as one graph (`captured_steps`)
up to 4,096 tokens          a mixed pass as one graph (`captured_passes`)
more, or anything unusual   the same kernels, launched one by one
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.compute.decoder import Computed, attention_spans
from stages.compute.fused.attention import AttentionKernels
from stages.compute.fused.blocks import Unsummed, VisualAddition
from stages.compute.fused.captured_passes import CapturedPasses
from stages.compute.fused.captured_steps import CapturedSteps
from stages.compute.fused.graph_set import StepOutput
from stages.compute.fused.model import FusedModel
from stages.compute.fused.step_inputs import DeviceInputs, Layout, step_block
from stages.compute.kv.cache import KVCache
from stages.compute.microbatch import Microbatch
from stages.compute.sampling.logit_scan import LogitScan
from stages.compute.visual_injection import VisualInjection
from stages.device.host_copy import to_device
from stages.kernels.sampling.logit_scan import scan


class FusedDecoder:
    """Implements `Decoder` with the kernels of `stages.kernels`."""

    def __init__(self, model: FusedModel, kv: KVCache, attention: AttentionKernels) -> None:
        """Compute batch-invariantly where the products of `model` and `attention` are."""
        self.device = model.device
        self.dtype = model.dtype
        self._model = model
        self._kv = kv
        self._attention = attention
        self._steps: CapturedSteps | None = None
        self._passes: CapturedPasses | None = None

    def capture(self, max_sessions: int, max_tokens: int, *, only_largest: bool = False) -> None:
        """Build the graphs: steps of up to `max_sessions` sessions, and passes of up to `max_tokens` tokens.

        The largest ones decide how much memory all of them take.
        """
        pool, attention = torch.cuda.graph_pool_handle(), self._attention
        self._passes = CapturedPasses(self._model, max_tokens, max_sessions, pool, attention, only_largest=only_largest)
        self._steps = CapturedSteps(self._model, max_sessions, pool, attention, only_largest=only_largest)

    # --- Decoder ------------------------------------------------------------------------------------------------------

    def step(self, batch: Microbatch, injection: VisualInjection | None, wanted: Sequence[int]) -> Computed:
        """See `Decoder`."""
        if not batch.segments:
            return Computed(hidden=torch.empty(0, self._model.config.hidden_size, dtype=self.dtype, device=self.device))
        layout = self._layout(batch)
        wanted = wanted if self._model.is_last else ()
        if self._steps is not None and (size := self._steps.size_for(batch)):
            output = self._steps.replay(batch, layout, size, self._kv.spare_slot)
            return self._computed(output, layout, range(layout.num_tokens), wanted)
        if self._passes is not None and (size := self._passes.size_for(layout, len(wanted))):
            output = self._passes.replay(batch, layout, size, self._kv.spare_slot, injection, tuple(wanted))
            return self._computed(output, layout, wanted, wanted)
        return self.launch(batch, injection, wanted)

    def forward(self, batch: Microbatch, injection: VisualInjection | None) -> Tensor:
        """See `Decoder`."""
        return self._pass(batch, injection).summed()

    def logits(self, hidden: Tensor, wanted: Sequence[int]) -> Tensor:
        """See `Decoder`."""
        return self._model.logits(Unsummed(hidden[self._index(wanted)], None))

    # --- graphs -------------------------------------------------------------------------------------------------------

    def _computed(self, output: StepOutput, layout: Layout, given: Sequence[int], wanted: Sequence[int]) -> Computed:
        """Return what a graph gave; its logits are those of the tokens at `given`."""
        if output.logits is None:
            assert output.hidden is not None, "a captured step gives one or the other"
            return Computed(hidden=output.hidden[: layout.num_tokens].clone())
        if not wanted:
            return Computed()
        assert output.greedy is not None, "captured with the logits"
        num = len(given)
        found = Computed(logits=output.logits[:num], scan=LogitScan(output.greedy[:num], is_by_kernels=True))
        return found if len(wanted) == num else found.logit_rows(self._index(wanted))

    # --- one kernel after the other -----------------------------------------------------------------------------------

    def launch(self, batch: Microbatch, injection: VisualInjection | None, wanted: Sequence[int]) -> Computed:
        """Compute as `step` does where no graph takes the microbatch."""
        index = self._index(wanted) if self._model.is_last else None
        state = self._pass(batch, injection, index)
        if index is None:
            return Computed(hidden=state.summed())
        if not wanted:
            return Computed()
        logits = self._model.logits(state)
        return Computed(logits=logits, scan=LogitScan(scan(logits), is_by_kernels=True))

    def _pass(self, batch: Microbatch, injection: VisualInjection | None, wanted: Tensor | None = None) -> Unsummed:
        layout = self._layout(batch)
        sizes = layout.sizes()
        block = step_block(layout, sizes, batch.positions, batch.token_ids)
        inputs = DeviceInputs.over(to_device(torch.from_numpy(block), self.device), sizes)
        attention = self._attention.over(inputs, max_chunk_keys=layout.max_chunk_keys)
        if batch.hidden is None:
            x = self._model.embed(inputs.token_ids)
            x = x if injection is None else injection.replace(x)
        else:
            x = to_device(batch.hidden, self.device)
        return self._model.forward(x, inputs, attention, _addition(injection), wanted)

    def _layout(self, batch: Microbatch) -> Layout:
        spans = attention_spans(batch.segments, self._kv)
        return Layout.of(spans, self._attention.tiles)

    def _index(self, places: Sequence[int]) -> Tensor:
        return to_device(torch.tensor(places, dtype=torch.int64), self.device)


def _addition(injection: VisualInjection | None) -> VisualAddition | None:
    return None if injection is None else injection.add
