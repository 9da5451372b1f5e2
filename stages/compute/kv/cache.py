"""Keys and values of the sessions on one stage, in flat tensors.

Per layer one `[capacity, kv_heads, head_dim]` tensor of keys and one of values; each session owns one contiguous region
of slots (see `regions`), filled from its start:

    region of a session     [ k0 k1 k2 k3 | .  .  .  . ]
                              └ length 4 ┘ └ reserved ┘

The last tokens of a length may be drafts: the session may go on behind any of them, and writes over the others.

Nothing else is needed by kernels that take region offsets, so there are no pages and no gathers. A region that grows
may move; copies are queued on the device before the step that needs them. One slot behind the
last belongs to nobody: a step that is padded to a fixed size stores there what nobody reads. In FP8 there are scales
beside the codes, which go wherever these go.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import chain, product

import torch
from torch import Tensor

from broker_pipeline.errors import KVCapacityError, KVPositionError, SessionUnknownError
from stages.cached_heads import CachedHeads, HeadCodes
from stages.compute.kv.regions import Move, Region, RegionTable

_MOST_TEMPORARY_BYTES = 64 * 2**20


def _heads(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> CachedHeads:
    """Return one layer's keys or values: a tensor, or codes and scales."""
    return HeadCodes(tensors[0], tensors[1], dtype) if len(tensors) > 1 else tensors[0]


class KVCache:
    """The cache of `num_layers` layers; layers are counted within the stage, from 0."""

    def __init__(
        self,
        num_layers: int,
        capacity_tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        in_fp8: bool = False,
    ) -> None:
        """Hold what is of `dtype`, or with `in_fp8` codes of it."""
        shape = (num_layers, capacity_tokens + 1, kv_heads, head_dim)
        kinds = [(torch.float8_e4m3fn, shape), (torch.bfloat16, shape[:-1])] if in_fp8 else [(dtype, shape)]
        tensors = [[torch.zeros(size, dtype=kind, device=device) for kind, size in kinds] for _ in range(2)]
        self._tensors = tuple(chain(*tensors))
        self._keys, self._values = ([_heads(of, dtype) for of in zip(*own, strict=True)] for own in tensors)
        self._table = RegionTable(capacity_tokens)
        self._lengths: dict[Hashable, int] = {}
        self._num_drafts: dict[Hashable, int] = {}

    def keys(self, layer: int) -> CachedHeads:
        """Return the layer's keys `[capacity + 1, kv_heads, head_dim]`, normed and rotated; in FP8 their codes."""
        return self._keys[layer]

    def values(self, layer: int) -> CachedHeads:
        """Return the layer's values `[capacity + 1, kv_heads, head_dim]`, likewise."""
        return self._values[layer]

    @property
    def spare_slot(self) -> int:
        """The slot that belongs to nobody."""
        return self._table.capacity

    @property
    def capacity_tokens(self) -> int:
        """Tokens that fit in all."""
        return self._table.capacity

    @property
    def reserved_tokens(self) -> int:
        """Tokens promised to sessions."""
        return self._table.num_reserved

    @property
    def num_sessions(self) -> int:
        """Sessions that hold a region."""
        return len(self._lengths)

    def reserve(self, session: Hashable, num_tokens: int) -> None:
        """Give a new session room for `num_tokens`.

        Raises:
            KVCapacityError: the free total does not suffice, or the session has a region already.
        """
        self._move(self._table.reserve(session, num_tokens))
        self._lengths[session] = 0

    def grow(self, session: Hashable, num_tokens: int) -> None:
        """Give a session room for `num_tokens` in all, where that is more than it has.

        Raises:
            KVCapacityError: the free total does not suffice.
            SessionUnknownError: it has no region.
        """
        self._move(self._table.grow(session, num_tokens))

    def copy_prefix(self, source: Hashable, target: Hashable, num_tokens: int) -> None:
        """Give a session that has nothing cached yet the first tokens of another one, which has that many."""
        assert num_tokens <= self.length(source), "the caller has looked"
        start, to = self._table[source].start, self._table[target].start
        for tensor in self._tensors:
            tensor[:, to : to + num_tokens] = tensor[:, start : start + num_tokens]
        self._lengths[target] = num_tokens

    def shrink(self, session: Hashable, num_tokens: int) -> None:
        """Free all of a session's region but its first tokens, at most as many as are cached."""
        assert num_tokens <= self.length(session), "the caller has looked"
        self._table.shrink(session, num_tokens)
        self._lengths[session] = num_tokens
        self._num_drafts.pop(session, None)

    def release(self, session: Hashable) -> None:
        """Free a session's region."""
        self._table.release(session)
        del self._lengths[session]
        self._num_drafts.pop(session, None)

    def region(self, session: Hashable) -> Region:
        """Say where the session's slots lie now; packing may move them between microbatches."""
        return self._table[session]

    def length(self, session: Hashable) -> int:
        """Return how many of the session's tokens are cached, drafts among them."""
        if session not in self._lengths:
            raise SessionUnknownError(f"no KV is reserved here for session {session!r}")
        return self._lengths[session]

    def settled_length(self, session: Hashable) -> int:
        """Return how many of the session's tokens are cached for good."""
        return self.length(session) - self._num_drafts.get(session, 0)

    def require(self, session: Hashable, start: int, count: int, *, length: int | None = None) -> None:
        """Check that tokens `[start, start + count)` continue the session and fit its region.

        `length` stands for the cached length when earlier tokens are about to be written.
        """
        settled = self.settled_length(session) if length is None else length
        length = self.length(session) if length is None else length
        if not settled <= start <= length:
            raise KVPositionError(f"session {session!r} has {length} tokens cached; got a segment from {start}")
        if start + count > self._table[session].size:
            size = self._table[session].size
            raise KVCapacityError(f"session {session!r} reserved {size} KV tokens; {start + count} are needed")

    def advance(self, session: Hashable, start: int, count: int, num_drafts: int = 0) -> None:
        """Record that tokens `[start, start + count)` are written in every layer; errors as of `require`.

        The last `num_drafts` of them are drafts.
        """
        stop = start + count
        if self._lengths.get(session) != start or stop > self._table[session].size:
            self.require(session, start, count)
        self._lengths[session] = stop
        if num_drafts:
            self._num_drafts[session] = num_drafts
        else:
            self._num_drafts.pop(session, None)

    def _move(self, moves: list[Move]) -> None:
        """Copy regions, of many layers at a time; through a temporary where source and target overlap."""
        num_layers = len(self._keys)
        for move in moves:
            length = self._lengths[move.session]
            overlaps = abs(move.target - move.source) < length
            num_at_once = _MOST_TEMPORARY_BYTES // (self._tensors[0][0, :length].nbytes + 1) if overlaps else num_layers
            for tensor, first in product(self._tensors, range(0, num_layers, max(1, num_at_once))):
                layers = tensor[first : first + max(1, num_at_once)]
                source = layers[:, move.source : move.source + length]
                layers[:, move.target : move.target + length] = source.clone() if overlaps else source
