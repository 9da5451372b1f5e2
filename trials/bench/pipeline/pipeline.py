"""The whole system against the same computation in one process, with the same work on the same cores.

CPU    one process ─ round 0            round 1           …     in turns, so that what disturbs one disturbs
       system                 round 0           round 1   …     the other
GPU   one process, all rounds; it ends and frees the GPU; then the system, all rounds
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Literal

import msgspec

from broker_pipeline.errors import PipelineError
from broker_pipeline.tools.local.cuts import balanced_cut
from broker_pipeline.tools.local.devices import count_cuda_devices
from broker_pipeline.tools.local.mps import mps_service
from broker_pipeline.tools.local.plan import LocalSettings
from trials.bench.in_process.in_process import PROGRAM, InProcess
from trials.bench.pipeline.pipeline_row import PipelineRow, row_of
from trials.bench.pipeline.system_rounds import RunningSystem
from trials.bench.work import InProcessOrder, Round, Work, write_pictures

Say = Callable[[str], None]
VisionPlace = Literal["separate", "shared"]


class PipelineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `num_stages` lists the numbers of stages to try, `vision` where pictures become rows."""

    num_stages: tuple[int, ...]
    vision: tuple[VisionPlace, ...]
    """In a process of its own, or in that of the first stage."""
    num_pictures: int
    picture_side: int
    num_output_tokens: int
    num_in_flight: int
    num_sessions: int
    """Most sessions that the conductor has computed at a time."""
    num_rounds: int
    prompt: str
    device: str
    dtype: str | None
    num_threads: int | None
    """Threads of each worker of the whole system; None shares the cores out."""
    kv_tokens: int | None
    """Of every stage; None is what so many sessions need."""
    with_in_process: bool
    in_process_threads: tuple[int, ...]
    """Numbers of threads to try; empty for all cores, and on the CPU one as well."""
    mps: bool
    profile: str | None
    """Directory below which each system's services write traces."""
    extra_arguments: dict[str, tuple[str, ...]]


class Rounds(msgspec.Struct, frozen=True, kw_only=True):
    """The work: a small round to warm up, and those that count. No picture comes twice."""

    pictures: Path
    warm_up: Work
    timed: tuple[Work, ...]


async def measure_pipeline(
    settings: PipelineSettings, model: Path, directory: Path, say: Say = lambda _: None
) -> AsyncGenerator[PipelineRow, None]:
    """Do the work in one process and through pipelines; yields a row for each as soon as it is known.

    Raises the first error of a system only after the others have had their turn.
    """
    rounds = await asyncio.to_thread(_draw, settings, directory / "pictures")
    baseline = _Baseline(settings, rounds, model, directory, say)
    if settings.with_in_process and not baseline.takes_turns:
        await baseline.run_alone()
        for row in baseline.rows():
            yield row
    num_gpus = await count_cuda_devices() if settings.device == "cuda" else 0
    failed: PipelineError | None = None
    async with AsyncExitStack() as stack:
        worker_env = await stack.enter_async_context(mps_service(directory / "mps")) if settings.mps else {}
        await stack.enter_async_context(baseline.colocated())
        for name, local in _systems(settings, model, directory, rounds, num_gpus):
            say(name)
            try:
                row = await _measure_system(name, replace(local, worker_env=worker_env), rounds, baseline)
            except PipelineError as error:
                say(f"{name}: failed; {error.message.partition(chr(10))[0]}")
                failed = failed or error
            else:
                say(f"{name}: up after {row.start_s:.1f} s, warm after another {row.warm_up_s:.1f} s")
                yield row
    if baseline.takes_turns:
        for row in baseline.rows():
            yield row
    if failed is not None:
        raise failed


async def _measure_system(name: str, local: LocalSettings, rounds: Rounds, baseline: _Baseline) -> PipelineRow:
    """Time a system's rounds, each alongside the best that one process reached right before it."""
    done: list[Round] = []
    bests: list[float] = []
    began = time.monotonic()
    async with RunningSystem.open(local, rounds.pictures) as system:
        start_s = time.monotonic() - began
        warm_up_s = (await system.run(rounds.warm_up)).seconds
        for work in rounds.timed:
            if (best := await baseline.turn()) is not None:
                bests.append(best)
            done.append(await system.run(work))
    row = row_of(name, done, median(bests) if bests else None)
    return msgspec.structs.replace(row, start_s=start_s, warm_up_s=warm_up_s)


