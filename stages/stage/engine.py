"""What one envelope does to a stage, and what the stage sends on. Synchronous; lives on the compute thread.

            ┌───────────── begin ─────────────────────────┐ ┌────────── finish ──────────┐
envelope ─► epoch ─► budget ─► closes ─► opens ─► launch ─► collect ─┬─► Forward: to the next subject of the route
              │        │                   │        │                └─► Reply: the route ends here, or nothing is left
              └────────┴─► Reply with     └───┬────┘
                  a failure of the whole       sessions that cannot go on are left out and listed in `failures`

`begin` runs on the compute thread and waits for no device; `finish` waits, on whichever thread, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import structlog
import torch
from torch import Tensor

from broker_pipeline.errors import ComputeError, DeadlineExceededError, PipelineError, StaleEpochError
from broker_pipeline.messages.activation import (
    Envelope,
    MicrobatchResult,
    Segment,
    SessionFailure,
    SessionOpen,
    StageTiming,
)
from broker_pipeline.tracing.tracer import tracer
from broker_pipeline.wire.wire_tensor import WireTensor
from stages.compute.launched import Launched
from stages.compute.microbatch import Microbatch, StageOutput
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.device.hardware import is_alive
from stages.stage.closed_attempts import ClosedAttempts
from stages.stage.envelope_checks import HIDDEN, HISTORY, POSITIONS, StageFacts, StageTensors
from stages.stage.occupancy import Occupancy
from stages.stage.profile import StageProfile
from stages.worker.epoch_fence import EpochFence
from stages.worker.tensors import to_wire

log = structlog.get_logger()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StageWork:
    """An envelope that passed its checks. `received_at` is in seconds of the monotonic clock."""

    envelope: Envelope
    tensors: StageTensors
    received_at: float
    checked_ns: int = 0
    """When it was checked, for a profile."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A microbatch on the device, and what has been decided about its sessions."""

    work: StageWork
    launched: Launched
    opened: tuple[tuple[SessionOpen, Tensor], ...]
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


