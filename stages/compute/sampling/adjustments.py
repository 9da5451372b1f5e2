"""What is done to logit rows before anything is chosen from them: biases, then penalties, then masks, grammars last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from broker_pipeline.messages.sampling import SamplingSettings
from stages.compute.grammar.token_bits import TokenBits, ruled_out
from stages.compute.sampling.penalties import TokenHistory, penalise_logit_rows
from stages.compute.sampling.transfer import Numbers

MASKED = torch.finfo(torch.float32).min
"""The score of a token that may not come: as finite as the others', which are checked together with it."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What is done to one logit row. `biases` are fp64 `[2, b]`: token ids, and what is added to their logits."""

    settings: SamplingSettings
    biases: Numbers
    history: TokenHistory
    masked: set[int]
    allowed: TokenBits | None = None
    """Those that a grammar and everything else leave; None without a grammar."""


@dataclass(frozen=True, slots=True)
class AdjustmentTables:
    """The same for `p` logit rows, in fp64; on top of each table of tokens is the place among the p.

    `biases` `[3, b]` and `penalised` `[3, m]` hold ids, and what is added or how often they were generated, `masked`
    `[2, k]` ids; `strengths` `[3, p]` repetition, frequency and presence penalty of each logit row. `allowed` `[g, w]`
    holds bits of tokens, 64 in a number, of those logit rows that have a grammar, and `constrained` `[g]` their places.
    """

    biases: Numbers
    penalised: Numbers
    strengths: Numbers
    masked: Numbers
    constrained: Numbers
    allowed: Numbers

    @classmethod
    def of(cls, adjustments: Sequence[Adjustment]) -> AdjustmentTables:
        """Lay out what `adjust_logit_rows` needs."""
        settings = [each.settings for each in adjustments]
        allowed = {place: each.allowed for place, each in enumerate(adjustments) if each.allowed is not None}
        strengths = [(each.repetition_penalty, each.frequency_penalty, each.presence_penalty) for each in settings]
        return cls(
            biases=_placed([each.biases for each in adjustments]),
            penalised=_placed([each.history.table for each in adjustments]),
            strengths=np.array(strengths, dtype=np.float64).T,
            masked=_placed([np.array([sorted(each.masked)], dtype=np.float64) for each in adjustments]),
            constrained=np.array(list(allowed), dtype=np.float64),
            allowed=np.array([bits.view(np.float64) for bits in allowed.values()], dtype=np.float64),
        )

    @property
    def arrays(self) -> list[Numbers]:
        """Return the tables in the order in which `adjust_logit_rows` takes them."""
        return [getattr(self, name) for name in self.__slots__]


NUM_TABLES = len(fields(AdjustmentTables))


def adjust_logit_rows(
    scores: Tensor,
    biases: Tensor,
    penalised: Tensor,
    strengths: Tensor,
    masked: Tensor,
    constrained: Tensor,
    allowed: Tensor,
) -> Tensor:
    """Adjust `scores` fp32 `[p, V]` in place by the tables of `AdjustmentTables`, on their device."""
    flat = scores.view(-1)
    if biases.numel():
        where = _where(biases, scores.shape[1])
        flat.scatter_(0, where, flat.index_select(0, where) + biases[2].float())
    if penalised.numel():
        penalise_logit_rows(scores, penalised, strengths)
    if masked.numel():
        flat.index_fill_(0, _where(masked, scores.shape[1]), MASKED)
    if constrained.numel():
        is_ruled_out = ruled_out(allowed.view(torch.uint8), scores.shape[1])
        if len(constrained) < len(scores):
            nothing = torch.zeros_like(scores, dtype=torch.bool)
            is_ruled_out = nothing.index_copy_(0, constrained.long(), is_ruled_out)
        scores.masked_fill_(is_ruled_out, MASKED)
    return scores


def _where(table: Tensor, vocab: int) -> Tensor:
    indices = table[:2].long()
    return indices[0] * vocab + indices[1]


def _placed(parts: Sequence[NDArray[np.float64]]) -> Numbers:
    """Join `[h, m_i]` of `p` logit rows into `[1 + h, m]`."""
    places = np.repeat(np.arange(len(parts)), [part.shape[1] for part in parts])
    return np.vstack((places, np.concatenate(parts, axis=1)))
