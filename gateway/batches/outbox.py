"""Answers of a batch on their way into its files, some at a time.

    add, add, … ──► 1 MiB, or a while ──► a part of each file in JetStream ──► collect: done, and the files have them
                                                                               └─► the jobs are forgotten

The while is a second at first and a hundredth of the batch's age later, up to a minute: files of few parts are read
quickly. Where a process dies before `collect`, nothing has happened: the jobs are still there, and the parts are
deleted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from broker_pipeline.storage.file_chunks import Part
from gateway.batches.batch_store import HeldBatch
from gateway.batches.file_store import FileStore

_FLUSH_BYTES = 2**20
_FLUSH_REQUESTS = 4096
_FLUSH_S = (1.0, 60.0)
_FLUSH_SHARE = 0.01

Forget = Callable[[Sequence["Answer"]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request."""

    request: int
    """Its number in the batch, from 0."""
    line: bytes
    """Of the output file, or the error file where it has failed; ASCII, with a line feed."""
    is_error: bool
    job_id: str | None = None
    job_failed: bool = False
    usage: tuple[int, int, int] = (0, 0, 0)
    """Input, output and reasoning tokens."""


class Outbox:
    """The answers of one run that are in no file yet."""

    def __init__(self, batch: HeldBatch, files: FileStore, forget: Forget) -> None:
        """Tell `forget` of answers that are safe."""
        self._batch = batch
        self._files = files
        self._forget = forget
        self._answers: list[Answer] = []
        self._num_bytes = 0
        self._turn = asyncio.Lock()

    async def add(self, answer: Answer) -> None:
        """Take an answer; waits while many are being written."""
        self._answers.append(answer)
        self._num_bytes += len(answer.line)
        if self._num_bytes >= _FLUSH_BYTES or len(self._answers) >= _FLUSH_REQUESTS:
            await self.flush()

    async def flush_until(self, complete: asyncio.Event, began_at: float) -> None:
        """Flush once in a while, and what is left once nothing more comes."""
        while not complete.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(flush_period_s(time.time() - began_at)):
                    await complete.wait()
            await self.flush()

    async def flush(self) -> None:
        """Put all that is here into the files; what fails, or is cancelled, leaves it here.

        Raises `LeaseLostError` (also when it was in the files already), `StateError` or `TransportError`.
        """
        async with self._turn:
            num_answers, num_bytes = len(self._answers), self._num_bytes
            if not num_answers:
                return
            answers = self._answers[:num_answers]
            output = await self._part([answer.line for answer in answers if not answer.is_error])
            errors = await self._part([answer.line for answer in answers if answer.is_error])
            await self._batch.collect([answer.request for answer in answers], output, errors, _counts(answers))
            del self._answers[:num_answers]
            self._num_bytes -= num_bytes
            await self._forget(answers)

    async def _part(self, lines: Sequence[bytes]) -> Part | None:
        if not lines:
            return None
        async with self._files.writer() as writer:
            await writer.write(b"".join(lines))
            return await writer.close()


def flush_period_s(age_s: float) -> float:
    """Return for how long answers may wait in a batch of this age."""
    least_s, most_s = _FLUSH_S
    return min(max(least_s, _FLUSH_SHARE * age_s), most_s)


def as_line(value: Mapping[str, object]) -> bytes:
    """Return a line of JSON in ASCII: within text, some characters end lines for some readers."""
    return json.dumps(msgspec.to_builtins(value), separators=(",", ":")).encode() + b"\n"


def _counts(answers: Sequence[Answer]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for answer in answers:
        counts["failed" if answer.is_error else "completed"] += 1
        counts["error_bytes" if answer.is_error else "output_bytes"] += len(answer.line)
        for name, count in zip(("input_tokens", "output_tokens", "reasoning_tokens"), answer.usage, strict=True):
            counts[name] += count
    return dict(counts)
