"""Which tokens may follow and how likely each is, for many rows at once; then the draw.

Rows are ranked by score, highest first, and among equal scores by id, lowest first. Ranking the best few of a row of
150,000 logits takes one pass over them:

    row [V] ─► groups of 64 neighbours ─► largest of each ─► best W groups ─► their 64·W members ─► best W members

    A member of another group is behind W others: each of the W groups has one that is larger, or equal and of a
    lower id. So nothing of the best W is lost, ties included.

Shares of the distribution are whole numbers: exp((score - best) / temperature), counted in units of 2**-bits. Sums of
whole numbers do not depend on the order in which a device adds them up, so a row's token depends on nothing but the
row, whatever the batch's size and the kernels that it picks. With 150,000 tokens a unit is 2**-44 (6e-14) of the
largest share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

NUM_SPARE = 64
"""How many tokens a row may keep beyond its top k because they tie with the last of them; the lowest ids stay."""

_GROUP = 64
_LOW_HALF = 0xFFFFFFFF
_LARGEST_ID = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best tokens of `n` rows in order: `scores` fp32 `[n, W]`, `ids` int64 `[n, W]`."""

    scores: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """Settings of `n` rows on the device. `rows` int64 `[n]`; the others `[n, 1]`, fp64 but `top_k`, which is int64.

    `top_k` is at least 1, and at least the size of the vocabulary where there is no limit. `number` lies in [0, 1).
    """

    rows: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    number: Tensor

    @classmethod
    def of_table(cls, table: Tensor) -> DrawSettings:
        """From fp64 `[6, n]`, one row of the table for each field."""
        rows, temperature, top_k, top_p, min_p, number = table.unsqueeze(-1)
        return cls(rows[:, 0].long(), temperature, top_k.long(), top_p, min_p, number)


def rank_best(logits: Tensor, width: int) -> Ranked:
    """The best `width` tokens, or all if there are fewer, of each row of `[n, V]` in bf16 or fp32."""
    num_rows, vocab = logits.shape
    groups = pad(logits, (0, -vocab % _GROUP), value=-torch.inf).view(num_rows, -1, _GROUP)
    numbers = torch.arange(groups.shape[1], device=logits.device)
    keys = _keys(groups.amax(dim=-1), numbers).topk(min(width, len(numbers)), sorted=False).values
    best = _ids_of(keys)[:, :, None]
    members = groups.gather(1, best.expand(-1, -1, _GROUP))
    ids = best * _GROUP + torch.arange(_GROUP, device=logits.device)
    keys = _keys(members, ids).flatten(1).topk(min(width, vocab)).values
    return Ranked(_scores_of(keys), _ids_of(keys).clamp(max=vocab - 1))  # rows with NaN may hold ids of the padding


def rank_all(logits: Tensor) -> Ranked:
    """All tokens of each row of `[n, V]` in order."""
    scores, ids = logits.float().sort(dim=-1, descending=True, stable=True)
    return Ranked(scores, ids)


def _keys(scores: Tensor, ids: Tensor) -> Tensor:
    """int64 keys, all different, that order as (score, lower id first): the score's bits above, the id below."""
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    return (_monotone(bits).long() << 32) | (_LARGEST_ID - ids)


def _ids_of(keys: Tensor) -> Tensor:
    return _LARGEST_ID - (keys & _LOW_HALF)


def _scores_of(keys: Tensor) -> Tensor:
    return _monotone((keys >> 32).int()).view(torch.float32)


def _monotone(bits: Tensor) -> Tensor:
    """Turns the bits of fp32 numbers into int32 that order as the numbers do, and back."""
    return bits ^ ((bits >> 31) & _LARGEST_ID)


def unit_of(vocab: int) -> float:
    """How many units the largest share of a distribution has: the sum of `vocab` of them stays below 2**62."""
    return float(2 ** (62 - vocab.bit_length()))


def shares(ranked: Ranked, settings: DrawSettings, vocab: int) -> Tensor:
    """Shares int64 `[n, W]` of the tokens that top-k, top-p and min-p leave; zero for the others.

    The best token of a row has `unit_of(vocab)`.
    """
    scores = ranked.scores.double()
    relative = ((scores - scores[:, :1]) / settings.temperature).exp()
    whole = (relative * unit_of(vocab)).long() * _in_top_k(scores, settings.top_k)
    before = whole.cumsum(dim=-1) - whole
    total = whole.sum(dim=-1, keepdim=True)
    return whole * ((before < settings.top_p * total) & (relative >= settings.min_p))


def _in_top_k(scores: Tensor, top_k: Tensor) -> Tensor:
    width = scores.shape[1]
    last = scores.gather(1, (top_k - 1).clamp(max=width - 1))
    return (scores >= last) & (torch.arange(width, device=scores.device) < top_k + NUM_SPARE)


def draw(ranked: Ranked, settings: DrawSettings, vocab: int) -> Tensor:
    """A token int64 `[n]` for each row: the inverse of the cumulative distribution at the row's number."""
    cumulative = shares(ranked, settings, vocab).cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = (settings.number * total).long().minimum(total - 1)
    place = (cumulative <= target).sum(dim=-1, keepdim=True)
    return ranked.ids.gather(1, place.clamp(max=ranked.ids.shape[1] - 1))[:, 0]
