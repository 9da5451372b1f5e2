"""One batch in the hands of who holds its lease, from wherever others left it.

    validating   read the input through once: is it right, and where do requests begin?
    in_progress  every request that is not done ──► a job ──► its end ──► outbox
    cancelling, or too late: of what is left, keep what has an answer, and write why there is none for the rest
    finalizing   the output becomes files

A job's idempotency key is made of batch and request, so that a run that takes over finds the jobs of the one before.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import structlog

from broker_pipeline.errors import FileUnknownError
from gateway.access.rates import Rates
from gateway.batches.answers import Answers, Asked
from gateway.batches.batch_store import BatchStore, HeldBatch
from gateway.batches.checks import LineChecker
from gateway.batches.file_store import FileStore
from gateway.batches.lines import Line, LineCutter
from gateway.batches.outbox import Outbox
from gateway.batches.places import LinePlaces
from gateway.batches.records import FINAL, Batch, LineError
from gateway.intake.upload_room import UploadRoom
from gateway.settings import BatchLimits

_LOOK_S = 1.0
_ROOM_BYTES = 8 * 1024 * 1024
_NUM_ASKING = 16
"""Requests, and bytes of them, that are being made into jobs at a time; each is in memory some three times then."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class RunParts:
    """What runs of batches share."""

    batches: BatchStore
    files: FileStore
    answers: Answers
    rates: Rates
    limits: BatchLimits


