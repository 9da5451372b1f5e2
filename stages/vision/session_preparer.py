"""Turns a conversation into tokens, positions and visual rows: what one `PrepareRequest` asks for.

look at every picture ─► lay out the prompt ─► does it fit? ─► encode ─► visual rows to their stages ─► answer
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor

from broker_pipeline.errors import MediaError, PipelineError, PromptTooLongError
from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.jobs import TextPart, VisualPart
from broker_pipeline.messages.vision import PrepareRequest
from broker_pipeline.tracing.activities import LAY_OUT
from broker_pipeline.tracing.tracer import tracer
from stages.prompt.chat import Prompt, PromptBuilder
from stages.qwen3_vl.positions import PositionPlan, VisualGroup, plan_positions
from stages.vision.visual_encoder import Look, VisualEncoder
from stages.vision.visual_row_sender import VisualRowSender
from stages.vision.work_pools import WorkPools
from stages.worker.together import together

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt as the conductor needs it; its visual rows are at their stages. Ids int32 `[n]`, positions `[3, n]`."""

    token_ids: Tensor
    positions: Tensor
    position_delta: int
    visual: tuple[VisualSpan, ...]
    visual_content: tuple[str, ...]
    """Names what the rows of each span were made of."""
    fetch_s: float
    preprocess_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class _Layout:
    prompt: Prompt
    token_ids: Tensor
    plan: PositionPlan


@dataclass(slots=True)
class _Allowance:
    """Visual tokens that the prompt may still take; spent as pictures are looked at, before all are in memory."""

    limit: int
    num_spent: int = field(default=0)

    def spend(self, num_tokens: int) -> None:
        self.num_spent += num_tokens
        if self.num_spent > self.limit:
            raise PromptTooLongError(
                f"the pictures take more than the {self.limit} tokens that the prompt may have", field="messages"
            )


class SessionPreparer:
    """Prepares sessions; any number at the same time."""

    def __init__(
        self,
        prompts: PromptBuilder,
        encoder: VisualEncoder,
        sender: VisualRowSender,
        pools: WorkPools,
        merge: int,
    ) -> None:
        """`merge` is the side, in patches, of the square that becomes one visual token."""
        self._prompts = prompts
        self._encoder = encoder
        self._sender = sender
        self._pools = pools
        self._patches_per_token = merge**2

    async def prepare(self, request: PrepareRequest, deadline: float) -> Prepared:
        """Do all of it; `deadline` is in seconds of the monotonic clock.

        Raises:
            MediaError: a picture cannot be used; `field` says which.
            PromptTooLongError: the prompt has more tokens than `request.max_prompt_tokens`.
            InvalidRequestError: the model's chat template refuses the messages.
            PipelineError: the tower failed, or a stage did not take its visual rows.
        """
        looks = await self._look_at_all(request)
        lay_out = tracer.measured(LAY_OUT, lambda: self._lay_out(request, looks))
        layout = await self._pools.for_texts(request.messages, lay_out)
        started = computed = time.monotonic()
        if looks:
            output = await self._encoder.encode_all(looks)
            computed = time.monotonic()
            await self._sender.send(request, output, deadline)
        return self._prepared(layout, looks, compute_s=computed - started)

    def _lay_out(self, request: PrepareRequest, looks: Sequence[Look]) -> _Layout:
        visuals = [look.visual for look in looks]
        prompt = self._prompts.build(
            request.messages, visuals, template=request.template, max_tokens=request.max_prompt_tokens
        )
        token_ids = torch.tensor(prompt.token_ids, dtype=torch.int32)
        return _Layout(prompt, token_ids, plan_positions(len(prompt.token_ids), prompt.groups))

    async def _look_at_all(self, request: PrepareRequest) -> list[Look]:
        allowance = _Allowance(request.max_prompt_tokens)
        parts = [
            (part, f"messages[{turn}].content[{place}]")
            for turn, message in enumerate(request.messages)
            for place, part in enumerate(message.content)
            if not isinstance(part, TextPart)
        ]
        return await together(self._look(part, where, allowance) for part, where in parts)

    async def _look(self, part: VisualPart, where: str, allowance: _Allowance) -> Look:
        try:
            look = await self._encoder.look(part)
        except MediaError as error:
            raise _located(error, where) from error
        allowance.spend(look.visual.grid.num_patches // self._patches_per_token)
        return look

    def _prepared(self, layout: _Layout, looks: Sequence[Look], *, compute_s: float) -> Prepared:
        groups = layout.prompt.groups
        return Prepared(
            token_ids=layout.token_ids,
            positions=layout.plan.positions,
            position_delta=layout.plan.delta,
            visual=tuple(VisualSpan(offset=group.start, count=group.count, row=group.visual_row) for group in groups),
            visual_content=self._content(groups, looks),
            fetch_s=max((look.fetch_s for look in looks), default=0.0),
            preprocess_s=max((look.preprocess_s for look in looks), default=0.0),
            compute_s=compute_s,
        )

    def _content(self, groups: Sequence[VisualGroup], looks: Sequence[Look]) -> tuple[str, ...]:
        """Name what the rows of each group are: whose, and from which of its rows on."""
        counts = [look.visual.grid.num_patches // self._patches_per_token for look in looks]
        first_rows = list(accumulate(counts, initial=0))
        places = [(bisect(first_rows, group.visual_row) - 1, group.visual_row) for group in groups]
        return tuple(f"{looks[place].key}+{row - first_rows[place]}" for place, row in places)


def _located(error: MediaError, where: str) -> PipelineError:
    """Return the same error, with the place of the picture in the request: several requests may share one look."""
    return type(error)(error.message, field=where)
