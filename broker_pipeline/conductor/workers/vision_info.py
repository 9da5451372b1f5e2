"""What a conductor knows of one vision worker."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker_pipeline.conductor.workers.device_loads import RecentRatio
from broker_pipeline.messages.workers import WorkerRecord

_HALF_S = 5.0  # idle for so long, a worker is taken for twice as fast
_MOST_OVERTAKEN = 8


@dataclass(slots=True, eq=False)
class VisionInfo:
    """One instance."""

    record: WorkerRecord
    is_alive: bool = True
    is_mute: bool = False
    """Whether it has just not answered when it was asked whether it is there; what it is asked is late."""
    is_back: bool = True
    """Whether it was heard since the broker was last away: before, what it is sent may go where it is no longer."""
    heard_at: float = field(default=0.0)
    num_requests: int = field(default=0)
    num_deaths: int = field(default=0)
    """Rises when it dies or falls silent: what it had in hand is lost, and may be the cause."""
    num_outages: int = field(default=0)
    """Rises when the broker was away: what it was asked may be lost, and nobody is the cause."""
    has_suspect: bool = field(default=False)
    """Whether it is, or was when it died, one suspected session's alone."""
    num_answered: int = field(default=0)
    answered_at: float = field(default=0.0)
    num_overtaken: int = field(default=0)
    """Requests that others have answered in its place since it last answered any."""
    num_overtaken_in_all: int = field(default=0)
    answer_due_at: float | None = field(default=None)
    """Until when the first of these, which is left to it, has to be answered: that shows whether it ever answers."""
    tower_s: RecentRatio = field(default_factory=RecentRatio)
    """Seconds that the tower is busy for a request."""

    def request_s(self, now: float) -> float | None:
        """Return the seconds of the tower that the next request will take, as far as is known."""
        known_s = self.tower_s.value
        if known_s is None or self.num_requests:
            return known_s
        return float(known_s * 0.5 ** ((now - self.answered_at) / _HALF_S))

    @property
    def slowness(self) -> int:
        """How much slower than it seems it is taken for, since others had to answer in its place."""
        return int(2 ** min(self.num_overtaken, _MOST_OVERTAKEN))

    @property
    def is_usable(self) -> bool:
        """Whether it takes requests."""
        return self.is_alive and self.is_back and self.record.state == "ready"

    def note_heard(self, now: float) -> None:
        """Note a sign of life."""
        self.heard_at, self.is_mute = now, False

    def note_overtaken(self, due_at: float) -> bool:
        """Note that another has answered in its place; whether the request is to be taken back from it."""
        self.num_overtaken += 1
        self.num_overtaken_in_all += 1
        if self.answer_due_at is not None:
            return True
        self.answer_due_at = due_at
        return False

    def note_answer(self, now: float) -> None:
        """Note an answer to a request, whatever it says."""
        self.note_heard(now)
        self.num_overtaken, self.answer_due_at = 0, None
