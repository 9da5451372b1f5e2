"""The other side of `LoadedProcess`: warms up, then does a round whenever its file appears."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from broker_pipeline.errors import PipelineError
from trials.bench.cpu_time import CpuClock
from trials.bench.in_process.loaded_process import ORDER_NAME, POLL_S, READY_NAME, go_name, round_name
from trials.bench.work import InProcessOrder, Round, Work


class Worker(Protocol):
    """Something that has loaded a model."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the last session's prompt."""

    def run(self, work: Work) -> int:
        """Do all of it and return the number of tokens that were sampled, none of them on its way any more."""


def serve_rounds(make: Callable[[InProcessOrder], Worker], program: str) -> None:
    """Do what the order in the directory on the command line asks for; a known error ends it with a sentence."""
    try:
        _serve(Path(sys.argv[1]), make, program)
    except PipelineError as error:
        sys.exit(f"error: {error.message}")


def _serve(directory: Path, make: Callable[[InProcessOrder], Worker], program: str) -> None:
    order = msgspec.json.decode((directory / ORDER_NAME).read_bytes(), type=InProcessOrder)
    torch.set_num_threads(order.num_threads)
    with torch.inference_mode():
        worker = make(order)
        worker.run(order.rounds.warm_up)
        (directory / READY_NAME).touch()
        for number, work in enumerate(order.rounds.timed):
            while not (directory / go_name(number)).exists():
                time.sleep(POLL_S)
            _write(directory / round_name(number), msgspec.json.encode(_timed(worker, work, program)))


def _timed(worker: Worker, work: Work, program: str) -> Round:
    clock = CpuClock({program: os.getpid()})
    started = time.perf_counter()
    num_tokens = worker.run(work)
    seconds = time.perf_counter() - started
    assert num_tokens == work.num_tokens, f"{num_tokens} tokens instead of {work.num_tokens}"
    return Round(
        seconds=seconds,
        num_pictures=len(work.pictures),
        num_tokens=num_tokens,
        num_prompt_tokens=worker.num_prompt_tokens,
        cpu_s=clock.passed(),
    )


def _write(path: Path, content: bytes) -> None:
    """Write a file so that whoever sees it sees all of it."""
    half = path.with_suffix(".half")
    half.write_bytes(content)
    half.replace(path)
