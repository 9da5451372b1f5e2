"""How many tokens are worth drafting for a session, by what became of its drafts. Pure.

all accepted      twice as many next time
some accepted     half as many, or one more than were accepted
none              half as many; three times in a row: no drafts for 16 steps, and for twice as many if it goes on so
"""

from __future__ import annotations

_FIRST_LENGTH, _MOST_TOKENS = 4, 64
_PATIENCE = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 16, 4096


class DraftPace:
    """One attempt's."""

    __slots__ = ("_length", "_num_missed", "_pause", "_rest")

    def __init__(self) -> None:
        self._length = _FIRST_LENGTH
        self._num_missed = 0
        self._pause = _FIRST_PAUSE
        self._rest = 0
        """Steps left without drafts."""

    def next_length(self) -> int:
        """Return how many tokens to draft for the next step; to be called once for each."""
        if self._rest:
            self._rest -= 1
            return 0
        return self._length

    def observe(self, num_drafts: int, num_accepted: int) -> None:
        """Learn what became of `num_drafts` > 0 drafts."""
        if num_accepted == num_drafts:
            self._length = min(max(self._length, 2 * num_drafts), _MOST_TOKENS)
        else:
            self._length = max(self._length // 2, num_accepted + 1)
        self._num_missed = 0 if num_accepted else self._num_missed + 1
        if num_accepted:
            self._pause = _FIRST_PAUSE
        elif self._num_missed >= _PATIENCE:
            self._rest, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._num_missed = _PATIENCE - 1
