"""Positions of a prompt's tokens on three axes: time, height, width.

Text advances all axes together. The visual tokens of one frame spread over height and width from where the text stood,
and the text after them goes on behind the longer side:

    3 text tokens, vision_start, a picture of 2 x 3 tokens, vision_end, text
    time     0 1 2 3 | 4 4 4 4 4 4 | 7 8
    height   0 1 2 3 | 4 4 4 5 5 5 | 7 8
    width    0 1 2 3 | 4 5 6 4 5 6 | 7 8

A video is one such group per pair of frames, each behind its own timestamp text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from broker_pipeline.errors import TensorMismatchError


@dataclass(frozen=True, slots=True)
class VisualGroup:
    """One frame's visual tokens: `height` x `width` of them from token `start` on, and their first visual row."""

    start: int
    height: int
    width: int
    visual_row: int

    @property
    def count(self) -> int:
        """Visual tokens of the group."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class PositionPlan:
    """`positions` int32 `[3, n]` of the prompt, and `delta`: token c after the prompt has position c + delta."""

    positions: Tensor
    delta: int


def plan_positions(num_tokens: int, groups: Sequence[VisualGroup]) -> PositionPlan:
    """Return the positions of a prompt of `num_tokens` whose visual groups are given in order.

    Raises:
        TensorMismatchError: groups overlap or reach beyond the prompt.
    """
    pieces: list[Tensor] = []
    token = current = 0
    for group in groups:
        if group.start < token or group.start + group.count > num_tokens:
            raise TensorMismatchError(f"visual tokens at {group.start} overlap others or leave the prompt")
        pieces += [_text(current, group.start - token), _frame(current + group.start - token, group)]
        current += group.start - token + max(group.height, group.width)
        token = group.start + group.count
    pieces.append(_text(current, num_tokens - token))
    current += num_tokens - token
    return PositionPlan(torch.cat(pieces, dim=1), current - num_tokens)


def decode_positions(token_index: int, count: int, delta: int) -> Tensor:
    """Return positions int32 `[3, count]` of the tokens from `token_index` on, all behind the prompt."""
    return _text(token_index + delta, count)


def _text(start: int, count: int) -> Tensor:
    return torch.arange(start, start + count, dtype=torch.int32).expand(3, count)


def _frame(start: int, group: VisualGroup) -> Tensor:
    place = torch.arange(group.count, dtype=torch.int32)
    return start + torch.stack((torch.zeros_like(place), place // group.width, place % group.width))
