"""The sampler in one call: its tokens, and the distribution that it draws from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from broker_pipeline.errors import StageError
from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.sampling.candidates import DrawSettings, shares
from stages.compute.sampling.logit_scan import scan_logits
from stages.compute.sampling.plan import CPU_GROUPS, LogitRowRequest, plan_logit_rows
from stages.compute.sampling.sampler import Choice, SessionSampler, launch_sampling
from stages.compute.sampling.transfer import send


def sample(logits: Tensor, samplers: Sequence[SessionSampler], positions: Sequence[int]) -> list[Choice | StageError]:
    """Return one token for each row of `logits` `[r, V]`, or the error of a row that cannot be sampled."""
    pending = launch_sampling(logits, samplers, positions, scan_logits(logits))
    if logits.device.type == "cuda":
        torch.cuda.current_stream(logits.device).synchronize()
    return pending.collect()


def candidates(logits: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """Return ids int64 and probabilities fp64 of the tokens of `[V]` that the filters leave, the most likely first."""
    [drawing] = plan_logit_rows([LogitRowRequest(0, settings, 0.0)], len(logits), CPU_GROUPS).draws
    [table] = send([drawing.table], logits.device)
    ranked = drawing.rank(logits[None])
    left = shares(ranked, DrawSettings.of_table(table), len(logits))[0]
    kept = left > 0
    return ranked.ids[0][kept], left[kept].double() / left.sum()
