"""A microbatch as planned: what goes along a route in one envelope, and the result's meaning for the scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from broker_pipeline.errors import Failure
from broker_pipeline.messages.sampling import SampledToken
from broker_pipeline.scheduling.kv_ledger import Close
from broker_pipeline.scheduling.routes import Route
from broker_pipeline.scheduling.session_state import SessionState


class PlannedSegment(msgspec.Struct, frozen=True, eq=False, gc=False):
    """Tokens `[start, start + count)` of one session; `wants_token` when they are the last ones known, or drafts.

    A struct, since one is made for every token: a frozen dataclass takes five times as long.
    """

    session: SessionState
    start: int
    count: int
    wants_token: bool
    opens: bool = False
    num_kv_tokens: int = 0
    """KV to have from now on, where that is more than before; 0 leaves it."""
    drafts: tuple[int, ...] = ()
    """Token ids of its last tokens, where these are guesses: they follow the last one known."""

    @property
    def stop(self) -> int:
        """One past the last token."""
        return self.start + self.count


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """One envelope to be. `sent_at` and `deadline` are on the caller's clock, in seconds."""

    number: int
    route: Route
    segments: tuple[PlannedSegment, ...]
    closes: tuple[Close, ...]
    sent_at: float
    deadline: float
    suspect_at: float = float("inf")
    """When it is late enough to ask whether it was lost on its way."""
    num_tokens: int = 0
    """Tokens to be computed: those of the segments."""

    @property
    def is_alone(self) -> bool:
        """Whether it holds just one session that must be by itself."""
        return len(self.segments) == 1 and self.segments[0].session.is_alone


@dataclass(frozen=True, slots=True)
class Lost:
    """A session that the scheduler has let go of; it needs a new attempt, or fails.

    `is_blamed` says that it may itself have been the cause: it was in the microbatch that failed. `suspects` are the
    workers, by key, that may have been the cause just as well. `is_preempted`: it goes on within its attempt.
    """

    session: SessionState
    failure: Failure
    is_blamed: bool = False
    suspects: tuple[str, ...] = ()
    is_preempted: bool = False


class Sampled(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A session's next tokens: one, and one more for each draft that was right. The session is ready for more."""

    session: SessionState
    tokens: tuple[SampledToken, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the answer to a microbatch came to."""

    microbatch: PlannedBatch | None = None
    """None: nobody waits for this answer any more."""
    sampled: list[Sampled] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    failure: Failure | None = None
    """Why the whole microbatch failed."""
    repeated: list[SessionState] = field(default_factory=list)
    """Sessions that were lost before, and have their first token in this attempt."""
