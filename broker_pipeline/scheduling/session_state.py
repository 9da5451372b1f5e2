"""One attempt of one session as the scheduler sees it: tokens known, and how many of them are computed.

                 num_computed_tokens               num_tokens
                          │                             │
    ┌─────────────────────┼──────────────┬──────────────┤ ┄ ┄ ┄ ┄ ┄ ┄ ┄ ┄ ┐
    │ prompt: in every stage's KV        │ generated    │ room up to        │ grows up to
    │                     │ next segment: all of this   │ num_reserved_…    │ num_kv_tokens
    └─────────────────────┴──────────────┴──────────────┘ ┄ ┄ ┄ ┄ ┄ ┄ ┄ ┄ ┘

There are no phases. A fresh session has a prompt to compute, a decoding one the token sampled last, a replayed one
its prompt and all that it had generated: each is just a number of tokens not computed yet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from broker_pipeline.messages.activation import VisualSpan
from broker_pipeline.messages.jobs import FIRST, Turn
from broker_pipeline.messages.sampling import SamplingSettings
from broker_pipeline.scheduling.drafts.pace import DraftPace
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.routes import Route

Int32Array: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPrompt:
    """A prepared prompt: `token_ids` int32 [n], `positions` int32 [3, n], spans of visual tokens within it.

    Position of a token with index c >= n, on all three axes, is c + `position_delta`.
    """

    token_ids: Int32Array
    positions: Int32Array
    position_delta: int = 0
    visual: tuple[VisualSpan, ...] = ()
    visual_content: tuple[str, ...] = ()
    """Names what the rows of each span were made of; empty where nobody knows."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.token_ids)

    @property
    def num_visual_tokens(self) -> int:
        """Tokens of it that stand for pictures."""
        return sum(span.count for span in self.visual)


class Prefix(NamedTuple):
    """`num_tokens` of KV that are those of `source`; they stand for the first `num_rows` visual rows."""

    source: SessionKey
    num_tokens: int
    num_rows: int


@dataclass(slots=True, eq=False)
class SessionState:
    """One attempt of one session. `order` is its place in the queue and stays the same over attempts."""

    key: SessionKey
    order: int
    route: Route
    prompt: PreparedPrompt
    sampling: SamplingSettings
    num_kv_tokens: int
    """KV that it may come to need: prompt plus output limit."""
    turn: Turn = FIRST
    """Its place among those that wait for room, before `order`."""
    generated: list[int] = field(default_factory=list)
    is_alone: bool = False
    """Whether it must share no microbatch, since it was in one that failed."""
    is_repeat: bool = False
    """Whether an earlier attempt was lost, and this one has no token yet."""

    is_preempted: bool = False
    """Whether it has lost its KV to older ones, and its rows: with room, it has to be prepared anew."""

    prefix_keys: tuple[bytes, ...] = ()
    """Of its prompt's blocks: see `prefixes`."""
    prefix: Prefix | None = None
    """Whose KV it begins with."""
    num_computed_tokens: int = 0
    num_reserved_tokens: int = 0
    """KV that it has."""
    has_grown: bool = False
    """Whether the stages have yet to be told of `num_reserved_tokens`."""
    is_open: bool = False
    draft_pace: DraftPace = field(default_factory=DraftPace)
    waiting_since: float = 0.0
    num_prompt_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = self.prompt.num_tokens
        self.is_repeat |= self.is_alone

    @property
    def num_tokens(self) -> int:
        """Tokens known: prompt and generated ones."""
        return self.num_prompt_tokens + len(self.generated)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens known but not in KV."""
        return self.num_prompt_tokens + len(self.generated) - self.num_computed_tokens

    def token_ids(self, start: int, stop: int) -> Int32Array:
        """Return tokens `[start, stop)` of prompt and generated ones, int32 [stop - start]."""
        n = self.prompt.num_tokens
        if start >= n:
            return np.array(self.generated[start - n : stop - n], np.int32)
        if stop <= n:
            return self.prompt.token_ids[start:stop]
        return np.concatenate([self.prompt.token_ids[start:], np.array(self.generated[: stop - n], np.int32)])

    def positions(self, start: int, stop: int) -> Int32Array:
        """Return the positions of tokens `[start, stop)`, int32 [3, stop - start]."""
        n = self.prompt.num_tokens
        if stop <= n:
            return self.prompt.positions[:, start:stop]
        after = np.arange(max(start, n), max(stop, n), dtype=np.int32) + np.int32(self.prompt.position_delta)
        return np.concatenate([self.prompt.positions[:, start:stop], np.broadcast_to(after, (3, len(after)))], axis=1)

    def visual_spans(self, start: int, stop: int) -> tuple[VisualSpan, ...]:
        """Return the parts of visual spans inside tokens `[start, stop)`, with offsets counted from `start`."""
        found = []
        for span in self.prompt.visual:
            first, last = max(span.offset, start), min(span.offset + span.count, stop)
            if first < last:
                row = span.row + first - span.offset
                found.append(VisualSpan(offset=first - start, count=last - first, row=row))
        return tuple(found)
