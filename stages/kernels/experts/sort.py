"""Groups (row, choice) pairs by expert, on the GPU and without padding.

chosen [n, k] = [[2, 5], [0, 2]]      pairs are numbered row * k + choice:   0: 2   1: 5   2: 0   3: 2
order         = [2 | 0, 3 | 1]        pairs of expert 0, of expert 2, of expert 5; ascending within an expert
starts        = [0, 1, 1, 3, 3, 3, 4, ...]   expert e's pairs are order[starts[e]:starts[e + 1]]
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_MAX_BLOCK = 4096


@triton.jit(do_not_specialize=["num_pairs"])
def _sort_kernel(chosen_ptr, order_ptr, starts_ptr, num_pairs, BLOCK: tl.constexpr):
    expert = tl.program_id(0)
    offsets = tl.arange(0, BLOCK)
    lower = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_pairs, BLOCK):
        ids = tl.load(chosen_ptr + first + offsets, mask=first + offsets < num_pairs, other=2147483647).to(tl.int32)
        lower += (ids < expert).to(tl.int32)
    place = tl.sum(lower)
    tl.store(starts_ptr + expert, place)
    if expert == tl.num_programs(0) - 1:
        tl.store(starts_ptr + expert + 1, num_pairs)
    for first in range(0, num_pairs, BLOCK):
        ids = tl.load(chosen_ptr + first + offsets, mask=first + offsets < num_pairs, other=2147483647).to(tl.int32)
        mine = (ids == expert).to(tl.int32)
        tl.store(order_ptr + place + tl.cumsum(mine) - 1, first + offsets, mask=mine == 1)
        place += tl.sum(mine)


def sort_by_expert(chosen: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Return pairs by expert int32 `[n * k]`, and where each expert's begin int32 `[E + 1]`, of `chosen` `[n, k]`.

    Ids must lie in [0, E). Runs without reading anything back, so it can be captured.
    """
    num_pairs = chosen.numel()
    order = torch.empty(num_pairs, dtype=torch.int32, device=chosen.device)
    starts = torch.empty(num_experts + 1, dtype=torch.int32, device=chosen.device)
    block = min(_MAX_BLOCK, max(128, triton.next_power_of_2(num_pairs)))
    _sort_kernel[(num_experts,)](chosen, order, starts, num_pairs, BLOCK=block, num_warps=4 if block <= 1024 else 8)
    return order, starts
