"""Many schedules: seeds in their order, until there are enough, time is up, or one has failed; and what came of it."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.crew import Crew, Ran

BLOCK = 25
_TELL_EVERY_S = 10.0


@dataclass(slots=True)
class Campaign:
    """Seeds from `first` on, run by `num_processes` for `for_s` seconds at most."""

    first: int
    num: int
    num_processes: int
    for_s: float = float("inf")
    keeps_going: bool = False
    """Whether it does not end with the first failure."""
    tell: Callable[[str], None] = lambda _: None
    next_seed: int = field(default=0, init=False)
    """All below it have been handed out."""
    num_ran: int = field(default=0, init=False)
    num_faults: int = field(default=0, init=False)
    simulated_s: float = field(default=0.0, init=False)
    processor_s: float = field(default=0.0, init=False)
    """Of schedules alone."""
    failures: dict[int, str] = field(default_factory=dict, init=False)
    lost: dict[range, str] = field(default_factory=dict, init=False)
    """Seeds of which nobody knows what they would have come to, and why."""
    _began_s: float = field(default_factory=time.monotonic, init=False)
    _told_s: float = field(default=0.0, init=False)

    def run(self) -> None:
        """Run it; when interrupted, what is under way counts as lost."""
        self.next_seed = self.first
        crew = Crew(self.num_processes)
        ran = crew.run(self._blocks())
        try:
            for each in ran:
                self._note(each)
        except KeyboardInterrupt:
            self.lost |= dict.fromkeys(crew.under_way, "interrupted")
        finally:
            ran.close()

    @property
    def is_good(self) -> bool:
        """Whether all that was handed out has run, and nothing was wrong."""
        return not self.failures and not self.lost

    @property
    def took_s(self) -> float:
        return time.monotonic() - self._began_s

    def _blocks(self) -> Iterator[range]:
        """Hand out what is next, while there is more to do."""
        stop = self.first + self.num
        while self.next_seed < stop and self.took_s < self.for_s and (self.keeps_going or self.is_good):
            block = range(self.next_seed, min(self.next_seed + BLOCK, stop))
            self.next_seed = block.stop
            yield block

    def _note(self, ran: Ran) -> None:
        if ran.lost:
            self.lost[ran.seeds] = ran.lost
            self.tell(f"seeds {_shown(ran.seeds)}: {ran.lost}")
        else:
            self.num_ran += len(ran.seeds)
        self.num_faults += ran.num_faults
        self.simulated_s += ran.simulated_s
        self.processor_s += ran.processor_s
        self.failures |= dict(ran.failures)
        for _, failure in ran.failures:
            self.tell(failure)
        if self.took_s - self._told_s > _TELL_EVERY_S:
            self._told_s = self.took_s
            self.tell(str(self))

    def seen(self) -> dict[str, Any]:
        """Return what came of it, for a receipt."""
        return {
            "num_schedules": self.num_ran,
            "first_seed": self.first,
            "last_seed": self.next_seed - 1,
            "not_run": {_shown(seeds): why for seeds, why in sorted(self.lost.items(), key=lambda each: each[0].start)},
            "num_faults": self.num_faults,
            "num_failed": len(self.failures),
            "failed_seeds": sorted(self.failures),
            "simulated_h": round(self.simulated_s / 3600, 2),
            "num_processes": self.num_processes,
            "seconds": round(self.took_s, 1),
            "processor_ms": round(self._ms(self.processor_s), 2),
            "processor_ms_with_start": round(self._ms(_all_processor_s()), 2),
        }

    def _ms(self, seconds: float) -> float:
        """Return milliseconds a schedule."""
        return 1000 * seconds / max(1, self.num_ran)

    def __str__(self) -> str:
        lost = sum(map(len, self.lost))
        return (
            f"{self.num_ran} schedules (seeds {_shown(range(self.first, self.next_seed))}), {self.num_faults} faults, "
            f"{self.simulated_s / 3600:.1f} simulated hours: {len(self.failures)} failed, {lost} not run; "
            f"{self.took_s:.0f} s, {self._ms(self.processor_s):.1f} ms of processor a schedule"
        )


def _all_processor_s() -> float:
    """Return what this process has used, and all that it has started and that have ended, their start included."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _shown(seeds: range) -> str:
    return f"{seeds.start} to {seeds.stop - 1}"
