"""The forms that an envelope takes in a stage, and what is sent on for it. Pure.

envelope ─► StageWork ─► Begun ─► Forward to the next subject of the route
                └───────────┴───► Reply to the conductor, where the route ends or nothing is left
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from broker_pipeline.errors import PipelineError
from broker_pipeline.messages.activation import (
    Envelope,
    MicrobatchResult,
    Segment,
    SessionFailure,
    SessionOpen,
    StageTiming,
)
from broker_pipeline.wire.codec import ALIGNMENT_BYTES, ITEM_BYTES
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.compute.launched import Launched
from stages.compute.microbatch import Microbatch, StageOutput
from stages.stage.envelope_checks import HIDDEN, HISTORY, POSITIONS, StageFacts, StageTensors
from stages.stage.sessions import Opened
from stages.worker.tensors import to_wire


@dataclass(frozen=True, slots=True)
class StageWork:
    """An envelope that passed its checks. `received_at` is in seconds of the monotonic clock."""

    envelope: Envelope
    tensors: StageTensors
    received_at: float
    checked_ns: int = 0
    """When it was checked, for a profile."""

    def microbatch(self, failures: Sequence[SessionFailure], *, is_first: bool) -> Microbatch:
        """Return what is to be computed: all segments but those of sessions that could not be opened."""
        failed = {failure.session for failure in failures}
        segments, inputs, positions = self.envelope.segments, self.tensors.inputs, self.tensors.positions
        kept = tuple(segment for segment in segments if segment.session not in failed)
        if len(kept) != len(segments):
            counts = torch.tensor([segment.count for segment in segments])
            wanted = torch.tensor([segment.session not in failed for segment in segments])
            mask = torch.repeat_interleave(wanted, counts)
            inputs, positions = inputs[mask], positions[:, mask]
        return Microbatch(kept, positions, token_ids=inputs if is_first else None, hidden=None if is_first else inputs)


@dataclass(frozen=True, slots=True)
class Begun:
    """A microbatch on the device, and what has been decided about its sessions."""

    work: StageWork
    launched: Launched
    opened: tuple[Opened, ...]
    failures: tuple[SessionFailure, ...]
    started: float


@dataclass(frozen=True, slots=True)
class Forward:
    """An envelope for the next stage, which is the first subject of its route."""

    envelope: Envelope
    tensors: dict[str, WireTensor]


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of a microbatch, for the conductor."""

    subject: str
    result: MicrobatchResult


def session_failure(item: Segment | SessionOpen, error: PipelineError, facts: StageFacts) -> SessionFailure:
    """Return why a stage leaves a session out."""
    return SessionFailure(session=item.session, attempt=item.attempt, failure=error.to_failure(), worker=facts.worker)


def refusal(envelope: Envelope, facts: StageFacts, error: PipelineError, *timings: StageTiming) -> Reply:
    """Return the answer to an envelope of which nothing counts."""
    return _reply(envelope, facts, failure=error.to_failure(), timings=(*envelope.timings, *timings))


def send_on(
    begun: Begun,
    output: StageOutput,
    failures: Sequence[SessionFailure],
    timing: StageTiming,
    facts: StageFacts,
    now: float,
) -> Forward | Reply:
    """Return what is sent on for a computed microbatch; `failures` are all that this stage met."""
    envelope = begun.work.envelope
    failed = {failure.session for failure in failures}
    opened = [(opening, tokens) for opening, tokens in begun.opened if opening.session not in failed]
    told = {"failures": (*envelope.failures, *failures), "timings": (*envelope.timings, timing)}
    has_nothing_left = bool(envelope.segments) and not (output.segments or opened or envelope.closes)
    if len(envelope.route) == 1 or has_nothing_left:
        return _reply(envelope, facts, tokens=output.tokens, **told)
    onward = msgspec.structs.replace(
        envelope,
        route=envelope.route[1:],
        budget_s=max(0.0, envelope.budget_s - (now - begun.work.received_at)),
        segments=output.segments,
        opens=tuple(opening for opening, _ in opened),
        tensors=(),
        **told,
    )
    return Forward(onward, _onward_tensors(output, opened))


def num_bytes_behind_hidden(envelope: Envelope) -> int:
    """Return the most bytes that a stage sends on after the hidden states of an envelope."""
    num_tokens = sum(segment.count for segment in envelope.segments)
    num_history = sum(opening.num_history_tokens for opening in envelope.opens)
    return ITEM_BYTES["int32"] * (3 * num_tokens + num_history) + 2 * ALIGNMENT_BYTES


def _reply(envelope: Envelope, facts: StageFacts, **told: object) -> Reply:
    result = MicrobatchResult(
        pipeline=envelope.pipeline,
        fingerprint=facts.fingerprint,
        epoch=envelope.epoch,
        microbatch=envelope.microbatch,
        worker=facts.worker,
    )
    return Reply(envelope.reply, msgspec.structs.replace(result, **told))


def _onward_tensors(output: StageOutput, opened: Sequence[Opened]) -> dict[str, WireTensor]:
    tensors: dict[str, WireTensor] = {}
    if output.segments:
        assert output.hidden is not None, "only the last stage has none, and it answers"
        tensors = {HIDDEN: to_wire(output.hidden), POSITIONS: to_wire(output.positions)}
    history = [tokens for _, tokens in opened]
    if any(tokens.numel() for tokens in history):
        tensors[HISTORY] = to_wire(torch.cat(history))
    return tensors
