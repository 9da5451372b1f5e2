"""What came of a run, in numbers and a few examples: it takes the same memory after ten million items."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from broker_pipeline.captioning.line import CaptionLine, failure_kind

_NUM_EXAMPLES = 3
_MAX_REASONS = 20


@dataclass(slots=True)
class Failures:
    """What failed for one reason."""

    message: str
    num: int = 0
    examples: list[str] = field(default_factory=list)
    """The first items, a few."""


@dataclass(slots=True)
class Summary:
    """What came of a run; a picture counts by what became of its last question."""

    num_items: int | None = None
    """None while nobody knows."""
    num_skipped: int = 0
    """Had all their captions already."""
    num_captioned: int = 0
    num_dropped: int = 0
    num_failed: int = 0
    num_passed_over: int = 0
    """Left out by what was asked: items that had not failed, for `--only-failed`."""
    num_left_running: int = 0
    """Jobs that the gateway goes on with although nobody waits here any more."""
    num_left_out: int = 0
    """Rows that have no place in a file that is written, each time."""
    first_left_out: str = ""
    """Why, of the first."""
    failures: dict[tuple[str, str], Failures] = field(default_factory=dict)
    """By code and reason; further reasons of a code, where there are many, are one."""
    guards: Counter[str] = field(default_factory=Counter)
    """Captions that a guard found something wrong with in the end, by what that was."""

    @property
    def num_done(self) -> int:
        """Items that the run has come to an end with."""
        return self.num_skipped + self.num_captioned + self.num_dropped + self.num_failed + self.num_passed_over

    @property
    def num_untouched(self) -> int:
        """Items that the run did not get to, as far as that is known."""
        return max(0, (self.num_items or 0) - self.num_done)

    def count(self, lines: list[CaptionLine]) -> None:
        """Take note of an item by its lines, of which some are new."""
        self.guards.update(line.guard.partition(":")[0] for line in lines if line.guard)
        failed = [line for line in lines if not line.is_final]
        for line in failed[:1]:
            self.num_failed += 1
            self._note(line)
        if not failed and any(line.status == "dropped" for line in lines):
            self.num_dropped += 1
        elif not failed:
            self.num_captioned += 1

    def count_left_out(self, reason: str) -> None:
        """Take note of a row that has no place in a file."""
        self.num_left_out += 1
        self.first_left_out = self.first_left_out or reason

    def _note(self, line: CaptionLine) -> None:
        kind = failure_kind(line)
        if kind not in self.failures and len(self.failures) >= _MAX_REASONS:
            kind = kind[0], "other reasons"
        found = self.failures.setdefault(kind, Failures(line.error.message if line.error else ""))
        found.num += 1
        if len(found.examples) < _NUM_EXAMPLES:
            found.examples.append(line.path)
