"""Envelopes that have no answer yet, and the probes sent after those that are late. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from broker_pipeline.scheduling.planned_batch import PlannedBatch


class InFlightTable:
    """Microbatches by number. A probe is an empty one that follows another to see whether that was lost."""

    def __init__(self) -> None:
        self._microbatches: dict[int, PlannedBatch] = {}
        self._followed: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._microbatches)

    def __contains__(self, number: int) -> bool:
        return number in self._microbatches

    def __iter__(self) -> Iterator[PlannedBatch]:
        return iter(self._microbatches.values())

    def add(self, microbatch: PlannedBatch) -> None:
        """Expect an answer."""
        self._microbatches[microbatch.number] = microbatch

    def pop(self, number: int) -> PlannedBatch | None:
        """Expect no answer any more; None when none was expected."""
        return self._microbatches.pop(number, None)

    def add_probe(self, probe: PlannedBatch, followed: PlannedBatch) -> None:
        """Expect an answer to a probe."""
        self.add(probe)
        self._followed[probe.number] = followed.number

    def end_probe(self, number: int) -> int | None:
        """Return the number that this probe follows, None when it is no probe; it is none from now on."""
        return self._followed.pop(number, None)

    def without_probe(self, now: float) -> list[PlannedBatch]:
        """Return what is late enough for a probe and has none."""
        followed = set(self._followed.values())
        return [each for each in self if each.suspect_at <= now and each.number not in followed]

    def late(self, now: float) -> list[PlannedBatch]:
        """Return what is past its deadline."""
        return [microbatch for microbatch in self if microbatch.deadline <= now]

    def next_deadline(self) -> float | None:
        """Return the time of the earliest deadline."""
        return min((microbatch.deadline for microbatch in self), default=None)

    def drop_stale_probes(self) -> None:
        """Forget probes of microbatches that are lost: who waits for an answer to one is not told what to close."""
        for probe, number in list(self._followed.items()):
            if number not in self:
                del self._followed[probe]
                self.pop(probe)
