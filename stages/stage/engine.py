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
from collections.abc import Callable
from typing import TypeVar

import structlog

from broker_pipeline.errors import ComputeError, DeadlineExceededError, PipelineError
from broker_pipeline.messages.activation import Envelope, SessionFailure, StageTiming
from broker_pipeline.tracing.tracer import tracer
from stages.compute.microbatch import StageOutput
from stages.compute.stage_compute import StageCompute
from stages.compute.visual_row_buffer import VisualRowBuffer
from stages.device.hardware import is_alive
from stages.device.host_copy import Room
from stages.stage.envelope_checks import StageFacts
from stages.stage.occupancy import Occupancy
from stages.stage.profile import StageProfile
from stages.stage.sessions import StageSessions
from stages.stage.work import (
    Begun,
    Forward,
    Reply,
    StageWork,
    num_bytes_behind_hidden,
    refusal,
    send_on,
    session_failure,
)
from stages.worker.epoch_fence import EpochFence

log = structlog.get_logger()

T = TypeVar("T")
Place = Callable[[str, int], memoryview | None]


class StageEngine:
    """Runs envelopes against the stage's computation and keeps its sessions in order."""

    def __init__(
        self,
        compute: StageCompute,
        facts: StageFacts,
        fence: EpochFence,
        visual_rows: VisualRowBuffer,
        clock: Callable[[], float] = time.monotonic,
        place: Place = lambda _subject, _num_bytes: None,
    ) -> None:
        """`place` gives room for what is to be sent to a subject, as `Transport.place` does."""
        self.facts = facts
        self.sessions = StageSessions(compute, fence, visual_rows)
        self.occupancy = Occupancy()
        self.num_microbatches = 0
        self.num_tokens = 0
        self.busy_s = 0.0
        """Seconds of computing, by the device's own clock where it has one."""
        self.queue_s = 0.0
        """Seconds that microbatches have waited for earlier ones, added up."""
        self.is_device_lost = False
        """Whether the device answers no more, so that only a new process can go on."""
        self._free_at = 0.0  # when the last microbatch was done
        self._compute = compute
        self._clock = clock
        self._place = place
        self._profile = StageProfile(compute.device)

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
        self._free_at = self._clock()
        self.occupancy.leave(has_sessions=self.sessions.num_open > 0)

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
        self.sessions.require_epoch(envelope.epoch)
        self.sessions.close(envelope.closes)  # whatever becomes of the rest: that only frees
        waited_s = started - work.received_at
        if waited_s >= envelope.budget_s:
            raise DeadlineExceededError(
                f"microbatch {envelope.microbatch} had {envelope.budget_s:.3f} s left and waited {waited_s:.3f} s"
            )
        opened, refused = self.sessions.open(envelope.opens, work.tensors.history)
        failures = tuple(session_failure(opening, error, self.facts) for opening, error in refused)
        microbatch = work.microbatch(failures, is_first=self.facts.is_first)
        launched = self._compute.launch(microbatch, self._room_for_hidden(envelope))
        if envelope.segments and len(launched.output.repeats) == len(envelope.segments) and not failures:
            log.info("microbatch_repeated", microbatch=envelope.microbatch)
            return None
        return Begun(work, launched, tuple(opened), failures, started)

    def _room_for_hidden(self, envelope: Envelope) -> Room | None:
        """Say where hidden states may be put so that the next stage finds them there, in front of what goes along."""
        if len(envelope.route) == 1:
            return None
        subject, rest = envelope.route[1], num_bytes_behind_hidden(envelope)
        return lambda num_bytes: self._place(subject, num_bytes + rest)

    def _finish(self, begun: Begun) -> Forward | Reply:
        output = begun.launched.collect()
        failures = [*begun.failures, *(session_failure(*failure, self.facts) for failure in output.failures)]
        timing = self._timing(begun.work, begun.started, begun.launched.device_s)
        self.num_microbatches += 1
        self.num_tokens += sum(segment.count for segment in output.segments)
        self.busy_s += timing.compute_s
        self.queue_s += timing.queue_s
        _log_computed(begun.work, output, failures, timing)
        return send_on(begun, output, failures, timing, self.facts, self._clock())

    def _timing(self, work: StageWork, started: float, device_s: float | None) -> StageTiming:
        """Tell what the device took, and how long earlier microbatches were in the way; on a CPU by the host's clock.

        What remains, the host's work and ways between threads, counts as passed outside of stages: it is there however
        few microbatches are under way, so that the scheduler has to hide it behind others.
        """
        now = self._clock()
        compute_s = max(0.0, now - started if device_s is None else device_s)
        rest_s = max(0.0, now - work.received_at - compute_s)
        in_the_way_s = max(0.0, self._free_at - work.received_at)
        return StageTiming(worker=self.facts.worker, queue_s=min(in_the_way_s, rest_s), compute_s=compute_s)


def _log_computed(work: StageWork, output: StageOutput, failures: list[SessionFailure], timing: StageTiming) -> None:
    for failure in failures:
        log.info(
            "session_failed",
            session=failure.session,
            attempt=failure.attempt,
            code=failure.failure.code,
            reason=failure.failure.message,
        )
    log.debug(
        "microbatch_done",
        microbatch=work.envelope.microbatch,
        num_tokens=sum(segment.count for segment in output.segments),
        sessions=[segment.session for segment in output.segments],
        queue_s=timing.queue_s,
        compute_s=timing.compute_s,
    )
