"""What `bench conductor` is asked, and what it answers."""

from __future__ import annotations

import msgspec

PARTS = (
    *("pull", "begin", "prepare"),
    *("plan", "build", "send", "receive", "complete", "take"),
    *("commit", "finish", "release", "ack"),
)
"""What a caption passes through: its job pulled, begun, prepared; its steps planned, built as envelopes, encoded and
handed to NATS, results decoded, the scheduler told, text and stop checks; tokens committed to Redis, the job's result
written, its media released, its message acknowledged."""


class ConductorBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    num_sessions: tuple[int, ...]
    num_stages: int = 1
    num_output_tokens: int
    tokens_per_s: float
    """The route's pace."""
    seconds: float
    """Measured, for each number of sessions."""
    are_watched: bool = False
    """Whether somebody streams every session."""


class ConductorRow(msgspec.Struct, frozen=True, kw_only=True):
    """What was spent with one number of sessions: seconds of a core."""

    num_sessions: int
    num_tokens: int
    num_microbatches: int
    seconds: float
    total_s: float
    """Of the conductor's process, all in."""
    parts_s: dict[str, float]
    """By part of a caption's way, see `PARTS`, on the wall's clock."""

    num_output_tokens: int
    """Of one caption."""

    @property
    def num_captions(self) -> float:
        """Captions by their tokens, since jobs end in waves."""
        return self.num_tokens / self.num_output_tokens

    def part_us(self, part: str) -> float:
        """Return microseconds of one part per caption."""
        return 1e6 * self.parts_s.get(part, 0.0) / max(1.0, self.num_captions)

    @property
    def caption_us(self) -> float:
        """Microseconds of a core per caption, all in."""
        return 1e6 * self.total_s / max(1.0, self.num_captions)

    @property
    def rest_us(self) -> float:
        """Microseconds per caption of everything else: event loop, tasks, sockets, Redis's protocol, collector."""
        return self.caption_us - sum(map(self.part_us, PARTS))
