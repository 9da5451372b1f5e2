"""Processes that run schedules, a block of seeds at a time; one that dies or hangs costs its block, and is replaced.

crew.run(blocks) ──► each process has one block ──► Ran: what came of it, or why nothing did
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait

from tests.simulation.simulate import simulate

SILENT_S = 300.0
"""Who has not ended a block for so long hangs."""
_COLLECT_EVERY = 10
_LOOK_S = 5.0
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Ran:
    """What some seeds came to."""

    seeds: range
    num_faults: int = 0
    simulated_s: float = 0.0
    processor_s: float = 0.0
    failures: tuple[tuple[int, str], ...] = ()
    """Seeds, and what was wrong."""
    lost: str = ""
    """Why it is not known what they came to."""


class Crew:
    """So many processes; an iterator of blocks says what they do, for as long as it has any."""

    def __init__(self, num: int, silent_s: float = SILENT_S) -> None:
        self._num, self._silent_s = num, silent_s
        self._members: list[_Member] = []

    def run(self, blocks: Iterator[range]) -> Iterator[Ran]:
        """Hand out blocks in their order, and yield each one once when it is over, or has been given up."""
        try:
            self._members = [member for member in (_Member() for _ in range(self._num)) if member.take(blocks)]
            while self._members:
                wait([member.pipe for member in self._members], self._silent_s)
                for member in self._members:
                    if (ran := member.answer(self._silent_s)) is not None:
                        yield ran
                self._members = [each for each in map(_Member.fit, self._members) if each.seeds or each.take(blocks)]
        finally:
            self._end()

    @property
    def under_way(self) -> list[range]:
        """What was handed out and is not over."""
        return [member.seeds for member in self._members if member.seeds]

    def _end(self) -> None:
        for member in self._members:
            member.end()


@dataclass(slots=True)
class _Member:
    """One process, at the other end of a pipe."""

    seeds: range | None = None
    """What it does at this moment."""
    since_s: float = 0.0
    pipe: Connection = field(init=False)
    process: multiprocessing.process.BaseProcess = field(init=False)

    def __post_init__(self) -> None:
        self.pipe, other = _FORK.Pipe()
        self.process = _FORK.Process(target=_work, args=(other,), daemon=True)
        self.process.start()
        other.close()

    def take(self, blocks: Iterator[range]) -> bool:
        """Do the next block; without one, end."""
        self.seeds, self.since_s = next(blocks, None), time.monotonic()
        if self.seeds is None:
            self.end()
            return False
        with suppress(OSError):  # it is dead, as its pipe will say
            self.pipe.send(self.seeds)
        return True

    def answer(self, silent_s: float) -> Ran | None:
        """Return what has come of its block, if anything has."""
        assert self.seeds is not None
        lost = ""
        if self.pipe.poll():
            try:
                ran: Ran = self.pipe.recv()
            except (EOFError, OSError):
                self.process.join()
                lost = f"its process has died (exit code {self.process.exitcode})"
            else:
                self.seeds = None
                return ran
        elif time.monotonic() - self.since_s > silent_s:
            lost = f"it was not over after {silent_s:g} s"
        if not lost:
            return None
        seeds, self.seeds = self.seeds, None
        self.end()
        return Ran(seeds, lost=lost)

    def fit(self) -> _Member:
        """Return this one, or another in place of one that is no more."""
        return _Member() if self.pipe.closed else self

    def end(self) -> None:
        if not self.pipe.closed:
            self.pipe.close()
        self.process.kill()
        self.process.join()


def _work(pipe: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which a terminal sends to all; the parent ends this one then
    parent = multiprocessing.parent_process()
    assert parent is not None
    with suppress(EOFError):
        while parent.is_alive():  # others have this end's copy: that it is dead, the pipe would not say
            if pipe.poll(_LOOK_S):
                pipe.send(run_block(pipe.recv()))


def run_block(seeds: range) -> Ran:
    """Run the schedules of some seeds."""
    began_s, num_faults, simulated_s, failures = time.process_time(), 0, 0.0, []
    for seed in seeds:
        try:
            verdict = simulate(seed)
        except Exception:  # noqa: BLE001 - not foreseen: reported as all that is wrong
            failures.append((seed, f"seed {seed} could not be simulated: {traceback.format_exc()}"))
            continue
        num_faults += len(verdict.schedule.faults)
        simulated_s += verdict.took_s
        if verdict.problems:
            failures.append((seed, str(verdict)))
        if seed % _COLLECT_EVERY == 0:
            gc.collect()
    return Ran(seeds, num_faults, simulated_s, time.process_time() - began_s, tuple(failures))
