"""Which sessions a stage knows, in which attempt, and how many of their tokens are cached. Bookkeeping only.

    segment (attempt, start, count)       known attempt, `num_cached` = c
    ───────────────────────────────       ──────────────────────────────────────────
    start == c                            compute; on success c += count
    start + count <= c                    a repeat: left out, it is done already
    start > c, or start < c < stop        KVPositionError
    lower attempt                         StaleAttemptError
    higher attempt, or session not here   SessionUnknownError

Closed attempts are remembered for a while, so that an envelope which was stuck somewhere cannot bring one back and
hold KV that nobody will free.
"""

from __future__ import annotations

from dataclasses import dataclass

from broker_pipeline.errors import KVPositionError, SessionUnknownError, StaleAttemptError
from broker_pipeline.messages import Segment, SessionOpen

_NUM_REMEMBERED = 65_536


@dataclass(slots=True)
class StageSession:
    """One session on this stage."""

    opening: SessionOpen
    num_cached: int = 0

    @property
    def attempt(self) -> int:
        """The attempt that this state belongs to."""
        return self.opening.attempt


class SessionLedger:
    """Sessions of one epoch."""

    def __init__(self, num_remembered: int = _NUM_REMEMBERED) -> None:
        self._sessions: dict[str, StageSession] = {}
        self._closed: dict[str, int] = {}
        self._num_remembered = num_remembered

    def __len__(self) -> int:
        return len(self._sessions)

    def __contains__(self, session: str) -> bool:
        return session in self._sessions

    def __getitem__(self, session: str) -> StageSession:
        return self._sessions[session]

    def names(self) -> tuple[str, ...]:
        """Return the sessions that are open."""
        return tuple(self._sessions)

    def replaces(self, opening: SessionOpen) -> bool:
        """Say whether an older attempt must go before `opening` can come; False also for a repeat of it.

        Raises:
            StaleAttemptError: a newer attempt is open, or this one or a newer one was closed.
        """
        known = self._sessions.get(opening.session)
        newest = max(self._closed.get(opening.session, 0) + 1, known.attempt if known else 0)
        if opening.attempt < newest:
            raise _stale(opening.session, opening.attempt)
        return known is not None and known.attempt < opening.attempt

    def is_open(self, session: str, attempt: int) -> bool:
        """Say whether this very attempt is open."""
        known = self._sessions.get(session)
        return known is not None and known.attempt == attempt

    def add(self, opening: SessionOpen) -> StageSession:
        """Enter a session; call `replaces` before."""
        self._sessions[opening.session] = session = StageSession(opening)
        return session

    def remove(self, session: str, attempt: int) -> bool:
        """Forget a session if `attempt` is its own or a newer one, and say whether it was open; remember it closed."""
        self._closed[session] = max(attempt, self._closed.pop(session, 0))  # pop: renews its place in the order
        if len(self._closed) > self._num_remembered:
            del self._closed[next(iter(self._closed))]
        known = self._sessions.get(session)
        if known is None or known.attempt > attempt:
            return False
        del self._sessions[session]
        return True

    def admit(self, segment: Segment) -> bool:
        """Say whether a segment is to be computed; False for one that is done already.

        Raises:
            SessionUnknownError, StaleAttemptError, KVPositionError: see the table above.
        """
        known = self._sessions.get(segment.session)
        if known is None or known.attempt < segment.attempt:
            raise SessionUnknownError(f"session {segment.session}, attempt {segment.attempt}, is not open here")
        if known.attempt > segment.attempt:
            raise _stale(segment.session, segment.attempt)
        if segment.start == known.num_cached:
            return True
        if segment.start + segment.count <= known.num_cached:
            return False
        raise KVPositionError(
            f"session {segment.session} has {known.num_cached} tokens cached; "
            f"a segment of {segment.count} from {segment.start} does not continue it"
        )

    def advance(self, segment: Segment) -> None:
        """Record that a segment is computed."""
        self._sessions[segment.session].num_cached = segment.start + segment.count

    def clear(self) -> None:
        """Forget everything: a new epoch begins."""
        self._sessions.clear()
        self._closed.clear()


def _stale(session: str, attempt: int) -> StaleAttemptError:
    return StaleAttemptError(f"attempt {attempt} of session {session} is over", field="attempt")
