"""Writes sampled tokens to Redis alongside the decode path, many sessions in one round trip.

    add ──► pending, by job ──► one script call ──► event, where somebody watches the job
             (bounded: without room,     │
             no further step is planned) └── refused: the job has a newer attempt, or Redis has lost it

    watched                        committed within 20 ms
    its end waits for that         at once; where nobody watches, with the end
    watched from now on            what is pending of it at once
    everything else                all together, once one job has 32 or the oldest token is a second old: many share
                                   the cost (a conductor that dies before has them sampled again, to the same tokens)

Events never run ahead of what Redis holds, and a job is finished only with or after its `last` tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from broker_pipeline.conductor.output.job_events import JobEvents
from broker_pipeline.errors import GarbledStateError, StateError
from broker_pipeline.messages.jobs import JobEvent, TokenEntry
from broker_pipeline.process.broadcast_event import BroadcastEvent
from broker_pipeline.state.job_store import JobStore, TokenCommit
from broker_pipeline.tracing.activities import COMMIT, TELL
from broker_pipeline.tracing.tracer import tracer

log = structlog.get_logger()

MAX_PENDING_TOKENS = 65_536
INTERVAL_S = 0.02
GATHER_S = 1.0
GATHER_TOKENS = 32
_MANY_TOKENS = MAX_PENDING_TOKENS // 2
_PAUSE_S = 0.25
_MAX_JOBS = 256

OnRefused = Callable[[str, int], None]


@dataclass(slots=True)
class _Pending:
    attempt: int
    start: int
    since: float
    entries: list[TokenEntry]


class Committer:
    """Tokens on their way to Redis."""

    def __init__(
        self,
        store: JobStore,
        events: JobEvents,
        on_refused: OnRefused,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_refused(job_id, attempt)` is told of an attempt whose tokens Redis does not take any more."""
        self._store = store
        self._events = events
        self._on_refused = on_refused
        self._clock = clock
        self._pending: dict[str, _Pending] = {}
        self._urgent: dict[str, None] = {}
        self._committing: frozenset[str] = frozenset()
        self.num_tokens = 0
        """Tokens that Redis does not hold yet."""
        self._is_enough = False
        self._work = asyncio.Event()
        self._hurry = asyncio.Event()
        self._progress = BroadcastEvent()
        self.is_reachable = True
        """Whether Redis took the last commit."""

    def add(self, job_id: str, attempt: int, start: int, entry: TokenEntry) -> None:
        """Take the token with number `start` of a job."""
        pending = self._pending.get(job_id)
        if pending is None or pending.attempt != attempt:
            pending = self._open(job_id, attempt, start)
        entries = pending.entries
        assert start == pending.start + len(entries), f"token {start} of {job_id} does not follow"
        entries.append(entry)
        self.num_tokens += 1
        if len(entries) == GATHER_TOKENS or self.num_tokens == _MANY_TOKENS:
            self._is_enough = True
            self._hurry.set()

    def _open(self, job_id: str, attempt: int, start: int) -> _Pending:
        self.drop(job_id)
        pending = self._pending[job_id] = _Pending(attempt, start, self._clock(), [])
        if self._events.is_watched(job_id):
            if not self._urgent:
                asyncio.get_running_loop().call_later(INTERVAL_S, self._hurry.set)
            self._urgent[job_id] = None
        self._work.set()
        return pending

    def drop(self, job_id: str) -> None:
        """Forget what is pending of a job: its attempt is over."""
        self._urgent.pop(job_id, None)
        if pending := self._pending.pop(job_id, None):
            self.num_tokens -= len(pending.entries)

    async def flushed(self, job_id: str) -> None:
        """Return once nothing of a job is pending."""
        while job_id in self._pending or job_id in self._committing:
            if job_id in self._pending:
                self._urgent[job_id] = None
                self._hurry.set()
            await self._progress.wait()

    async def last(self, job_id: str, attempt: int) -> TokenCommit | None:
        """Give out what is pending of an attempt whose end is written next, to be committed with that.

        None when there is nothing, or when somebody watches the job: then it is committed, and told, before this
        returns.
        """
        if self._events.is_watched(job_id):
            await self.flushed(job_id)
        while job_id in self._committing:
            await self._progress.wait()
        pending = self._pending.get(job_id)
        if pending is None:
            return None
        self.drop(job_id)
        self._progress.fire()
        if pending.attempt != attempt:
            return None
        return TokenCommit(job_id, pending.attempt, pending.start, tuple(pending.entries))

    async def room(self) -> None:
        """Return once there is room."""
        while self.num_tokens >= MAX_PENDING_TOKENS:
            await self._progress.wait()

    async def run(self) -> None:
        """Commit until cancelled."""
        with self._events.watched_anew.heard_by(self._hurry_watched):
            while True:
                await self._work.wait()
                await self._next_turn()
                while commits := self._take(self._clock()):
                    await self._commit(commits)
                if not self._pending:
                    self._work.clear()

    def _hurry_watched(self) -> None:
        """Commit at once what somebody watches from now on."""
        self._urgent |= {job_id: None for job_id in self._pending if self._events.is_watched(job_id)}
        if self._urgent:
            self._hurry.set()

    async def _next_turn(self) -> None:
        """Let tokens gather until the oldest are due, or somebody waits for some."""
        oldest = next(iter(self._pending.values()), None)
        wait_s = oldest.since + GATHER_S - self._clock() if oldest else 0.0
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                await self._hurry.wait()
        except TimeoutError:
            pass
        self._hurry.clear()

    def _take(self, now: float) -> list[TokenCommit]:
        """Take everything when the oldest is due, otherwise what somebody waits for."""
        commits: list[TokenCommit] = []
        for job_id in list(itertools.islice(self._pending if self._is_due(now) else self._urgent, _MAX_JOBS)):
            self._urgent.pop(job_id, None)
            pending = self._pending.pop(job_id)
            commits.append(TokenCommit(job_id, pending.attempt, pending.start, tuple(pending.entries)))
        self._committing = frozenset(commit.job_id for commit in commits)
        return commits

    def _is_due(self, now: float) -> bool:
        oldest = next(iter(self._pending.values()), None)
        is_due = oldest is not None and (self._is_enough or now >= oldest.since + GATHER_S)
        self._is_enough = False
        return is_due

    async def _commit(self, commits: list[TokenCommit]) -> None:
        with tracer.measure(COMMIT, num_jobs=len(commits)):
            taken = await self._until_taken(commits)
        self._committing = frozenset()
        self.num_tokens -= sum(len(commit.entries) for commit in commits)
        self._progress.fire()
        committed = tracer.now()
        for commit, is_taken in zip(commits, taken, strict=True):
            if is_taken and self._events.is_watched(commit.job_id):
                await self._events.say(_event(commit))
            elif not is_taken:
                log.warning("commit_refused", job=commit.job_id, attempt=commit.attempt, start=commit.start)
                self._on_refused(commit.job_id, commit.attempt)
        tracer.span(TELL, committed, num_jobs=len(commits))

    async def _until_taken(self, commits: list[TokenCommit]) -> list[bool]:
        while True:
            try:
                taken = await self._store.commit(commits)
            except GarbledStateError as error:
                if len(commits) > 1:  # one of these jobs is to blame; their tokens may be committed twice
                    return [taken for commit in commits for taken in await self._until_taken([commit])]
                log.warning("commit_unreadable", job=commits[0].job_id, reason=error.message)
                return [False]
            except StateError as error:
                if self.is_reachable:
                    log.warning("commits_interrupted", num_jobs=len(commits), reason=error.message)
                self.is_reachable = False
                await asyncio.sleep(_PAUSE_S)
                continue
            if not self.is_reachable:
                log.info("commits_resumed", num_tokens=self.num_tokens)
                self.is_reachable = True
            return taken


def _event(commit: TokenCommit) -> JobEvent:
    return JobEvent(
        job_id=commit.job_id, kind="tokens", index=commit.start, attempt=commit.attempt, tokens=commit.entries
    )
