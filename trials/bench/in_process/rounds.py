"""The other side of `trials.bench.in_process.in_process`: warms up, then does a round whenever its file appears."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from trials.bench.cpu_time import CpuClock
from trials.bench.in_process.in_process import ORDER_NAME, POLL_S, READY_NAME, go_name, round_name
from trials.bench.work import InProcessOrder, Round, Work


class Worker(Protocol):
    """Something that has loaded a model."""

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the last session's prompt."""

    def run(self, work: Work) -> int:
        """Do all of it; returns the number of tokens that were sampled, none of them on its way any more."""


def serve_rounds(arguments: Sequence[str], make: Callable[[InProcessOrder], Worker], program: str) -> None:
    """Do what the order in the directory that `arguments` name asks for."""
    directory = Path(arguments[0])
    order = msgspec.json.decode((directory / ORDER_NAME).read_bytes(), type=InProcessOrder)
    torch.set_num_threads(order.num_threads)
    with torch.inference_mode():
        worker = make(order)
        worker.run(order.warm_up)
        (directory / READY_NAME).touch()
        for number, work in enumerate(order.rounds):
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
    """Whoever sees the file sees all of it."""
    half = path.with_suffix(".half")
    half.write_bytes(content)
    half.replace(path)
