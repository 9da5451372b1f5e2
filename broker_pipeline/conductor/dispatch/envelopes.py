"""A planned microbatch becomes an envelope with its tensors: the conductor's side of the activation contract."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from broker_pipeline.messages.activation import Envelope, Segment, SessionClose, SessionOpen, SharedPrefix
from broker_pipeline.scheduling.planned_batch import PlannedBatch, PlannedSegment
from broker_pipeline.scheduling.session_state import Int32Array, SessionState
from broker_pipeline.wire.wire_tensor import WireTensor


@dataclass(frozen=True, slots=True)
class EnvelopeBuilder:
    """What all envelopes of one conductor in one epoch have in common."""

    pipeline: str
    fingerprint: str
    epoch: int
    results: str
    """Root of the subjects that results come to."""
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16), repr=False)

    def reply_to(self, number: int) -> str:
        """Return where a microbatch is answered: only stages of its route are told, and nobody else guesses it."""
        token = hashlib.blake2b(number.to_bytes(8, "big"), key=self.secret, digest_size=8).hexdigest()
        return f"{self.results}.{token}"

    def build(self, microbatch: PlannedBatch, now: float) -> tuple[Envelope, dict[str, WireTensor]]:
        """Return the envelope for a route's first stage; sessions must be as they were when it was planned."""
        opening = [segment.session for segment in microbatch.segments if segment.opens]
        envelope = Envelope(
            pipeline=self.pipeline,
            fingerprint=self.fingerprint,
            epoch=self.epoch,
            microbatch=microbatch.number,
            route=microbatch.route.work_subjects,
            reply=self.reply_to(microbatch.number),
            budget_s=max(0.0, microbatch.deadline - now),
            segments=tuple([_segment(segment) for segment in microbatch.segments]),
            opens=tuple(_open(session) for session in opening),
            closes=tuple(
                SessionClose(session=key.session, attempt=key.attempt, num_kept_tokens=num_kept)
                for key, num_kept in microbatch.closes
            ),
        )
        return envelope, _tensors(microbatch.segments, opening)


def _segment(segment: PlannedSegment) -> Segment:
    session, start, count = segment.session, segment.start, segment.count
    name, attempt = session.key
    return Segment(
        session=name,
        attempt=attempt,
        start=start,
        count=count,
        wants_token=segment.wants_token,
        num_kv_tokens=segment.num_kv_tokens,
        num_drafts=len(segment.drafts),
        visual=session.visual_spans(start, start + count) if start < session.num_prompt_tokens else (),
    )


def _open(session: SessionState) -> SessionOpen:
    return SessionOpen(
        session=session.key.session,
        attempt=session.key.attempt,
        num_kv_tokens=session.num_reserved_tokens,
        num_prompt_tokens=session.prompt.num_tokens,
        sampling=session.sampling,
        num_history_tokens=_num_history_tokens(session),
        prefix=_prefix(session),
    )


def _prefix(session: SessionState) -> SharedPrefix | None:
    if session.prefix is None:
        return None
    (name, attempt), num_tokens, num_rows = session.prefix
    return SharedPrefix(session=name, attempt=attempt, num_tokens=num_tokens, num_rows=num_rows)


def _num_history_tokens(session: SessionState) -> int:
    return session.num_tokens if session.sampling.needs_history else 0


def _tensors(segments: Sequence[PlannedSegment], opening: Sequence[SessionState]) -> dict[str, WireTensor]:
    tensors: dict[str, WireTensor] = {}
    if segments:
        token_ids, positions = _inputs(segments)
        tensors = {"token_ids": WireTensor.from_numpy(token_ids), "positions": WireTensor.from_numpy(positions)}
    histories = [session.token_ids(0, session.num_tokens) for session in opening if session.sampling.needs_history]
    if histories:
        tensors["history"] = WireTensor.from_numpy(np.concatenate(histories))
    return tensors


def _inputs(segments: Sequence[PlannedSegment]) -> tuple[Int32Array, Int32Array]:
    """Return token ids int32 [n] and positions int32 [3, n] of all segments, one after the other."""
    n = sum([segment.count for segment in segments])
    token_ids, positions = np.empty(n, np.int32), np.empty((3, n), np.int32)
    at = 0
    places, tokens, steps = [], [], []  # of decode steps: most segments are, so that arrays are filled at once
    for segment in segments:
        session, start, count = segment.session, segment.start, segment.count
        num_prompt = session.num_prompt_tokens
        if count == 1 and start >= num_prompt:
            places.append(at)
            tokens.append(session.generated[start - num_prompt])
            steps.append(start + session.prompt.position_delta)
        else:
            known = count - len(segment.drafts)
            token_ids[at : at + known] = session.token_ids(start, start + known)
            token_ids[at + known : at + count] = segment.drafts
            positions[:, at : at + count] = session.positions(start, start + count)
        at += count
    if places:
        token_ids[places], positions[:, places] = tokens, steps
    return token_ids, positions
