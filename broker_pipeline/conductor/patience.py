"""How long one that gives regular signs of life may be silent before it is missed. Pure.

signs   |  |  |  |    |  |                     pauses of the last minute, the longest one: ├────┤
limit   three times that, within bounds        a quiet machine is sure soon, a busy one takes its time
"""

from __future__ import annotations

from dataclasses import dataclass, field

_WINDOW_S = 30.0
_FACTOR = 3.0
_NUM_SIGNS = 8
"""So many have to have come before anything is learnt from them."""


@dataclass(slots=True, eq=False)
class Patience:
    """What is learnt from the signs of life of one process; times in seconds, of a monotonic clock."""

    heard_at: float
    least_s: float
    most_s: float
    _num_signs: int = field(default=0, init=False)
    _longest_s: list[float] = field(default_factory=lambda: [0.0, 0.0], init=False)
    """Longest pauses of the window before, and of this one."""
    _window_ends: float = field(init=False)
    _is_excused: bool = field(default=False, init=False)
    """Whether the pause that lasts is nothing to learn from: whoever gives signs may need a while to be heard again."""

    def __post_init__(self) -> None:
        self._window_ends = self.heard_at + _WINDOW_S

    @property
    def limit_s(self) -> float:
        """How long the next pause may be."""
        if self._num_signs < _NUM_SIGNS:
            return self.most_s
        return min(self.most_s, max(self.least_s, _FACTOR * max(self._longest_s)))

    def hear(self, now: float) -> None:
        """Take in a sign of life."""
        pause_s, self.heard_at = now - self.heard_at, now
        self._num_signs += 1
        if now >= self._window_ends:
            self._longest_s = [self._longest_s[1], 0.0]
            self._window_ends = now + _WINDOW_S
        if not self._is_excused:
            self._longest_s[1] = max(self._longest_s[1], pause_s)
        self._is_excused = False

    def excuse(self, now: float) -> None:
        """Hold the pause up to now against nobody: nothing could be heard."""
        self.heard_at, self._is_excused = now, True
