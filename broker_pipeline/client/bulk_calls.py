"""Submits and awaits many jobs with few requests: what comes while one is under way goes with the next.

    submit a ──► request: a ┄┄┄┄┄► answered
    submit b ──────┐
    submit c ──────┴──► (waits) ──► request: b c ┄┄┄► each has its own answer

Ends are awaited in the same way: a request names many jobs, and is answered as soon as some of them have ended.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from broker_pipeline.client.caption_request import CaptionRequest
from broker_pipeline.client.gateway_client import GatewayClient, Submitted
from broker_pipeline.errors import BodyTooLargeError, JobNotFoundError, PipelineError, error_from_failure
from broker_pipeline.exit_codes import raising_first_error
from broker_pipeline.messages.gateway import BulkAnswer
from broker_pipeline.messages.jobs import JobRecord

NUM_SENDERS = 3
NUM_WAITERS = 3
_MAX_JOBS = 256
_MAX_BYTES = 8 * 2**20
_LARGE_BYTES = 2**20
"""What has more goes by itself, as it is: a third of it is saved."""
_WAIT_S = 5.0
_MAX_PAUSE_S = 60.0

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True, slots=True, eq=False)
class _Call(Generic[K, T]):
    """Something asked for: `what` is sent, and `answer` is given to who waits."""

    what: K
    num_bytes: int = 0
    answer: asyncio.Future[T] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True, slots=True)
class _Answered:
    answer: BulkAnswer
    num_tries: int


class BulkCalls:
    """The jobs of one client. Made by `open`. Errors are those of `GatewayClient`."""

    def __init__(self, client: GatewayClient) -> None:
        self._client = client
        self._unsent: asyncio.Queue[_Call[bytes, _Answered]] = asyncio.Queue()
        self._unawaited: asyncio.Queue[_Call[str, JobRecord]] = asyncio.Queue()

    @classmethod
    @asynccontextmanager
    async def open(cls, client: GatewayClient) -> AsyncIterator[Self]:
        """Send while the context is open."""
        calls = cls(client)
        with raising_first_error():
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(calls._send()) for _ in range(NUM_SENDERS)]
                tasks += [group.create_task(calls._await()) for _ in range(NUM_WAITERS)]
                try:
                    yield calls
                finally:
                    for task in tasks:
                        task.cancel()

    async def submit(
        self, media: bytes | str, request: CaptionRequest, key: str, *, is_video: bool = False
    ) -> Submitted:
        """Submit a picture or video, or the URL that workers read it at; waits while the queue is full."""
        if isinstance(media, bytes) and len(media) > _LARGE_BYTES:
            return await self._client.submit(media, request, key, is_video=is_video)
        body = request.as_bulk_job(_url(media), key, is_video=is_video)
        started, num_tries = time.monotonic(), 0
        while True:
            call: _Call[bytes, _Answered] = _Call(body, len(body))
            self._unsent.put_nowait(call)  # as many as wait for an answer
            answered = await call.answer
            num_tries += answered.num_tries
            if (record := answered.answer.job) is not None:
                return Submitted(record, answered.answer.is_repeat, num_tries)
            await self._pause(answered.answer, started)

    async def wait(self, job_id: str) -> JobRecord:
        """Return a job once it has ended."""
        call: _Call[str, JobRecord] = _Call(job_id)
        self._unawaited.put_nowait(call)
        return await call.answer

    async def _pause(self, answer: BulkAnswer, started: float) -> None:
        """Wait until a refused job may be sent again; raises its error where it may not."""
        if answer.error is None:
            raise self._client.not_a_gateway(200)
        error = error_from_failure(answer.error.to_failure())
        if not answer.retry_after_s or not self._client.has_patience(started, error):
            raise error
        await asyncio.sleep(min(answer.retry_after_s, _MAX_PAUSE_S))

    async def _send(self) -> None:
        while True:
            await self._send_now(await _taken(self._unsent))

    async def _send_now(self, calls: list[_Call[bytes, _Answered]]) -> None:
        try:
            answers, num_tries = await self._client.submit_many([call.what for call in calls])
        except BodyTooLargeError as error:
            if len(calls) == 1:
                _fail(calls, error)
                return
            await self._send_now(calls[::2])
            await self._send_now(calls[1::2])
        except PipelineError as error:
            _fail(calls, error)
        else:
            for call, answer in zip(calls, answers, strict=True):
                _tell(call, _Answered(answer, num_tries))

    async def _await(self) -> None:
        calls: list[_Call[str, JobRecord]] = []
        while True:
            calls += await _taken(self._unawaited, _MAX_JOBS - len(calls), waits=not calls)
            try:
                ended = await self._client.ended([call.what for call in calls], _WAIT_S)
            except PipelineError as error:
                _fail(calls, error)
                calls = []
                continue
            records = {record.job_id: record for record in ended.jobs}
            for call in calls:
                if (record := records.get(call.what)) is not None:
                    _tell(call, record)
                elif call.what in ended.unknown:
                    _fail([call], JobNotFoundError(f"no job {call.what} (any more)", field="job_id"))
            calls = [call for call in calls if not call.answer.done()]


async def _taken(queue: asyncio.Queue[_Call[K, T]], most: int = _MAX_JOBS, *, waits: bool = True) -> list[_Call[K, T]]:
    """Take what waits, as much as goes into one request; with `waits`, something."""
    calls = [await queue.get()] if waits else []
    num_bytes = sum(call.num_bytes for call in calls)
    while len(calls) < most and num_bytes < _MAX_BYTES and not queue.empty():
        calls.append(queue.get_nowait())
        num_bytes += calls[-1].num_bytes
    return [call for call in calls if not call.answer.done()] or (await _taken(queue, most) if waits else [])


def _tell(call: _Call[K, T], answer: T) -> None:
    if not call.answer.done():  # nobody waits any more
        call.answer.set_result(answer)


def _fail(calls: list[_Call[K, T]], error: PipelineError) -> None:
    for call in calls:
        if not call.answer.done():
            call.answer.set_exception(error)


def _url(media: bytes | str) -> str:
    """Return bytes as a URL; the gateway finds out what they are."""
    if isinstance(media, str):
        return media
    return f"data:application/octet-stream;base64,{base64.b64encode(media).decode()}"
