"""What became of one item, as sinks see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from broker_pipeline.captioning.line import CaptionLine
from broker_pipeline.captioning.sources.item import Item


@dataclass(frozen=True, slots=True)
class Row:
    """An item that has ended, with a line of the log for each question in order, by its name."""

    item: Item
    lines: Mapping[str, CaptionLine]

    @property
    def is_whole(self) -> bool:
        """Whether every question has its answer, and no guard says that it be dropped."""
        return bool(self.lines) and all(line.is_success for line in self.lines.values())

    @property
    def captions(self) -> dict[str, str]:
        """The answers by name; `caption` is the name where one question is asked."""
        return {name: line.caption or "" for name, line in self.lines.items() if line.is_success}


class Sink(Protocol):
    """Takes every row of a data set, in the order of the source, each run from the first on.

    So what it has written is made of source and log alone: a run that goes on after a kill writes the same again, or
    finds it there. Called from one thread at a time.
    """

    def check(self, item: Item) -> None:
        """Raise `ConfigurationError` where no row of such an item could be written, beside those that were checked."""

    def add(self, row: Row) -> None:
        """Take the next row, also one that failed.

        Raises `OutputError`; `NoPlaceError` where it never can take this row, and has left it out; `ConfigurationError`
        where it never can take any.
        """

    def close(self, *, is_whole: bool) -> None:
        """Finish. Where the run did not come to its end, leave no half of anything: what was there before stays."""
