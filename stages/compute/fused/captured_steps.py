"""Decode steps as graphs: every segment is one token and its drafts, none of them visual.

    inputs of B tokens ─► [embed] ─► blocks ─► hidden, or norm, head, scan

A draft is a decode token that sees those before it, which are stored by then. The tokens beyond those of a step cost
what their share of the products costs, and see no keys.
"""

from __future__ import annotations

import torch

from stages.compute.fused.attention import AttentionKernels
from stages.compute.fused.graph_set import GraphPool, GraphSet, StepOutput, sizes_up_to
from stages.compute.fused.model import FusedModel
from stages.compute.fused.step_inputs import DeviceInputs, Layout, StepSizes, step_block
from stages.compute.microbatch import Microbatch
from stages.device.host_copy import Staging, pinned
from stages.kernels.sampling.logit_scan import scan

_SMALL = (1, 2, 4)
_STRIDES = ((64, 8), (256, 16), (1024, 32))


def step_sizes(max_sessions: int) -> tuple[int, ...]:
    """Return of how many sessions there are steps."""
    return sizes_up_to(max_sessions, _STRIDES, _SMALL)


class CapturedSteps:
    """The decode steps of one stage, of up to `max_sessions` tokens."""

    def __init__(
        self,
        model: FusedModel,
        max_sessions: int,
        pool: GraphPool,
        attention: AttentionKernels,
        *,
        only_largest: bool = False,
    ) -> None:
        self._model = model
        self._attention = attention
        sizes = step_sizes(max_sessions)
        config, most = model.config, sizes[-1]
        self._block = torch.zeros(StepSizes(most, most).num_ints, dtype=torch.int32, device=model.device)
        self._staging = Staging(self._block)
        self._hidden = torch.zeros(most, config.hidden_size, dtype=model.dtype, device=model.device)
        num_logits = most if model.is_last else 0
        self._logits = torch.empty(num_logits, config.vocab_size, dtype=model.dtype, device=model.device)
        self._graphs = GraphSet(sizes[-1:] if only_largest else sizes, self._step, pool)

    def size_for(self, batch: Microbatch) -> int | None:
        """Return the size of the graph that a microbatch takes; None if none does."""
        return self._graphs.size_for(batch.num_tokens) if batch.is_decode_step else None

    def replay(self, batch: Microbatch, layout: Layout, size: int, spare_slot: int) -> StepOutput:
        """Queue the step."""
        sizes, buffer = StepSizes(size, size), self._staging.next()
        block = step_block(layout, sizes, batch.positions, batch.token_ids, spare_slot=spare_slot, out=buffer)
        self._staging.send(len(block))
        if batch.hidden is not None:
            self._hidden[: layout.num_tokens].copy_(pinned(batch.hidden), non_blocking=True)
        return self._graphs.replay(size)

    def _step(self, size: int) -> StepOutput:
        """Compute `size` single tokens over the fixed buffers."""
        inputs = DeviceInputs.over(self._block, StepSizes(size, size))
        x = self._model.embed(inputs.token_ids) if self._model.is_first else self._hidden[:size]
        state = self._model.forward(x, inputs, self._attention.over(inputs))
        if not self._model.is_last:
            return StepOutput(hidden=state.summed())
        logits = self._model.logits(state, out=self._logits[:size])
        return StepOutput(None, logits, scan(logits))