class StageEngine:
    """Runs envelopes against the stage's computation and keeps its sessions in order."""

    def __init__(
        self,
        compute: StageCompute,
        facts: StageFacts,
        fence: EpochFence,
        visual_rows: VisualRowBuffer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.facts = facts
        self._compute = compute
        self._fence = fence
        self._visual_rows = visual_rows
        self._clock = clock
        self._closed = ClosedAttempts()
        self._epoch = 0
        self.num_microbatches = 0
        self.num_tokens = 0
        self.busy_s = 0.0
        """Seconds of computing, by the device's own clock where it has one."""
        self.queue_s = 0.0
        """Seconds that microbatches have waited, added up."""
        self.occupancy = Occupancy()
        self._profile = StageProfile(compute.device)
        self.is_device_lost = False
        """Whether the device answers no more, so that only a new process can go on."""

    @property
    def num_sessions(self) -> int:
        """Sessions that are open here."""
        return self._compute.kv.num_sessions

    @property
    def kv_used_tokens(self) -> int:
        """Tokens of KV that are promised to sessions."""
        return self._compute.kv.reserved_tokens

    def follow_epoch(self) -> None:
        """Drop every session and visual row of an epoch that the fence has left behind."""
        if self._fence.current == self._epoch:
            return
        log.info("epoch_adopted", epoch=self._fence.current, previous=self._epoch, num_dropped=self.num_sessions)
        self._epoch = self._fence.current
        self._compute.close_all()
        self._closed.clear()
        self._visual_rows.drop_before(self._epoch)

    def step(self, work: StageWork) -> Forward | Reply | None:
        """Do what an envelope asks, to the end; None for a repeat, which was answered before."""
        begun = self.begin(work)
        return self.finish(begun) if isinstance(begun, Begun) else begun

    def begin(self, work: StageWork) -> Begun | Reply | None:
        """Launch an envelope's tokens on the device; None for a repeat, which was answered before.

        Every error that concerns the whole microbatch comes back as a `Reply`: nothing is raised, since a bug that
        one input meets must not take down the sessions of all others.
        """
        started = self._clock()
        self.occupancy.enter()
        shown = self._profile.began(work.envelope, work.checked_ns)
        begun = self._guarded(work, started, lambda: self._begin(work, started))
        self._profile.launched(work.envelope, shown)
        if not isinstance(begun, Begun):
            self._leave()
        return begun

    def finish(self, begun: Begun) -> Forward | Reply | None:
        """Wait for the device and return what is to be sent on; errors as for `begin`."""
        shown = tracer.now()
        outcome = self._guarded(begun.work, begun.started, lambda: self._finish(begun))
        has_failed = isinstance(outcome, Reply) and outcome.result.failure is not None
        self._profile.collected(begun.work.envelope, begun.launched, shown, has_failed=has_failed)
        self._leave()
        return outcome

    def _leave(self) -> None:
        self.occupancy.leave(has_sessions=self.num_sessions > 0)

    def _guarded(self, work: StageWork, started: float, action: Callable[[], T]) -> T | Reply:
        try:
            return action()
        except PipelineError as known:
            error: PipelineError = known
            log.warning("microbatch_failed", microbatch=work.envelope.microbatch, code=error.code, reason=error.message)
        except Exception as bug:
            error = ComputeError(f"microbatch {work.envelope.microbatch} crashed: {bug!r}")
            log.exception("microbatch_crashed", microbatch=work.envelope.microbatch)
        if isinstance(error, ComputeError):
            self.is_device_lost = not is_alive(self._compute.device)
        return refusal(work.envelope, self.facts, error, self._timing(work, started, None))

    def _begin(self, work: StageWork, started: float) -> Begun | None:
        envelope = work.envelope
        self.follow_epoch()
        if envelope.epoch < self._epoch:
            raise StaleEpochError(f"epoch {envelope.epoch} ended while the microbatch waited", field="epoch")
        self._close(envelope)
        waited_s = started - work.received_at
        if waited_s >= envelope.budget_s:
            raise DeadlineExceededError(
                f"microbatch {envelope.microbatch} had {envelope.budget_s:.3f} s left and waited {waited_s:.3f} s"
            )
        opened, failures = self._open(envelope, work.tensors.history)
        batch = _without(envelope.segments, work.tensors, failures, is_first=self.facts.is_first)
        launched = self._compute.launch(batch)
        if self._is_repeat(envelope, launched.output, failures):
            log.info("microbatch_repeated", microbatch=envelope.microbatch)
            return None
        return Begun(work, launched, tuple(opened), tuple(failures), started)

    def _finish(self, begun: Begun) -> Forward | Reply:
        output = begun.launched.collect()
        failures = [*begun.failures, *(self._failure(segment, error) for segment, error in output.failures)]
        self.num_microbatches += 1
        self.num_tokens += sum(segment.count for segment in output.segments)
        timing = self._timing(begun.work, begun.started, begun.launched.device_s)
        self.busy_s += timing.compute_s
        self.queue_s += timing.queue_s
        return self._send_on(begun.work, output, list(begun.opened), failures, timing)

    def _close(self, envelope: Envelope) -> None:
        """Close sessions, whatever becomes of the rest: that only frees."""
        for closing in envelope.closes:
            self._compute.close(closing.session, closing.attempt)
            self._closed.add(closing.session, closing.attempt)

    def _open(
        self, envelope: Envelope, history: Sequence[Tensor]
    ) -> tuple[list[tuple[SessionOpen, Tensor]], list[SessionFailure]]:
        opened, failures = [], []
        for opening, tokens in zip(envelope.opens, history, strict=True):
            try:
                self._closed.check(opening.session, opening.attempt)
                self._compute.open(opening, tokens.tolist())
            except PipelineError as error:
                failures.append(self._failure(opening, error))
            else:
                opened.append((opening, tokens))
        return opened, failures

    @staticmethod
    def _is_repeat(envelope: Envelope, output: StageOutput, failures: list[SessionFailure]) -> bool:
        return bool(envelope.segments) and len(output.repeats) == len(envelope.segments) and not failures

    def _send_on(
        self,
        work: StageWork,
        output: StageOutput,
        opened: list[tuple[SessionOpen, Tensor]],
        failures: list[SessionFailure],
        timing: StageTiming,
    ) -> Forward | Reply:
        envelope = work.envelope
        for failure in failures:
            log.info(
                "session_failed",
                session=failure.session,
                attempt=failure.attempt,
                code=failure.failure.code,
                reason=failure.failure.message,
            )
        failed = {failure.session for failure in failures}
        opened = [(opening, tokens) for opening, tokens in opened if opening.session not in failed]
        log.debug(
            "microbatch_done",
            microbatch=envelope.microbatch,
            num_tokens=sum(segment.count for segment in output.segments),
            sessions=[segment.session for segment in output.segments],
            queue_s=timing.queue_s,
            compute_s=timing.compute_s,
        )
        timings = (*envelope.timings, timing)
        all_failures = (*envelope.failures, *failures)
        has_nothing_left = bool(envelope.segments) and not (output.segments or opened or envelope.closes)
        if len(envelope.route) == 1 or has_nothing_left:
            result = _result(envelope, self.facts)
            return Reply(
                envelope.reply,
                msgspec.structs.replace(result, tokens=output.tokens, failures=all_failures, timings=timings),
            )
        onward = msgspec.structs.replace(
            envelope,
            route=envelope.route[1:],
            budget_s=max(0.0, envelope.budget_s - (self._clock() - work.received_at)),
            segments=output.segments,
            opens=tuple(opening for opening, _ in opened),
            failures=all_failures,
            timings=timings,
            tensors=(),
        )
        return Forward(onward, _onward_tensors(output, [tokens for _, tokens in opened]))

    def _failure(self, item: Segment | SessionOpen, error: PipelineError) -> SessionFailure:
        return SessionFailure(
            session=item.session, attempt=item.attempt, failure=error.to_failure(), worker=self.facts.worker
        )

    def _timing(self, work: StageWork, started: float, device_s: float | None) -> StageTiming:
        """Count what the device says it took, and all else as waiting; where host and device are one, by its clock."""
        now = self._clock()
        compute_s = now - started if device_s is None else device_s
        return StageTiming(
            worker=self.facts.worker,
            queue_s=max(0.0, now - work.received_at - compute_s),
            compute_s=max(0.0, compute_s),
        )


def refusal(envelope: Envelope, facts: StageFacts, error: PipelineError, *timings: StageTiming) -> Reply:
    """Return the answer to an envelope of which nothing counts."""
    result = msgspec.structs.replace(
        _result(envelope, facts), failure=error.to_failure(), timings=(*envelope.timings, *timings)
    )
    return Reply(envelope.reply, result)


def _result(envelope: Envelope, facts: StageFacts) -> MicrobatchResult:
    return MicrobatchResult(
        pipeline=envelope.pipeline,
        fingerprint=facts.fingerprint,
        epoch=envelope.epoch,
        microbatch=envelope.microbatch,
        worker=facts.worker,
    )


def _without(
    segments: Sequence[Segment], tensors: StageTensors, failures: Sequence[SessionFailure], *, is_first: bool
) -> Microbatch:
    """Return the microbatch without the sessions that could not be opened."""
    failed = {failure.session for failure in failures}
    inputs, positions = tensors.inputs, tensors.positions
    kept = tuple(segment for segment in segments if segment.session not in failed)
    if len(kept) != len(segments):
        counts = torch.tensor([segment.count for segment in segments])
        wanted = torch.tensor([segment.session not in failed for segment in segments])
        mask = torch.repeat_interleave(wanted, counts)
        inputs, positions = inputs[mask], positions[:, mask]
    return Microbatch(kept, positions, token_ids=inputs if is_first else None, hidden=None if is_first else inputs)


def _onward_tensors(output: StageOutput, history: Sequence[Tensor]) -> dict[str, WireTensor]:
    tensors: dict[str, WireTensor] = {}
    if output.segments:
        assert output.hidden is not None, "only the last stage has none, and it answers"
        tensors = {HIDDEN: to_wire(output.hidden), POSITIONS: to_wire(output.positions)}
    if any(tokens.numel() for tokens in history):
        tensors[HISTORY] = to_wire(torch.cat(list(history)))
    return tensors
