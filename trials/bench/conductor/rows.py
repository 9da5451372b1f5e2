"""What `bench conductor` is asked, and what it answers."""

from __future__ import annotations

import msgspec

PARTS = ("receive", "complete", "take", "plan", "build", "send", "commit", "events")
"""What a token passes through: result decoded, scheduler told, text and stop checks, next step planned, its envelope
built, encoded and handed to NATS, tokens committed to Redis, events published."""


class ConductorBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    num_sessions: tuple[int, ...]
    num_output_tokens: int
    tokens_per_s: float
    """The stage's pace."""
    seconds: float
    """Measured, for each number of sessions."""
    are_watched: bool = False
    """Whether somebody streams every session."""


class ConductorRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent with one number of sessions: seconds of a core."""

    num_sessions: int
    num_tokens: int
    num_jobs: int
    seconds: float
    total_s: float
    parts_s: dict[str, float]
    """By part of the way of a token, see `PARTS`."""
    jobs_s: float
    """Attempts begun, sessions started, results written."""

    def per_token_us(self, part: str) -> float:
        """Return microseconds per token of one part."""
        return 1e6 * self.parts_s.get(part, 0.0) / max(1, self.num_tokens)

    @property
    def rest_us(self) -> float:
        """Microseconds per token of everything else: event loop, sockets, Redis's protocol."""
        return 1e6 * (self.total_s - sum(self.parts_s.values()) - self.jobs_s) / max(1, self.num_tokens)

    @property
    def token_us(self) -> float:
        """Microseconds per token without what was spent on jobs."""
        return 1e6 * (self.total_s - self.jobs_s) / max(1, self.num_tokens)

    @property
    def job_us(self) -> float:
        """Microseconds per job without its tokens, as far as this benchmark runs it: no queue, no vision, no media."""
        return 1e6 * self.jobs_s / max(1, self.num_jobs)
