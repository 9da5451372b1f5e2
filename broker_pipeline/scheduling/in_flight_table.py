"""Microbatches that have no answer yet, and what shows that one was lost. Pure.

sent          suspect_at            + grace_s                deadline
a ────────────┬─────────────────────┬────────────────────────┬─► its workers are suspended
              └ probe ─► answered   └─► a is lost, unless it has been answered by now
                         along the same route, behind a: a was overtaken
"""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.scheduling.planned_batch import PlannedBatch


class InFlightTable:
    """Microbatches by number. A probe is an empty one that follows another to see whether that was lost."""

    def __init__(self) -> None:
        self._microbatches: dict[int, PlannedBatch] = {}
        self._followed: dict[int, int] = {}
        self._overtaken: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._microbatches)

    def __iter__(self) -> Iterator[PlannedBatch]:
        return iter(self._microbatches.values())

    def add(self, microbatch: PlannedBatch, *, follows: PlannedBatch | None = None) -> None:
        """Expect an answer; a probe says what it `follows`."""
        self._microbatches[microbatch.number] = microbatch
        if follows is not None:
            self._followed[microbatch.number] = follows.number

    def pop(self, number: int) -> PlannedBatch | None:
        """Expect no answer any more; None when none was expected."""
        self._followed.pop(number, None)
        self._overtaken.pop(number, None)
        return self._microbatches.pop(number, None)

    def note_answer(self, number: int, now: float) -> None:
        """Note that what a probe follows was overtaken by it, if this number is a probe's."""
        followed = self._followed.get(number)
        if followed in self._microbatches:
            self._overtaken[followed] = now

    def drop_before(self, answered: PlannedBatch) -> None:
        """Expect no answer to empty ones that went the way of one `answered`, before it: they were lost."""
        route, number = answered.route.key, answered.number
        for each in [each for each in self if not each.segments and each.number < number and each.route.key == route]:
            self.pop(each.number)

    def is_probe(self, number: int) -> bool:
        """Whether this microbatch follows another."""
        return number in self._followed

    def without_probe(self, now: float) -> list[PlannedBatch]:
        """Return what is late enough for a probe and neither has one nor was overtaken by one."""
        known = {*self._followed.values(), *self._overtaken}
        return [each for each in self if each.suspect_at <= now and each.number not in known]

    def overtaken(self, before: float) -> list[PlannedBatch]:
        """Return what was overtaken up to some time ago."""
        return [self._microbatches[number] for number, since in self._overtaken.items() if since <= before]

    def late(self, now: float) -> list[PlannedBatch]:
        """Return what is past its deadline."""
        return [microbatch for microbatch in self if microbatch.deadline <= now]

    def drop_stale_probes(self) -> None:
        """Forget probes of microbatches that are lost: who waits for an answer to one is not told what to close."""
        for probe, number in list(self._followed.items()):
            if number not in self._microbatches:
                self.pop(probe)
