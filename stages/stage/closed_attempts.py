"""Which attempts are over, so that a message that was stuck somewhere cannot bring one back.

Without this memory, an envelope that sat in the socket of a paused stage would open its session again after the close
had passed, and hold KV that nobody will free.
"""

from __future__ import annotations

from broker_pipeline.errors import StaleAttemptError

_NUM_REMEMBERED = 65_536


class ClosedAttempts:
    """The newest closed attempt of each session; the sessions closed longest ago are forgotten first."""

    def __init__(self, num_remembered: int = _NUM_REMEMBERED) -> None:
        self._newest: dict[str, int] = {}
        self._num_remembered = num_remembered

    def add(self, session: str, attempt: int) -> None:
        """Remember that this attempt, and with it every older one, is over."""
        self._newest[session] = max(attempt, self._newest.pop(session, 0))  # pop: moves it to the end of the order
        if len(self._newest) > self._num_remembered:
            del self._newest[next(iter(self._newest))]

    def check(self, session: str, attempt: int) -> None:
        """Raise StaleAttemptError if the attempt is over."""
        closed = self._newest.get(session, 0)
        if attempt <= closed:
            raise StaleAttemptError(
                f"attempt {attempt} of session {session} is over: attempt {closed} was closed here", field="attempt"
            )

    def clear(self) -> None:
        """Forget all, as when a new epoch begins."""
        self._newest.clear()
