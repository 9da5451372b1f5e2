"""Puts what Redis holds and what NATS tells about one job into one sequence without gap or repeat. Pure.

Redis is the truth, NATS is quick but forgets. An event of NATS that continues exactly what the client has seen is
passed on; one that repeats is cut; anything else (`must_look`) asks the caller to read Redis for `take_state`:

    seen: 5 tokens      event [3, 5)  dropped
                        event [4, 7)  its last 2 passed on
                        event [5, 6)  passed on
                        event [8, 9)  gap: look into Redis
                        event of a later attempt: look, since it may have begun again from token 0
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker_pipeline.messages.jobs import FINAL_STATUSES, EventKind, JobEvent, JobRecord, TokenEntry

MAX_TOKENS_PER_EVENT = 512


class JobProgress:
    """How much of one job's life a client has been told."""

    def __init__(self, job_id: str, *, num_tokens: int = 0, first_attempt: int = 1, is_resumed: bool = False) -> None:
        """Begin with nothing told.

        A resumed client says that it has seen `num_tokens` tokens, the first of `first_attempt`, and that it knows that
        the job is queued. Where the job ends with fewer tokens, what it has seen is not this job's; until then Redis
        may only be behind: what it lost at a failover is computed again, to the same tokens.
        """
        self._job_id = job_id
        self.num_tokens = num_tokens
        self._first_attempt = first_attempt
        self._attempt = first_attempt
        self._has_queued = is_resumed
        self._is_unproven = is_resumed and num_tokens > 0
        self._has_started = False
        self.is_finished = False
        self.must_look = False
        """Whether Redis must be read before anything more can be told."""

    @property
    def start(self) -> int:
        """From which token on `take_state` has to be given them: the last one of a resumed client as well."""
        return self.num_tokens - self._is_unproven

    def take_state(self, record: JobRecord, tokens: Sequence[TokenEntry]) -> Iterator[JobEvent]:
        """Yield what the client lacks of a state: `record` and `tokens` from number `start` on, of one moment.

        Where the job has begun again, that is all: `must_look` asks for its tokens from number 0 on.
        """
        self.must_look, self._attempt = False, record.attempt
        was_unproven, is_over = self._is_unproven, record.status in FINAL_STATUSES
        self._is_unproven = was_unproven and not tokens and not is_over
        if record.first_attempt != self._first_attempt or (was_unproven and is_over and not tokens):
            yield from self._restart(record)
        if self.must_look:
            return
        tokens = tokens[1:] if was_unproven else tokens
        if not self._has_queued:
            self._has_queued = True
            yield self._event("queued", record)
        if record.started_at is not None:
            yield from self._start(record)
        for start in range(0, len(tokens), MAX_TOKENS_PER_EVENT):
            yield self._tokens(tuple(tokens[start : start + MAX_TOKENS_PER_EVENT]))
        if is_over and not self.is_finished:
            self.is_finished = True
            yield self._event("finished", record)

    def take_event(self, event: JobEvent) -> Iterator[JobEvent]:
        """Yield what is new to the client in an event of NATS; may set `must_look`."""
        if event.kind == "started":
            yield from self._start(event.record)
        elif event.kind == "finished":
            self.must_look = not self.is_finished
        elif event.kind == "tokens" and (event.attempt > self._attempt or event.index > self.num_tokens):
            self.must_look = True
        elif event.kind == "tokens" and event.attempt >= self._first_attempt:
            yield from self._rest(event)

    def _rest(self, event: JobEvent) -> Iterator[JobEvent]:
        if fresh := event.tokens[self.num_tokens - event.index :]:
            yield self._tokens(fresh)

    def _restart(self, record: JobRecord) -> Iterator[JobEvent]:
        """Forget the tokens that were told, and say so if there were any."""
        self.must_look = self.num_tokens > 0
        self._first_attempt, self.num_tokens, self._is_unproven = record.first_attempt, 0, False
        if self.must_look:
            yield self._event("restarted", record)

    def _start(self, record: JobRecord | None) -> Iterator[JobEvent]:
        if not self._has_started:
            self._has_started = True
            yield self._event("started", record)

    def _tokens(self, tokens: tuple[TokenEntry, ...]) -> JobEvent:
        event = self._event("tokens", None, tokens)
        self.num_tokens += len(tokens)
        return event

    def _event(self, kind: EventKind, record: JobRecord | None, tokens: tuple[TokenEntry, ...] = ()) -> JobEvent:
        return JobEvent(
            job_id=self._job_id,
            kind=kind,
            index=self.num_tokens,
            first_attempt=self._first_attempt,
            tokens=tokens,
            record=record,
        )