class _Baseline:
    """One process without broker, once for every sensible number of threads."""

    def __init__(self, settings: PipelineSettings, rounds: Rounds, model: Path, directory: Path, say: Say) -> None:
        self._settings = settings
        self._rounds = rounds
        self._model = model
        self._directory = directory
        self._say = say
        self._processes: dict[str, InProcess] = {}
        self._done: defaultdict[str, list[Round]] = defaultdict(list)
        self._num_turns = 0
        self.takes_turns = settings.with_in_process and settings.device == "cpu"
        """Whether its rounds lie between the system's; a GPU has no room for both."""

    def rows(self) -> list[PipelineRow]:
        best = self._best() if self._done else None
        return [row_of(name, done, best) for name, done in self._done.items()]

    async def run_alone(self) -> None:
        for name, order in self._orders(repeats=1):
            self._say(name)
            async with InProcess.open(PROGRAM, order, self._model, self._directory / _file_name(name)) as process:
                self._done[name] += [await process.run(number) for number in range(len(order.rounds))]

    @asynccontextmanager
    async def colocated(self) -> AsyncIterator[None]:
        """Keep the processes ready while the context is open."""
        async with AsyncExitStack() as stack:
            if self.takes_turns:
                repeats = len(self._settings.num_stages) * len(self._settings.vision)
                for name, order in self._orders(repeats):
                    self._say(f"{name}, ready to take turns")
                    opened = InProcess.open(PROGRAM, order, self._model, self._directory / _file_name(name))
                    self._processes[name] = await stack.enter_async_context(opened)
            yield

    async def turn(self) -> float | None:
        """Do one round with every process; returns the best of their tokens per second, None without any.

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

    def _orders(self, repeats: int) -> list[tuple[str, InProcessOrder]]:
        return [
            (f"one process, {count} {'threads' if count > 1 else 'thread'}", self._order(count, repeats))
            for count in _thread_counts(self._settings)
        ]

    def _order(self, num_threads: int, repeats: int) -> InProcessOrder:
        return InProcessOrder(
            model="",
            pictures=str(self._rounds.pictures.absolute()),
            warm_up=self._rounds.warm_up,
            rounds=self._rounds.timed * repeats,
            num_threads=num_threads,
            kv_tokens=self._rounds.warm_up.kv_tokens(self._settings.num_in_flight),
            device=self._settings.device,
            dtype=self._settings.dtype,
        )


def _file_name(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def _draw(settings: PipelineSettings, directory: Path) -> Rounds:
    def work(prefix: str, num_pictures: int) -> Work:
        return Work(
            prompt=settings.prompt,
            pictures=write_pictures(directory, prefix, num_pictures, settings.picture_side),
            picture_side=settings.picture_side,
            num_output_tokens=settings.num_output_tokens,
            num_in_flight=settings.num_in_flight,
        )

    timed = tuple(work(f"round-{number}", settings.num_pictures) for number in range(settings.num_rounds))
    return Rounds(
        pictures=directory, warm_up=work("warm-up", min(settings.num_pictures, settings.num_in_flight)), timed=timed
    )


def _thread_counts(settings: PipelineSettings) -> Sequence[int]:
    """One process may use all cores; small models are faster with one thread, so that is tried as well."""
    if settings.in_process_threads:
        return settings.in_process_threads
    num_cores = len(os.sched_getaffinity(0))
    return (1, num_cores) if settings.device == "cpu" and num_cores > 1 else (num_cores,)


def _systems(
    settings: PipelineSettings, model: Path, directory: Path, rounds: Rounds, num_gpus: int
) -> list[tuple[str, LocalSettings]]:
    named = []
    for num_stages in settings.num_stages:
        for place in settings.vision:
            name = f"whole system, {num_stages} {'stages' if num_stages > 1 else 'stage'}"
            name += f", vision {place}" if len(settings.vision) > 1 or place == "shared" else ""
            name += ", MPS" if settings.mps else ""
            local = LocalSettings(
                model=model.absolute(),
                stages=balanced_cut(model, num_stages),
                data_dir=directory / f"system-{num_stages}-{place}",
                num_vision_workers=0 if place == "shared" else 1,
                shares_vision=place == "shared",
                num_cuda_devices=num_gpus,
                device=settings.device if settings.device != "cuda" else None,
                dtype=settings.dtype,
                num_threads=settings.num_threads,
                kv_tokens=settings.kv_tokens or rounds.warm_up.kv_tokens(settings.num_sessions),
                restarts=False,
                profile=Path(settings.profile) / f"{num_stages}-{place}" if settings.profile else None,
                extra_arguments=settings.extra_arguments,
            )
            named.append((name, local))
    return named
