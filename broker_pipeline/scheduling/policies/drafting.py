"""Which decode steps carry drafts. Pure.

microbatch ──► only decode steps, of few sessions? ──► each session: may it? pays it? has it said this before?
                                                              └► PlannedSegment with drafts ──► stages ──► `observe`

A draft costs nobody a token that he would have got otherwise: stages sample behind it as they would have without, so
that what was sampled is the same, and a draft that differs from it is taken back, with all behind it.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from broker_pipeline.scheduling.drafts.limits import DraftLimits
from broker_pipeline.scheduling.drafts.prompt_lookup import look_up
from broker_pipeline.scheduling.planned_batch import PlannedSegment
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState


def may_have_drafts(session: SessionState) -> bool:
    """Whether several of its tokens can be sampled in one step, each as if it were the only one.

    Not where the sampler needs to know the tokens before: penalties, n-grams, words of several tokens, grammars. And
    not where the session is suspected to break a microbatch.
    """
    return not session.sampling.needs_history and not session.is_alone


class Drafting:
    """Adds drafts to the microbatches of one scheduler."""

    def __init__(self, limits: DraftLimits) -> None:
        self._limits = limits
        self.num_drafted = 0
        """Drafts that were answered for."""
        self.num_accepted = 0
        """Those of them that were right."""

    def extended(
        self, segments: tuple[PlannedSegment, ...], route: Route, max_tokens: int
    ) -> tuple[PlannedSegment, ...]:
        """Return a microbatch's segments with drafts, of up to `max_tokens` tokens in all; as they are without."""
        if not self._limits.num_tokens or len(segments) > self._limits.max_sessions:
            return segments
        if not route.verifies_drafts or not all(map(_is_decode_step, segments)):
            return segments
        return tuple(self._extended(segments, max_tokens - len(segments)))

    def _extended(self, segments: Iterable[PlannedSegment], num_free: int) -> Iterable[PlannedSegment]:
        for segment in segments:
            drafts = self._drafts(segment, num_free)
            num_free -= len(drafts)
            yield (msgspec.structs.replace(segment, count=1 + len(drafts), drafts=drafts) if drafts else segment)

    def _drafts(self, segment: PlannedSegment, num_free: int) -> tuple[int, ...]:
        session = segment.session
        if not may_have_drafts(session):
            return ()
        wanted = min(session.draft_pace.next_length(), self._limits.num_tokens)
        num_drafts = min(wanted, num_free, _room(segment))
        return look_up(session.token_ids(0, session.num_tokens), num_drafts) if num_drafts > 0 else ()

    def observe(self, segment: PlannedSegment, num_accepted: int) -> None:
        """Learn how many of a segment's drafts were right."""
        self.num_drafted += len(segment.drafts)
        self.num_accepted += num_accepted
        segment.session.draft_pace.observe(len(segment.drafts), num_accepted)


def _is_decode_step(segment: PlannedSegment) -> bool:
    return segment.count == 1 and segment.start >= segment.session.num_prompt_tokens


def _room(segment: PlannedSegment) -> int:
    """Return how many drafts fit into the KV that the session has, and could all be part of its output."""
    session = segment.session
    return min(session.num_reserved_tokens, session.num_kv_tokens - 1) - segment.stop
