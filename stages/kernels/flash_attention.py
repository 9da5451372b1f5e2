"""torch's own flash attention over tiles: pieces of up to 128 queries, each of which looks at keys anywhere.

    queries   [ a a a a | a a | b b b | … ]     frames or chunks cut into tiles; a tile of no queries costs nothing
    keys      [ . . a a a a a a . b b b b . ]   a tile says where its own begin, and how many they are

The grid has one block for a tile and a head, whatever the lengths of what was cut: a graph can be captured with more
tiles than a batch has. Cut where the kernel cuts, a row has the bits that it has uncut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

QUERIES_PER_TILE = 128
"""As many as the kernel takes at a time, or a multiple of them."""


def attend_tiles(
    q: Tensor, keys: Tensor, values: Tensor, tiles: tuple[Tensor, Tensor, Tensor], *, max_keys: int, is_causal: bool
) -> Tensor:
    """Attend with queries `[n, heads, d]` to `[m, kv_heads, d]`; returns `[n, heads, d]`, anything where no tile is.

    `tiles` says of T tiles, in int32 on the device: where each begins among the queries `[T + 1]`, ending with n;
    where its keys begin `[T + 1]`, and how many of them it sees `[T]`, at most `max_keys`. The last query of a tile
    sees all of these; if `is_causal`, each earlier one sees one less.
    """
    offsets, key_starts, key_lengths = tiles
    return _flash(
        q,
        keys,
        values,
        offsets,
        key_starts,
        QUERIES_PER_TILE,
        max_keys,
        0.0,
        is_causal,
        False,
        scale=q.shape[-1] ** -0.5,
        seqused_k=key_lengths,
    )


def _flash(*args: Any, **options: Any) -> Tensor:
    """Call torch's own flash attention, which takes grouped heads, strided ones, and regions anywhere in the keys.

    It is called below torch's public functions, whose form for this (`torch.nn.attention.varlen.varlen_attn` with
    `seqused_k`) torch 2.11 does not have yet.
    """
    out: Tensor = torch.ops.aten._flash_attention_forward(*args, **options)[0]  # noqa: SLF001
    return out
