"""The whole system against the same computation in one process, with the same work on the same cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from broker_pipeline.bench.in_process import PROGRAM, run_rounds
from broker_pipeline.bench.spread import Spread
from broker_pipeline.bench.system_rounds import system_rounds
from broker_pipeline.bench.work import InProcessOrder, Round, Work, write_pictures
from broker_pipeline.local.cuts import balanced_cut
from broker_pipeline.local.devices import count_cuda_devices
from broker_pipeline.local.plan import LocalSettings

Say = Callable[[str], None]


class PipelineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `num_stages` lists the numbers of stages to try."""

    num_stages: tuple[int, ...]
    num_pictures: int
    picture_side: int
    num_output_tokens: int
    num_in_flight: int
    num_rounds: int
    prompt: str
    device: str
    dtype: str | None
    num_threads: int | None
    """Threads of each worker of the whole system; None shares the cores out."""


class PipelineRow(msgspec.Struct, frozen=True, kw_only=True):
    """One way to do the work."""

    name: str
    tokens_per_s: Spread
    captions_per_s: Spread
    cpu_s: dict[str, float]
    """Seconds of a core by program, of all rounds together."""
    seconds: float
    """Of all rounds together."""
    share: float
    """Tokens per second as a part of those of one process (the faster of its rows)."""

    @property
    def num_cores(self) -> float:
        """Cores that were busy, on average."""
        return sum(self.cpu_s.values()) / self.seconds


class Rounds(msgspec.Struct, frozen=True, kw_only=True):
    """The work: a small round to warm up, and those that count. No picture comes twice."""

    pictures: Path
    warm_up: Work
    timed: tuple[Work, ...]


async def measure_pipeline(
    settings: PipelineSettings, model: Path, directory: Path, say: Say = lambda _: None
) -> list[PipelineRow]:
    """Do the work in one process and then through pipelines; returns a row for each, the former first."""
    rounds = _draw(settings, directory / "pictures")
    measured: dict[str, list[Round]] = {}
    for num_threads in _thread_counts(settings):
        name = f"one process, {num_threads} {'threads' if num_threads > 1 else 'thread'}"
        say(name)
        order = _order(settings, rounds, num_threads)
        measured[name] = await run_rounds(PROGRAM, order, model, _made(directory / f"in-process-{num_threads}"))
    best = max(Spread.of([each.tokens_per_s for each in done]).median for done in measured.values())
    num_cards = await count_cuda_devices() if settings.device != "cpu" else 0
    for num_stages in settings.num_stages:
        name = f"whole system, {num_stages} {'stages' if num_stages > 1 else 'stage'}"
        say(name)
        local = _local(settings, model, directory / f"system-{num_stages}", num_stages, num_cards)
        measured[name] = await system_rounds(local, rounds.pictures, rounds.warm_up, rounds.timed)
    return [row_of(name, done, best) for name, done in measured.items()]


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _draw(settings: PipelineSettings, directory: Path) -> Rounds:
    def work(prefix: str, num_pictures: int) -> Work:
        return Work(
            prompt=settings.prompt,
            pictures=write_pictures(directory, prefix, num_pictures, settings.picture_side),
            num_output_tokens=settings.num_output_tokens,
            num_in_flight=settings.num_in_flight,
        )

    timed = tuple(work(f"round-{number}", settings.num_pictures) for number in range(settings.num_rounds))
    return Rounds(
        pictures=directory, warm_up=work("warm-up", min(settings.num_pictures, settings.num_in_flight)), timed=timed
    )


def _thread_counts(settings: PipelineSettings) -> Sequence[int]:
    """One process may use all cores; small models are faster with one thread, so that is tried as well."""
    num_cores = len(os.sched_getaffinity(0))
    return (1, num_cores) if settings.device == "cpu" and num_cores > 1 else (num_cores,)


def _order(settings: PipelineSettings, rounds: Rounds, num_threads: int) -> InProcessOrder:
    return InProcessOrder(
        model="",
        pictures=str(rounds.pictures.absolute()),
        warm_up=rounds.warm_up,
        rounds=rounds.timed,
        num_threads=num_threads,
        device=settings.device,
        dtype=settings.dtype,
    )


def _local(settings: PipelineSettings, model: Path, directory: Path, num_stages: int, num_cards: int) -> LocalSettings:
    return LocalSettings(
        model=model.absolute(),
        stages=balanced_cut(model, num_stages),
        data_dir=directory,
        num_cuda_devices=num_cards,
        device=settings.device if settings.device != "cuda" else None,
        dtype=settings.dtype,
        num_threads=settings.num_threads,
        restarts=False,
    )


def row_of(name: str, done: Sequence[Round], best: float) -> PipelineRow:
    """Sum up rounds; `best` is what 100 % stands for, in tokens per second."""
    tokens = Spread.of([each.tokens_per_s for each in done])
    programs = list(dict.fromkeys(program for each in done for program in each.cpu_s))
    return PipelineRow(
        name=name,
        tokens_per_s=tokens,
        captions_per_s=Spread.of([each.captions_per_s for each in done]),
        cpu_s={program: round(sum(each.cpu_s.get(program, 0.0) for each in done), 3) for program in programs},
        seconds=sum(each.seconds for each in done),
        share=tokens.median / best,
    )
