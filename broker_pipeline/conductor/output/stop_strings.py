"""Looks for stop strings in a text that comes in pieces, and holds back what may be the beginning of one.

stop "###"     pieces   "a"   " #"    "#"    "b"       "##"   "#c"
               shown    "a"   " "     ""     "##b"     ""     ""  and stop: "###" is complete, "c" is dropped
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Looks for any of several strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None
        """The one that is complete."""

    def feed(self, text: str, *, may_stop: bool = True) -> tuple[str, bool]:
        """Return what may be shown now, and whether a stop string is complete; then what follows it is dropped.

        Where `may_stop` is False, a string that is complete with this text is text like any other; one that only
        begins in it still counts.
        """
        if not self._stops:
            return text, False
        num_held = len(self._held)
        self._held += text
        found = [(index, stop) for stop in self._stops if (index := self._find(stop, num_held)) >= 0]
        if found and may_stop:
            start, self.found = min(found)
            shown, self._held = self._held[:start], ""
            return shown, True
        cut = len(self._held) - self._num_undecided()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown, False

    def finish(self) -> str:
        """Return what was held back: no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _find(self, stop: str, num_held: int) -> int:
        """Find a stop string that ends in what is new."""
        return self._held.find(stop, max(0, num_held - len(stop) + 1))

    def _num_undecided(self) -> int:
        """Length of the longest end of the text that is a beginning of a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
