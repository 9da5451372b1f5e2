"""Which tokens may follow and how likely each is, for many logit rows at once; then the draw.

Tokens are ranked by score, highest first, and among equal scores by id, lowest first. Ranking the best few of 150,000
logits takes one pass over them:

    logit row [V] ─► groups of 64 neighbours ─► largest of each ─► best W groups ─► their 64·W members ─► best W members

    A member of another group is behind W others: each of the W groups has one that is larger, or equal and of a
    lower id. So nothing of the best W is lost, ties included.

Shares of the distribution are whole numbers: exp((score - best) / temperature), counted in units of 2**-bits. Sums of
whole numbers do not depend on the order in which a device adds them up, so a token depends on nothing but its logit
row, whatever the batch's size and the kernels that it picks. With 150,000 tokens a unit is 2**-44 (6e-14) of the
largest share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

NUM_SPARE = 64
"""How many tokens a logit row may keep beyond its top k because they tie with the last of them; the lowest ids stay."""

_GROUP = 64
_LARGEST_ID = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best tokens of `n` logit rows in order: `scores` fp32 `[n, W]`, `ids` int64 `[n, W]`."""

    scores: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class DrawSettings:
    """Settings of `n` logit rows on the device. `logit_rows` int64 `[n]`; the others `[n, 1]`, fp64 but `last`, int64.

    `last` is the place of the last of the top k, or of the last token that is ranked where there is no limit; `number`
    lies in [0, 1).
    """

    logit_rows: Tensor
    temperature: Tensor
    last: Tensor
    top_p: Tensor
    min_p: Tensor
    number: Tensor

    @classmethod
    def of_table(cls, table: Tensor) -> DrawSettings:
        """Read fp64 `[6, n]`, a line of the table for each field."""
        logit_rows, temperature, last, top_p, min_p, number = table.unsqueeze(-1)
        return cls(logit_rows[:, 0].long(), temperature, last.long(), top_p, min_p, number)


def rank_best(logits: Tensor, width: int) -> Ranked:
    """Return the best `width` tokens, or all if there are fewer, of each of `[n, V]` in bf16 or fp32."""
    vocab = logits.shape[1]
    groups = _groups(logits)
    numbers = torch.arange(groups.shape[1], device=logits.device)
    best = _keys(groups.amax(dim=-1), numbers).topk(min(width, len(numbers)), sorted=False).indices[:, :, None]
    members = groups.gather(1, best.expand(-1, -1, _GROUP)).float()
    ids = best * _GROUP + torch.arange(_GROUP, device=logits.device)
    places = _keys(members, ids).flatten(1).topk(min(width, vocab)).indices
    ids = ids.flatten(1).gather(1, places)
    if vocab % _GROUP:
        ids = ids.clamp(max=vocab - 1)  # with NaN there may be ids of the padding
    return Ranked(members.flatten(1).gather(1, places), ids)


def _groups(logits: Tensor) -> Tensor:
    """View `[n, V]` as `[n, G, 64]`, without a copy where V is a multiple of 64."""
    num_logit_rows, vocab = logits.shape
    if vocab % _GROUP:
        logits = pad(logits, (0, -vocab % _GROUP), value=-torch.inf)
    return logits.view(num_logit_rows, -1, _GROUP)


def rank_all(logits: Tensor) -> Ranked:
    """Return all tokens of each of `[n, V]` in order."""
    scores, ids = logits.float().sort(dim=-1, descending=True, stable=True)
    return Ranked(scores, ids)


def _keys(scores: Tensor, ids: Tensor) -> Tensor:
    """Return int64 keys, all different, that order as (score, lower id first): the score's bits above, the id below."""
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
    ordered = bits ^ ((bits >> 31) & _LARGEST_ID)  # of negative numbers, the larger has the smaller bits
    return (ordered.long() << 32) | (_LARGEST_ID - ids)


def unit_of(vocab: int) -> float:
    """Return how many units the largest share of a distribution has: the sum of `vocab` of them stays below 2**62."""
    return float(2 ** (62 - vocab.bit_length()))


def shares(ranked: Ranked, settings: DrawSettings, vocab: int) -> Tensor:
    """Return shares int64 `[n, W]` of the tokens that top-k, top-p and min-p leave; zero for the others.

    The best token of each has `unit_of(vocab)`.
    """
    scores = ranked.scores.double()
    relative = ((scores - scores[:, :1]) / settings.temperature).exp()
    whole = (relative * unit_of(vocab)).long() * _in_top_k(scores, settings.last)
    until = whole.cumsum(dim=-1)
    return whole * ((until - whole < settings.top_p * until[:, -1:]) & (relative >= settings.min_p))


def _in_top_k(scores: Tensor, last: Tensor) -> Tensor:
    beyond = torch.arange(-NUM_SPARE, scores.shape[1] - NUM_SPARE, device=scores.device)
    return (scores >= scores.gather(1, last)) & (beyond <= last)


def draw(ranked: Ranked, settings: DrawSettings, vocab: int) -> Tensor:
    """Return a token each, int64 `[n]`: the inverse of the cumulative distribution at the number drawn."""
    until = shares(ranked, settings, vocab).cumsum(dim=-1)
    target = (settings.number * until[:, -1:]).long()  # below the total: a number below 1 stays so in rounding
    place = (until <= target).sum(dim=-1, keepdim=True)
    return ranked.ids.gather(1, place.clamp(max=ranked.ids.shape[1] - 1))[:, 0]  # with NaN the total is 0