class BatchRun:
    """One run."""

    def __init__(self, parts: RunParts, held: HeldBatch, gives_way: asyncio.Event) -> None:
        """Once `gives_way` is set, somebody else is to run it later."""
        self._parts = parts
        self._held = held
        self._gives_way = gives_way
        self._outbox = Outbox(held, parts.files, parts.answers.forget)
        self._slots = asyncio.Semaphore(parts.limits.jobs_in_flight)
        self._room = UploadRoom(_ROOM_BYTES, wait_s=None)
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Carry the batch on until it has ended, is paused, or gives way.

        Raises `LeaseLostError`, `StateError` or `TransportError`; whoever runs it next loses nothing.
        """
        while (batch := await self._batch()).status not in FINAL and not batch.paused:
            if self._gives_way.is_set():
                return
            try:
                await self._step(batch)
            except FileUnknownError as error:
                await self.fail(LineError(code=error.code, message=error.message, param="input_file_id"))

    async def fail(self, error: LineError) -> None:
        """End the batch as failed."""
        await self._held.finish((await self._batch()).status, "failed", [error])

    async def _batch(self) -> Batch:
        return await self._parts.batches.get(self._held.id)

    async def _step(self, batch: Batch) -> None:
        if batch.status == "finalizing":
            await self._held.finish("finalizing", "completed")
        elif batch.status == "cancelling":
            await self._close(batch, "cancelled")
        elif _is_late(batch):
            await self._close(batch, "expired")
        elif batch.status == "validating":
            await self._validate(batch)
        else:
            await self._answer_while_wanted(batch)

    async def _validate(self, batch: Batch) -> None:
        checker = LineChecker(batch.endpoint, self._parts.limits, await self._parts.answers.model())
        async with aclosing(self._blocks(batch)) as blocks:
            async for lines in blocks:
                await asyncio.to_thread(checker.check, lines)
                if checker.is_hopeless:
                    break
        if errors := await asyncio.to_thread(checker.errors):
            await self._held.finish("validating", "failed", errors)
            log.info("batch_refused", batch=batch.id, num_errors=len(errors))
        elif await self._held.begin(checker.total, checker.model, checker.offsets):
            log.info("batch_begun", batch=batch.id, num_requests=checker.total)

    async def _answer_while_wanted(self, batch: Batch) -> None:
        work = asyncio.create_task(self._answer_all(batch), name=f"requests of {batch.id}")
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_LOOK_S)
                now = await self._batch()
                if now.status != "in_progress" or now.paused or _is_late(now) or self._gives_way.is_set():
                    break
        finally:
            work.cancel()
            (outcome,) = await asyncio.gather(work, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome
        await self._outbox.flush()

    async def _answer_all(self, batch: Batch) -> None:
        """Answer every request that is not done."""
        async with asyncio.TaskGroup() as group:
            complete = asyncio.Event()
            group.create_task(self._outbox.flush_until(complete, batch.in_progress_at or 0))
            with LinePlaces(self._parts.rates, batch) as places:
                async with aclosing(self._remaining(batch)) as remaining, asyncio.TaskGroup() as requests:
                    for _ in range(_NUM_ASKING):
                        requests.create_task(self._ask_in_turn(batch, places, remaining, requests))
            complete.set()
        await self._held.advance("in_progress", "finalizing")

    async def _ask_in_turn(
        self,
        batch: Batch,
        places: LinePlaces,
        remaining: AsyncIterator[tuple[int, Line]],
        requests: asyncio.TaskGroup,
    ) -> None:
        """Make jobs of one request after the other, as long as there are some, and have each waited for."""
        while True:
            await self._slots.acquire()
            async with AsyncExitStack() as room:
                async with self._turn:
                    if (found := await anext(remaining, None)) is None:
                        self._slots.release()
                        return
                    number, line = found
                    await room.enter_async_context(places.taken(number))
                    await room.enter_async_context(self._room.hold(len(line.content or b"")))
                asked = await self._parts.answers.ask(batch, number, line)
            requests.create_task(self._wait(batch, places, asked, line.offset))
            del found, line  # with its pictures, while this waits for a slot

    async def _wait(self, batch: Batch, places: LinePlaces, asked: Asked, offset: int) -> None:
        while (answer := await self._parts.answers.answered(asked)) is None:  # its job was deleted: it gets another
            asked = await self._parts.answers.ask(batch, asked.number, await self._line_at(batch, offset))
        await places.leave([asked.number])
        await self._outbox.add(answer)
        self._slots.release()

    async def _line_at(self, batch: Batch, offset: int) -> Line:
        async with aclosing(self._blocks(batch, offset)) as blocks:
            async for lines in blocks:
                if lines:
                    return lines[0]
        raise FileUnknownError(f"{batch.input_file_id} has become shorter")

    async def _close(self, batch: Batch, status: str) -> None:
        """Keep what has an answer; write of the rest why there is none."""
        if batch.is_validated:
            places = LinePlaces(self._parts.rates, batch)
            async with aclosing(self._remaining_blocks(batch)) as blocks:
                async for requests in blocks:
                    for answer in await self._parts.answers.give_up(batch, requests, status):
                        await self._outbox.add(answer)
                    await places.leave(number for number, _ in requests)
            await self._outbox.flush()
        await self._held.finish(batch.status, status)
        log.info("batch_closed", batch=batch.id, status=status)

    async def _remaining(self, batch: Batch) -> AsyncGenerator[tuple[int, Line], None]:
        """Yield the requests that are not done, with their numbers."""
        async with aclosing(self._remaining_blocks(batch)) as blocks:
            async for requests in blocks:
                for request in requests:
                    yield request

    async def _remaining_blocks(self, batch: Batch) -> AsyncGenerator[list[tuple[int, Line]], None]:
        """Yield the same, some at a time."""
        done = await self._held.done()
        request, offset = await self._held.offset(_first_open(done))
        async with aclosing(self._blocks(batch, offset)) as blocks:
            async for lines in blocks:
                yield [(number, line) for number, line in enumerate(lines, request) if not _is_done(done, number)]
                request += len(lines)

    async def _blocks(self, batch: Batch, offset: int = 0) -> AsyncGenerator[list[Line], None]:
        """Yield the input's lines, some at a time, from the one that begins at `offset` on."""
        cutter = LineCutter(self._parts.limits.max_line_bytes, offset)
        async with aclosing(self._parts.files.read(batch.input_file_id, offset)) as chunks:
            async for chunk in chunks:
                yield cutter.feed(chunk)
        yield cutter.close()


def _is_late(batch: Batch) -> bool:
    return time.time() >= batch.expires_at


def _first_open(done: bytes) -> int:
    """Return the number of the first request whose bit is 0, rounded down to a byte."""
    return 8 * (len(done) - len(done.lstrip(b"\xff")))


def _is_done(done: bytes, request: int) -> bool:
    return request // 8 < len(done) and bool(done[request // 8] & 0x80 >> request % 8)
