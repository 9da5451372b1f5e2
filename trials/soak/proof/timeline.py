"""What was seen of every job, and when: the token streams, and how long a fault kept jobs from moving. Pure.

fault ──────┬──────────────────────────────────────────►
job a  ···t │ t   t                        first_token_s: the shortest way to the next sign of life
job b  ··t· │         t  t                 all_moving_s: the longest one, over jobs that were under way
job c       │       (was not under way)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from broker_pipeline.messages.jobs import JobEvent


@dataclass(frozen=True, slots=True)
class SeenTokens:
    """Tokens that a streaming client would have seen; `index` is the number of those before them."""

    at: float
    index: int
    token_ids: tuple[int, ...]


@dataclass(slots=True)
class JobTimeline:
    """One job: when it was heard of, and what it said. Times are of the monotonic clock."""

    tokens: list[SeenTokens] = field(default_factory=list)
    finished: list[tuple[float, str | None]] = field(default_factory=list)
    """When, and the text of its result ('' where it has none, None where that was not said); for each event of its end.
    """

    def was_under_way(self, at: float) -> bool:
        """Whether it had said something, and had more to say."""
        return bool(self.tokens) and self.tokens[0].at < at < self.last_at

    @property
    def last_at(self) -> float:
        """When it was heard of last."""
        return max([seen.at for seen in self.tokens[-1:]] + [at for at, _ in self.finished], default=0.0)

    def next_sign_s(self, at: float) -> float:
        """Return the seconds from `at` to its next tokens or its end; it must be under way."""
        signs = [seen.at for seen in self.tokens] + [when for when, _ in self.finished]
        return min(sign for sign in signs if sign > at) - at


class Timelines:
    """The timelines of all jobs."""

    def __init__(self) -> None:
        """Start without jobs."""
        self.jobs: dict[str, JobTimeline] = {}

    def take(self, event: JobEvent, at: float) -> None:
        """Note an event."""
        job = self.jobs.setdefault(event.job_id, JobTimeline())
        if event.kind == "tokens":
            job.tokens.append(SeenTokens(at, event.index, tuple(token.token_id for token in event.tokens)))
        elif event.kind == "finished":
            text = None
            if event.record is not None:
                text = event.record.result.text if event.record.result else ""
            job.finished.append((at, text))

    def recovery(self, at: float) -> Recovery:
        """Say how a fault at the time `at` was felt."""
        return recovery_of(self.jobs.values(), at)


@dataclass(frozen=True, slots=True)
class Recovery:
    """How long jobs that were under way at a fault stood still; None when none was under way."""

    num_under_way: int
    first_token_s: float | None
    all_moving_s: float | None


def recovery_of(jobs: Iterable[JobTimeline], at: float) -> Recovery:
    """Look at all jobs that were under way at the time `at`."""
    gaps = [job.next_sign_s(at) for job in jobs if job.was_under_way(at)]
    return Recovery(len(gaps), min(gaps, default=None), max(gaps, default=None))


def contradiction(job: JobTimeline, token_ids: Sequence[int]) -> str | None:
    """Return where a stream said other tokens than `token_ids`, None where it did not."""
    for seen in job.tokens:
        expected = tuple(token_ids[seen.index : seen.index + len(seen.token_ids)])
        if expected != seen.token_ids:
            return f"at token {seen.index} the stream said {list(seen.token_ids)}, the result holds {list(expected)}"
    return None
