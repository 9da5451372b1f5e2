"""Holds an envelope against the contract before anything is computed from it. Pure: no state is read or changed.

What concerns single sessions (attempt, start, token ids, KV room, visual rows) is decided when the microbatch is
computed; what fails here fails the whole microbatch, since its sender is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from broker_pipeline.errors import (
    ContractError,
    ContractVersionError,
    FingerprintMismatchError,
    MalformedEnvelopeError,
    TensorMismatchError,
)
from broker_pipeline.messages.activation import Envelope, Segment
from broker_pipeline.messages.base import CONTRACT_VERSION
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.worker.tensors import Shape, from_wire

TOKEN_IDS, HIDDEN, POSITIONS, HISTORY = "token_ids", "hidden", "positions", "history"


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What a stage is, as far as envelopes are held against it."""

    worker: str
    pipeline: str
    fingerprint: str
    subject: str
    """Where this instance takes envelopes."""
    is_first: bool
    is_last: bool
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class StageTensors:
    """An envelope's tensors, on the CPU and of the right dtype and shape; n is the number of tokens.

    `inputs` is int32 [n] (token ids, first stage) or [n, hidden_size]; `positions` int32 [3, n]; `history` has one
    int32 tensor for each of the envelope's opens, empty where none was sent.
    """

    inputs: Tensor
    positions: Tensor
    history: tuple[Tensor, ...]


class WorkerIdentity(Protocol):
    """Who a message must be meant for: a stage's facts, or any worker's record."""

    @property
    def worker(self) -> str:
        """The worker's name."""

    @property
    def pipeline(self) -> str:
        """The pipeline that it serves."""

    @property
    def fingerprint(self) -> str:
        """Its artifact's."""


def check_origin(version: int, pipeline: str, fingerprint: str, identity: WorkerIdentity) -> None:
    """Raise unless a message speaks this contract, to this pipeline, about this artifact."""
    if version != CONTRACT_VERSION:
        raise ContractVersionError(
            f"sender speaks version {version} of the contract, {identity.worker} speaks {CONTRACT_VERSION}; "
            "run the same release everywhere",
            field="version",
        )
    if pipeline != identity.pipeline:
        raise ContractError(
            f"message for pipeline {pipeline}; this worker serves {identity.pipeline}", field="pipeline"
        )
    if fingerprint != identity.fingerprint:
        raise FingerprintMismatchError(
            f"sender's artifact is {fingerprint[:12]}…, that of {identity.worker} is {identity.fingerprint[:12]}…; "
            "export once and copy that artifact to every host",
            field="fingerprint",
        )


def check_envelope(envelope: Envelope, facts: StageFacts) -> None:
    """Raise a ContractError unless route, segments, opens and closes make sense for this stage."""
    if envelope.route[0] != facts.subject:
        raise MalformedEnvelopeError(f"route begins at {envelope.route[0]}, not at this worker", field="route")
    ends_here = len(envelope.route) == 1
    # Closes alone may go to a single stage: to one that is on no route now, or to ask whether it still computes.
    if facts.is_last != ends_here and (facts.is_last or envelope.segments or envelope.opens):
        problem = "goes on after the stage that owns the last block" if facts.is_last else "ends before the last block"
        raise MalformedEnvelopeError(f"route {problem}", field="route")
    _check_sessions(envelope)
    num_tokens = sum(segment.count for segment in envelope.segments)
    if num_tokens > facts.max_batch_tokens:
        raise MalformedEnvelopeError(
            f"{num_tokens} tokens in a microbatch; {facts.worker} takes {facts.max_batch_tokens}", field="segments"
        )
    for segment in envelope.segments:
        _check_visual(segment)
        _check_drafts(segment)


def read_tensors(envelope: Envelope, tensors: Mapping[str, WireTensor], facts: StageFacts) -> StageTensors:
    """Return the envelope's tensors as torch sees them.

    Raises:
        TensorMismatchError: one is missing, unknown, of the wrong dtype or shape, or holds an impossible value.
    """
    n = sum(segment.count for segment in envelope.segments)
    num_history = sum(opening.num_history_tokens for opening in envelope.opens)
    wanted: dict[str, tuple[torch.dtype, Shape]] = {}
    if n:
        wanted[POSITIONS] = (torch.int32, (3, n))
        wanted |= (
            {TOKEN_IDS: (torch.int32, (n,))} if facts.is_first else {HIDDEN: (facts.dtype, (n, facts.hidden_size))}
        )
    if num_history:
        wanted[HISTORY] = (torch.int32, (num_history,))
    _check_names(set(tensors), set(wanted))
    found = {name: from_wire(name, tensors[name], dtype=d, shape=s) for name, (d, s) in wanted.items()}
    _check_range(found, HISTORY, facts.vocab_size)
    _check_range(found, POSITIONS, 2**31)
    sizes = [opening.num_history_tokens for opening in envelope.opens]
    history = torch.split(found.get(HISTORY, torch.empty(0, dtype=torch.int32)), sizes) if sizes else ()
    return StageTensors(_inputs(found, facts), found.get(POSITIONS, torch.empty((3, 0), dtype=torch.int32)), history)


def _inputs(found: Mapping[str, Tensor], facts: StageFacts) -> Tensor:
    if facts.is_first:
        return found.get(TOKEN_IDS, torch.empty(0, dtype=torch.int32))
    return found.get(HIDDEN, torch.empty((0, facts.hidden_size), dtype=facts.dtype))


def _check_names(have: set[str], want: set[str]) -> None:
    if missing := want - have:
        name = min(missing)
        raise TensorMismatchError(f"tensor {name} is missing", field=f"tensors.{name}")
    if unknown := have - want:
        name = min(unknown)
        raise TensorMismatchError(f"tensor {name} is not wanted here", field=f"tensors.{name}")


def _check_range(found: Mapping[str, Tensor], name: str, stop: int) -> None:
    tensor = found.get(name)
    if tensor is None or not tensor.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(tensor))
    if low < 0 or high >= stop:
        raise TensorMismatchError(
            f"tensor {name} holds {low if low < 0 else high}; values from 0 to {stop - 1} are possible",
            field=f"tensors.{name}",
        )


def _check_sessions(envelope: Envelope) -> None:
    _check_distinct("segments", [item.session for item in envelope.segments])
    _check_distinct("opens", [item.session for item in envelope.opens])
    # Several attempts of one session may end before any envelope can carry their closes.
    _check_distinct("closes", [(item.session, item.attempt) for item in envelope.closes])


def _check_distinct(field: str, names: Sequence[str | tuple[str, int]]) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        who = twice if isinstance(twice, str) else f"{twice[0]}, attempt {twice[1]},"
        raise MalformedEnvelopeError(f"session {who} stands twice in {field}", field=field)


def _check_drafts(segment: Segment) -> None:
    if segment.num_drafts and (segment.num_drafts >= segment.count or not segment.wants_token):
        raise MalformedEnvelopeError(
            f"{segment.num_drafts} drafts in a segment of {segment.count} tokens of session {segment.session}; drafts "
            "follow a token, and a token is wanted",
            field="segments.num_drafts",
        )


def _check_visual(segment: Segment) -> None:
    """Spans must lie inside their segment, one after the other."""
    free_from = 0
    for span in segment.visual:
        if span.offset < free_from or span.offset + span.count > segment.count:
            raise MalformedEnvelopeError(
                f"visual span at {span.offset} of {span.count} tokens overlaps another or leaves the segment of "
                f"session {segment.session}",
                field="segments.visual",
            )
        free_from = span.offset + span.count
