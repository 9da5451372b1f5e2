"""What goes into a stage's computation and what comes out of it: tensors and the segments that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from broker_pipeline.errors import PipelineError
from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.sampling import SampledToken

SessionKey = tuple[str, int]
"""Session id and attempt: what KV and visual rows are kept under."""


def key_of(segment: Segment) -> SessionKey:
    """Return under which key the segment's KV and visual rows are kept."""
    return segment.session, segment.attempt


@dataclass(frozen=True, slots=True)
class Microbatch:
    """The packed tokens of `segments`, in their order; n is the sum of their counts.

    `positions` int32 `[3, n]`. The first stage gets `token_ids` int32 `[n]`, the others `hidden` `[n, H]` in the
    model's dtype.
    """

    segments: tuple[Segment, ...]
    positions: Tensor
    token_ids: Tensor | None = None
    hidden: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all segments."""
        return sum(segment.count for segment in self.segments)

    @property
    def is_decode_step(self) -> bool:
        """Whether every segment is a single token, or one with its drafts."""
        return all(segment.count == segment.num_drafts + 1 and not segment.visual for segment in self.segments)


class LogitRow(NamedTuple):
    """One choice of the last stage: the token at index `position` of a session, from the packed token at `place`."""

    segment: Segment
    place: int
    position: int

    @property
    def is_behind_draft(self) -> bool:
        """Whether it counts only if a draft is right."""
        return self.position > self.segment.start + self.segment.count - self.segment.num_drafts


def wanted_rows(segments: Sequence[Segment]) -> list[LogitRow]:
    """Return what is to be chosen for packed segments: one token each where one is wanted, and one for each draft."""
    rows, stop = [], 0
    for segment in segments:
        stop += segment.count
        if segment.wants_token:
            after = segment.start + segment.count
            rows += [LogitRow(segment, stop - 1 - back, after - back) for back in range(segment.num_drafts, -1, -1)]
    return rows


@dataclass(frozen=True, slots=True)
class StageOutput:
    """What a stage made of a microbatch.

    `segments` were computed; `hidden` `[n, H]` and `positions` `[3, n]` belong to them, for the next stage. At the last
    stage `hidden` is None and `tokens` holds what was sampled. `repeats` had been computed before and were skipped.
    `failures` could not be computed, or not sampled; each concerns its own session only.
    """

    segments: tuple[Segment, ...]
    positions: Tensor
    hidden: Tensor | None
    tokens: tuple[SampledToken, ...] = ()
    repeats: tuple[Segment, ...] = ()
    failures: tuple[tuple[Segment, PipelineError], ...] = ()
