"""What `bench gateway` is asked, and what it answers."""

from __future__ import annotations

import msgspec

from trials.bench.spread import Spread


class GatewayBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    num_processes: int
    num_clients: int
    """Processes that send."""
    num_answerers: int
    """Processes that answer jobs."""
    num_in_flight: int
    """Captions at the same time, of all clients together; each has a connection of its own."""
    rate: float | None
    """Captions that begin in a second, of all clients together; None: the next one as soon as one has ended."""
    is_streamed: bool
    """Whether captions are streamed chat completions; else they are submitted and polled for."""
    is_bulk: bool
    """Whether many are submitted, and polled for, in one request."""
    num_unread: int
    """Further clients that ask for a stream and never read it."""
    picture_side: int
    seconds: float
    """Measured, after a warm-up."""


class Caption(msgspec.Struct, frozen=True, array_like=True):
    """One caption as its client saw it: times of the machine's monotonic clock, in seconds."""

    began: float
    accepted: float
    """The answer to the submission, or a stream's first event."""
    ended: float


class ClientReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one client process saw."""

    captions: tuple[Caption, ...]
    refusals: dict[str, int]
    """Answers other than success by status, and captions that did not succeed by theirs."""


class GatewayRow(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement."""

    num_processes: int
    num_captions: int
    seconds: float
    submission_s: Spread
    caption_s: Spread
    """From the first byte sent to the result."""
    submission_p99_s: float
    """To the answer to a submission, or a stream's first event."""
    caption_p99_s: float
    cpu_s: dict[str, float]
    """Seconds of a core by part: gateway, nats, redis, answering, clients."""
    refusals: dict[str, int]
    gateway_processes_s: tuple[float, ...]
    """Seconds of a core that each gateway process used: how evenly connections are spread."""
    own_s: dict[str, float] = {}
    """Seconds on average by part of the gateway's work: read, store (until NATS and Redis have the job), tell."""
    gateway_bytes: int
    """Memory of the gateway's processes at the end, what they share counted in each."""

    @property
    def captions_per_s(self) -> float:
        """Captions per second."""
        return self.num_captions / self.seconds

    def cpu_ms(self, part: str) -> float:
        """Return milliseconds of a core per caption."""
        return 1e3 * self.cpu_s[part] / max(1, self.num_captions)
