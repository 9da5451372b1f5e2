"""Puts what Redis holds and what NATS tells about one job into one sequence without gap or repeat. Pure.

Redis is the truth, NATS is quick but forgets. An event of NATS that continues exactly what the client has seen is
passed on; one that repeats is cut; anything else (`must_look`) asks the caller to read Redis for `take_state`:

    seen: 5 tokens      event [3, 5)  dropped
                        event [4, 7)  its last 2 passed on
                        event [5, 6)  passed on
                        event [8, 9)  gap: look into Redis
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker_pipeline.messages.jobs import FINAL_STATUSES, JobEvent, JobRecord, TokenEntry

MAX_TOKENS_PER_EVENT = 512


class JobProgress:
    """How much of one job's life a client has been told."""

    def __init__(self, job_id: str, *, num_tokens: int = 0, is_resumed: bool = False) -> None:
        """Begin with nothing told; a resumed client has seen `num_tokens` tokens and knows that the job is queued."""
        self._job_id = job_id
        self.num_tokens = num_tokens
        self._has_queued = is_resumed
        self._has_started = False
        self.is_finished = False
        self.must_look = False
        """Whether Redis must be read before anything more can be told."""

    def take_state(self, record: JobRecord, tokens: Sequence[TokenEntry]) -> Iterator[JobEvent]:
        """Yield what the client lacks of a state: `tokens` from number `num_tokens` on, read after `record`."""
        self.must_look = False
        if not self._has_queued:
            self._has_queued = True
            yield JobEvent(job_id=self._job_id, kind="queued", index=self.num_tokens, record=record)
        if record.started_at is not None:
            yield from self._start(record)
        for start in range(0, len(tokens), MAX_TOKENS_PER_EVENT):
            yield self._tokens(tuple(tokens[start : start + MAX_TOKENS_PER_EVENT]))
        if record.status in FINAL_STATUSES and not self.is_finished:
            self.is_finished = True
            yield JobEvent(job_id=self._job_id, kind="finished", index=self.num_tokens, record=record)

    def take_event(self, event: JobEvent) -> Iterator[JobEvent]:
        """Yield what is new to the client in an event of NATS; may set `must_look`."""
        if event.kind == "started":
            yield from self._start(event.record)
        elif event.kind == "finished":
            self.must_look = not self.is_finished
        elif event.kind == "tokens" and event.index > self.num_tokens:
            self.must_look = True
        elif event.kind == "tokens" and (fresh := event.tokens[self.num_tokens - event.index :]):
            yield self._tokens(fresh)

    def _start(self, record: JobRecord | None) -> Iterator[JobEvent]:
        if not self._has_started:
            self._has_started = True
            yield JobEvent(job_id=self._job_id, kind="started", index=self.num_tokens, record=record)

    def _tokens(self, tokens: tuple[TokenEntry, ...]) -> JobEvent:
        event = JobEvent(job_id=self._job_id, kind="tokens", index=self.num_tokens, tokens=tokens)
        self.num_tokens += len(tokens)
        return event
