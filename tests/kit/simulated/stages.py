"""Stages that keep KV as real ones do, and accept of an envelope what those would; prompts and tokens for them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from broker_pipeline.errors import (
    KVCapacityError,
    KVPositionError,
    PipelineError,
    SessionUnknownError,
    StaleAttemptError,
)
from broker_pipeline.messages.workers import BlockRange
from broker_pipeline.scheduling.kv_ledger import SessionKey
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.routes import StageInfo
from broker_pipeline.scheduling.session_state import PreparedPrompt


def stage_worker(name: str, start: int, stop: int, *, instance: int = 1, kv: int = 100, batch: int = 16) -> StageInfo:
    key = f"{name}-{instance}"
    subject, blocks = f"bp.main.worker.{name}.{instance}", BlockRange(start=start, stop=stop)
    flags = {"copies_prefixes": True, "keeps_prefixes": True, "verifies_drafts": True}
    return StageInfo(key, name, subject, blocks, kv, batch, **flags)


def prompt_of(num_tokens: int) -> PreparedPrompt:
    ids = np.arange(num_tokens, dtype=np.int32)
    return PreparedPrompt(ids, np.stack([ids, ids, ids]))


def right_token(session: str, position: int) -> int:
    """Return the token that the model would give: of session and position only, as greedy or seeded sampling is.

    Five take turns, so that most drafts are right, but for each eleventh token.
    """
    return (sum(session.encode()) * 31 + (position % 5 if position % 11 else position) * 7) % 1000


@dataclass
class SimulatedStage:
    """KV of one worker: raises when the scheduler asks for more than it has, and answers as a stage would."""

    worker: StageInfo
    reserved: dict[SessionKey, int] = field(default_factory=dict)
    cached: dict[SessionKey, list[int]] = field(default_factory=dict)
    """Tokens, drafts among them."""
    num_drafts: dict[SessionKey, int] = field(default_factory=dict)
    """How many of the last ones may be taken back."""
    closed: dict[str, int] = field(default_factory=dict)
    kept: set[SessionKey] = field(default_factory=set)
    """What nobody owns, which is reserved and cached as well."""

    def take(self, microbatch: PlannedBatch, alive: list[SessionKey]) -> dict[SessionKey, PipelineError]:
        """Do closes, opens and segments; return why sessions are left out."""
        assert microbatch.num_tokens <= self.worker.max_batch_tokens
        for key, num_kept in microbatch.closes:
            self._close(key, num_kept)
        failures: dict[SessionKey, PipelineError] = {}
        for segment in microbatch.segments:
            key = segment.session.key
            if key in alive:
                try:
                    self._segment(key, segment)
                except PipelineError as error:
                    failures[key] = error
        return failures

    def _close(self, key: SessionKey, num_kept: int) -> None:
        self.closed[key.session] = max(key.attempt, self.closed.get(key.session, 0))
        if not num_kept or key not in self.cached:
            self.reserved.pop(key, None)
            self.cached.pop(key, None)
            self.kept.discard(key)
        elif key not in self.kept:
            assert num_kept <= len(self.cached[key]), "more is to be kept than was computed"
            self.reserved[key] = num_kept
            del self.cached[key][num_kept:]
            self.kept.add(key)

    def _segment(self, key: SessionKey, segment: PlannedSegment) -> None:
        start, stop = segment.start, segment.stop
        if key.attempt <= self.closed.get(key.session, 0):
            raise StaleAttemptError("closed before")
        if segment.opens:
            self._reserve(key, segment.session.num_reserved_tokens)
            self.cached[key] = self._copied(segment)
        if key not in self.cached:
            raise SessionUnknownError("not open")
        length = len(self.cached[key])
        if not length - self.num_drafts.get(key, 0) <= start <= length:
            raise KVPositionError(f"start {start}, cached {length}")
        self._reserve(key, max(self.reserved[key], segment.num_kv_tokens))
        assert stop <= self.reserved[key]
        known = segment.session.token_ids(start, stop - len(segment.drafts)).tolist()
        self.cached[key][start:] = [*known, *segment.drafts]
        self.num_drafts[key] = len(segment.drafts)

    def sample(self, segment: PlannedSegment) -> list[tuple[int, int]]:
        """Return (position, token) behind a segment's last known token and behind each draft."""
        first = segment.stop - len(segment.drafts)
        return [(position, self._next_token(segment, position)) for position in range(first, segment.stop + 1)]

    def _next_token(self, segment: PlannedSegment, position: int) -> int:
        """Return the right token if those before it are right."""
        session, num_prompt = segment.session.key.session, segment.session.num_prompt_tokens
        said = self.cached[segment.session.key][num_prompt:position]
        right = [right_token(session, num_prompt + index) for index in range(len(said))]
        return right_token(session, position) if said == right else -position

    def _copied(self, segment: PlannedSegment) -> list[int]:
        if (prefix := segment.session.prefix) is None:
            return []
        if prefix.source not in self.cached:
            raise SessionUnknownError("nobody to copy from")
        if len(self.cached[prefix.source]) < prefix.num_tokens:
            raise KVPositionError("less to copy than wanted")
        return self.cached[prefix.source][: prefix.num_tokens]

    def _reserve(self, key: SessionKey, num_tokens: int) -> None:
        self.reserved[key] = num_tokens
        if sum(self.reserved.values()) > self.worker.kv_capacity_tokens:
            raise KVCapacityError("OVER-COMMITTED")
