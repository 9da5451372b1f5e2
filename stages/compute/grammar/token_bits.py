"""Sets of tokens as bits: what a grammar allows, on its way from the host to the logits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenBits: TypeAlias = NDArray[np.uint8]
"""Bit `i % 8` of byte `i // 8` for token i; as many bytes as fill words of 64 bits."""


def num_bytes_of(vocab_size: int) -> int:
    """Return how many bytes the bits of a vocabulary take."""
    return -(-vocab_size // 64) * 8


def without(bits: TokenBits, token_ids: Iterable[int]) -> TokenBits:
    """Return `bits` less some tokens; all of `bits` where that would leave none."""
    left = bits.copy()
    for token_id in token_ids:
        left[token_id >> 3] &= 0xFF ^ (1 << (token_id & 7))
    return left if left.any() else bits


def ruled_out(bits: Tensor, vocab_size: int) -> Tensor:
    """Return bool `[n, vocab_size]`, true for tokens whose bit is not set, for the bytes `[n, b]` of several sets.

    Every byte picks eight of them from a table, in one piece: on a CPU a tenth of what shifting each bit takes.
    """
    numbers = torch.arange(256, dtype=torch.uint8, device=bits.device)
    is_clear = ((numbers[:, None] >> numbers[:8]) & 1) == 0
    eights = is_clear.view(torch.int64)[:, 0].index_select(0, bits.flatten().int())
    return eights.view(torch.bool).view(len(bits), -1)[:, :vocab_size]
