"""A microbatch that is queued on the device, and what is left to do once it is done there.

    compute thread    launch k │ launch k+1 │ launch k+2 …            never waits for the GPU
    GPU                       │ ═══ k ═════│═══ k+1 ════│═══ k+2 …
    another thread                          │ collect k  │ collect k+1 …

On the CPU everything has happened when `launch` returns.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from broker_pipeline.errors import ComputeError, PipelineError
from broker_pipeline.messages.activation import Segment
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.tracing.activities import DEVICE
from stages.compute.microbatch import LogitRow, StageOutput
from stages.compute.sampling.sampler import Choice, PendingChoices
from stages.device.host_copy import HostCopy
from stages.device.times import Piece


class DeviceClock:
    """When the device began and ended something: events in its stream. A stand-still on the CPU.

    Whoever waits sleeps: by default CUDA spins, which took a core of each stage whenever its GPU computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._began = torch.cuda.Event(enable_timing=True, blocking=True) if self._is_cuda else None
        self._ended = torch.cuda.Event(enable_timing=True, blocking=True) if self._is_cuda else None
        self.seen_ns = 0
        """When the end was noticed, in nanoseconds of the host's monotonic clock; 0 before that."""
        if self._began is not None:
            self._began.record()

    def end(self) -> None:
        """Mark the end of what was queued since."""
        if self._ended is not None:
            self._ended.record()

    def wait(self) -> None:
        """Return when the device has come to the end; other threads go on meanwhile."""
        if self._ended is not None:
            self._ended.synchronize()
            self.seen_ns = time.monotonic_ns()

    @property
    def piece(self) -> Piece | None:
        """Beginning and end for a profile; None on the CPU."""
        if self._began is None or self._ended is None:
            return None
        return Piece(DEVICE, self._began, self._ended)

    @property
    def seconds(self) -> float | None:
        """Seconds between the two, once waited for; None on the CPU."""
        if self._began is None or self._ended is None:
            return None
        return float(self._began.elapsed_time(self._ended)) / 1e3


@dataclass(frozen=True, slots=True)
class Launched:
    """A microbatch on its way through the device.

    `output` is what is known already: everything but `hidden`, `tokens` and failures of sampling.
    """

    output: StageOutput
    hidden: HostCopy
    wanted: tuple[LogitRow, ...]
    choices: PendingChoices | None
    clock: DeviceClock
    num_tokens: int
    pieces: tuple[Piece, ...] = ()
    """What was timed of it, for a profile."""

    def collect(self) -> StageOutput:
        """Wait for the device and return what the stage made of the microbatch.

        Raises:
            ComputeError: the device failed.
        """
        try:
            self.clock.wait()
            hidden = self.hidden.wait()
        except RuntimeError as error:
            raise ComputeError(f"the computation of {self.num_tokens} tokens failed: {error}") from error
        tokens, failures = self._sampled()
        return replace(self.output, hidden=hidden, tokens=tuple(tokens), failures=(*self.output.failures, *failures))

    @property
    def device_s(self) -> float | None:
        """Seconds that the device took, once collected; None where host and device are one."""
        return self.clock.seconds

    def _sampled(self) -> tuple[list[SampledToken], list[tuple[Segment, PipelineError]]]:
        """Return what was sampled, and what could not be.

        Behind a draft there may be nothing to sample because it is wrong. That is no failure: what comes after it is
        left out, and is computed again where the draft was right.
        """
        tokens: list[SampledToken] = []
        failures: list[tuple[Segment, PipelineError]] = []
        outcomes = self.choices.collect() if self.choices is not None else []
        broken: Segment | None = None
        for row, outcome in zip(self.wanted, outcomes, strict=True):
            if row.segment is broken:
                continue
            if isinstance(outcome, Choice):
                tokens.append(_sampled(row, outcome))
                continue
            broken = row.segment
            if not row.is_behind_draft:
                failures.append((row.segment, outcome))
        return tokens, failures


def _sampled(row: LogitRow, choice: Choice) -> SampledToken:
    return SampledToken(
        session=row.segment.session,
        attempt=row.segment.attempt,
        position=row.position,
        token_id=choice.token_id,
        logprob=choice.logprob,
        top=choice.top,
    )
