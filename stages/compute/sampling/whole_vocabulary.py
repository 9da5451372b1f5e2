"""The draw from the whole vocabulary, without sorting it.

The draw walks down the ranking until the shares add up to a target. Where that is, a histogram over the bits of the
scores tells, as in a radix sort, 16 bits at a time:

    digit of every score, best first    0      1      2      3    …  65535
    shares that fall on it              12     0      7      30
    added up                            12     12     19     49
                                                             └─ a target of 25 lies here, 6 behind its beginning

    A second histogram, of the scores with this digit alone, finds the lower 16 bits (bf16 has none). All tokens with
    the score found have the same share, and follow each other by id: whole division tells which of them it is.

Where top-k and top-p cut is found in the same way; min-p cuts by a comparison. Each leaves a beginning of the ranking,
so that all that has to be known of a cut is how much it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.compute.sampling.candidates import NUM_SPARE, DrawSettings, unit_of

_NUM_DIGITS = 1 << 16
_LARGEST = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class Cuts:
    """Which cuts any logit row of a batch asks for; the work for the others is left out."""

    top_k: bool
    top_p: bool
    min_p: bool


@dataclass(frozen=True, slots=True)
class Found:
    """Where the targets of `n` logit rows lie, all int64 `[n, 1]`.

    `slot` stands for the score that was found; `before` is what comes before the first token with that score, `each`
    what every one of them has, and `nth` how many of them lie before the target.
    """

    slot: Tensor
    before: Tensor
    each: Tensor
    nth: Tensor


@dataclass(frozen=True, slots=True)
class Slots:
    """The scores of `n` logit rows, int64 `[n, V]`, smaller for larger scores; `shifts` lead to a slot's digits."""

    numbers: Tensor
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, logits: Tensor) -> Slots:
        """Order the scores of `[n, V]` in bf16 or fp32."""
        bits = (logits.float() + 0.0).view(torch.int32)  # + 0.0 makes -0.0 equal to 0.0
        numbers = _LARGEST - (bits ^ ((bits >> 31) & _LARGEST)).long()
        return cls(numbers >> 16, (0,)) if logits.dtype == torch.bfloat16 else cls(numbers, (16, 0))

    def find(self, amounts: Tensor, target: Tensor) -> Found:
        """Find where `amounts` int64 `[n, V]`, added up in the order of the ranking, exceed `target` int64 `[n, 1]`.

        Tokens with equal scores have equal amounts, but for a unit that rounding may take from some.
        """
        slot, before = torch.zeros_like(target), torch.zeros_like(target)
        inside = amounts
        for shift in self.shifts:
            digits = self.numbers >> shift
            counts = amounts.new_zeros(len(amounts), _NUM_DIGITS).scatter_add_(1, digits & (_NUM_DIGITS - 1), inside)
            until = counts.cumsum(dim=-1)
            digit = (until <= target - before).sum(dim=-1, keepdim=True).clamp(max=_NUM_DIGITS - 1)
            before = before + (until - counts).gather(1, digit)
            slot = (slot << 16) | digit
            inside = amounts * (digits == slot)
        num_tied = self.num_tied(slot)
        each = (inside.sum(dim=-1, keepdim=True) // num_tied).clamp(min=1)
        return Found(slot, before, each, ((target - before) // each).minimum(num_tied - 1))

    def num_tied(self, slot: Tensor) -> Tensor:
        """Count the tokens that have this score; 1 where none has, as with NaN."""
        return (self.numbers == slot).sum(dim=-1, keepdim=True).clamp(min=1)

    def ids(self, found: Found) -> Tensor:
        """Return the tokens found, int64 `[n]`."""
        nth = (self.numbers == found.slot).cumsum(dim=-1)
        return (nth <= found.nth).sum(dim=-1).clamp(max=self.numbers.shape[1] - 1)


def draw_whole(logits: Tensor, settings: DrawSettings, cuts: Cuts) -> Tensor:
    """Draw what `draw(rank_all(logits), …)` does: a token each, int64 `[n]`, of `[n, V]` in bf16 or fp32."""
    slots = Slots.of(logits)
    scores = logits.double()
    relative = scores.sub_(scores.amax(dim=-1, keepdim=True)).div_(settings.temperature).exp_()
    shares = (relative * unit_of(logits.shape[1])).long()
    total = _top_k_total(slots, shares, settings.last) if cuts.top_k else shares.sum(dim=-1, keepdim=True)
    if cuts.top_p:
        total = torch.where(settings.top_p < 1, _top_p_total(slots, shares, settings.top_p * total), total)
    if cuts.min_p:
        total = total.minimum((shares * (relative >= settings.min_p)).sum(dim=-1, keepdim=True))
    return slots.ids(slots.find(shares, (settings.number * total).long()))


def _top_k_total(slots: Slots, shares: Tensor, last: Tensor) -> Tensor:
    """Add up the shares of the top k, and of those that tie with the last of them."""
    found = slots.find(torch.ones_like(shares), last)
    num_tied = slots.num_tied(found.slot)
    better = (shares * (slots.numbers < found.slot)).sum(dim=-1, keepdim=True)
    tied = (shares * (slots.numbers == found.slot)).sum(dim=-1, keepdim=True)
    return better + tied // num_tied * num_tied.minimum(last + 1 + NUM_SPARE - found.before)


def _top_p_total(slots: Slots, shares: Tensor, limit: Tensor) -> Tensor:
    """Add up the shares up to the last token that begins before `limit`, fp64 `[n, 1]`."""
    found = slots.find(shares, limit.ceil().long() - 1)
    return found.before + (found.nth + 1) * found.each
