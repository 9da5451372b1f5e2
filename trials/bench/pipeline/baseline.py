"""What pipelines are compared with: the same work in one process, once for every sensible number of threads."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median

from trials.bench.in_process.loaded_process import PROGRAM, LoadedProcess
from trials.bench.options import say
from trials.bench.pipeline.row import PipelineRow, row_of
from trials.bench.pipeline.settings import PipelineSettings
from trials.bench.work import InProcessOrder, Round, Rounds


class Baseline:
    """One process without broker: alone before the systems on a GPU, a round in turn with theirs on the CPU."""

    def __init__(self, settings: PipelineSettings, rounds: Rounds, model: Path, directory: Path) -> None:
        """Prepare to do `rounds` with a `model`; each process gets a directory of its own in `directory`."""
        self._settings = settings
        self._rounds = rounds
        self._model = model
        self._directory = directory
        self._processes: dict[str, LoadedProcess] = {}
        self._done: defaultdict[str, list[Round]] = defaultdict(list)
        self._num_turns = 0
        self.takes_turns = settings.with_in_process and settings.device == "cpu"
        """Whether its rounds lie between the system's; a GPU has no room for both."""

    def rows(self) -> list[PipelineRow]:
        """Return a row for each number of threads."""
        best = self._best() if self._done else None
        return [row_of(name, done, best) for name, done in self._done.items()]

    async def run_alone(self) -> None:
        """Do all rounds, one process after the other; each frees what it held."""
        for num_threads in _thread_counts(self._settings):
            async with self._open(num_threads, 1) as (name, process):
                self._done[name] += [await process.run(number) for number in range(len(self._rounds.timed))]

    @asynccontextmanager
    async def colocated(self) -> AsyncIterator[None]:
        """Keep the processes ready while the context is open."""
        async with AsyncExitStack() as stack:
            if self.takes_turns:
                repeats = len(self._settings.asked_layouts) * len(self._settings.vision)
                for num_threads in _thread_counts(self._settings):
                    name, process = await stack.enter_async_context(self._open(num_threads, repeats))
                    self._processes[name] = process
            yield

    async def turn(self) -> float | None:
        """Do one round with every process and return the best of their tokens per second, None without any.

        After rounds alone it is the best of those.
        """
        if not self._processes:
            return self._best() if self._done else None
        rates = []
        for name, process in self._processes.items():
            self._done[name].append(await process.run(self._num_turns))
            rates.append(self._done[name][-1].tokens_per_s)
        self._num_turns += 1
        return max(rates)

    def _best(self) -> float:
        return max(median(each.tokens_per_s for each in done) for done in self._done.values())

    @asynccontextmanager
    async def _open(self, num_threads: int, repeats: int) -> AsyncIterator[tuple[str, LoadedProcess]]:
        name = f"one process, {num_threads} {'threads' if num_threads > 1 else 'thread'}"
        say(name)
        rounds = Rounds(
            pictures=self._rounds.pictures, warm_up=self._rounds.warm_up, timed=self._rounds.timed * repeats
        )
        order = InProcessOrder(
            model=str(self._model),
            rounds=rounds,
            num_threads=num_threads,
            kv_tokens=rounds.warm_up.kv_tokens(self._settings.num_in_flight),
            device=self._settings.device,
            dtype=self._settings.dtype,
        )
        async with LoadedProcess.open(PROGRAM, order, self._directory / f"one-process-{num_threads}") as process:
            yield name, process


def _thread_counts(settings: PipelineSettings) -> Sequence[int]:
    """Return all cores; small models are faster with one thread, so on the CPU that is tried as well."""
    if settings.in_process_threads:
        return settings.in_process_threads
    num_cores = len(os.sched_getaffinity(0))
    return (1, num_cores) if settings.device == "cpu" and num_cores > 1 else (num_cores,)
