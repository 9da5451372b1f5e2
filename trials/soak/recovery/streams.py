"""Clients that keep a pipeline busy: each submits a job, follows its stream to the end, and begins again.

A stream that breaks is continued at the next gateway, from the last event on, as browsers do.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec

from broker_pipeline.messages.jobs import JobEvent, JobRecord
from trials.soak.proof.client import UnexpectedAnswerError

_RETRY_S = 0.05
_SILENCE_S = 20.0
"""A gateway that hangs or is cut off is left after this; a living one says something every 15 s."""


@dataclass(eq=False)
class Stream:
    """One job and when its tokens came (monotonic clock)."""

    gateway: str
    """Where it was followed last."""
    asked_at: float
    job_id: str = ""
    token_times: list[float] = field(default_factory=list)
    ended_at: float | None = None
    problem: str | None = None
    last_id: str = ""

    def was_open(self, at: float) -> bool:
        """Whether somebody waited for its tokens at that time."""
        return self.asked_at < at and (self.ended_at is None or self.ended_at > at)

    def take(self, event: JobEvent, now: float) -> None:
        """Note an event."""
        if event.kind == "tokens":
            self.token_times += [now] * len(event.tokens)
        elif event.kind == "finished":
            self.ended_at = now
            self.problem = _problem(event.record)


def _problem(record: JobRecord | None) -> str | None:
    if record is None or record.status == "succeeded":
        return None
    return f"{record.job_id} has {record.status}: {record.error}"


class StreamLoad:
    """A number of clients. Made by `open`."""

    def __init__(self, http: aiohttp.ClientSession, gateways: Sequence[str], body: bytes) -> None:
        """Submit `body` again and again."""
        self.streams: list[Stream] = []
        self._http = http
        self._gateways = gateways
        self._body = body
        self._turns = itertools.count()
        self._keys = itertools.count()

    @classmethod
    @asynccontextmanager
    async def open(cls, gateways: Sequence[str], body: bytes, num_clients: int) -> AsyncIterator[StreamLoad]:
        """Keep `num_clients` streams open."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=1.0, sock_read=_SILENCE_S)
        async with aiohttp.ClientSession(timeout=timeout) as http, asyncio.TaskGroup() as tasks:
            load = cls(http, gateways, body)
            clients = [tasks.create_task(load._ask_again_and_again()) for _ in range(num_clients)]
            yield load
            for client in clients:
                client.cancel()

    def open_at(self, at: float) -> list[Stream]:
        """Return the streams that somebody followed at that time."""
        return [stream for stream in self.streams if stream.was_open(at)]

    async def until_moving(self, streams: Sequence[Stream], since: float) -> None:
        """Return once each of these has had a token, or its end, since then."""
        while self.stuck(streams, since):  # noqa: ASYNC110 - told by other tasks
            await asyncio.sleep(0.01)

    def stuck(self, streams: Sequence[Stream], since: float) -> list[Stream]:
        """Return those of some streams that have had neither a token nor their end since then."""
        return [stream for stream in streams if not _moved(stream, since)]

    async def _ask_again_and_again(self) -> None:
        while True:
            gateway = self._gateways[next(self._turns) % len(self._gateways)]
            stream = Stream(gateway, time.monotonic())
            self.streams.append(stream)
            stream.job_id = await self._submit(stream)
            while stream.ended_at is None:
                await self._follow(stream)

    async def _submit(self, stream: Stream) -> str:
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"recovery-{next(self._keys)}"}
        while True:
            try:
                async with self._http.post(f"{stream.gateway}/v1/jobs", data=self._body, headers=headers) as answer:
                    if answer.status == 202:
                        return msgspec.json.decode(await answer.read(), type=JobRecord).job_id
                    if answer.status < 500 and answer.status != 429:
                        said = (await answer.text())[:300]
                        raise UnexpectedAnswerError(f"POST {stream.gateway}/v1/jobs: {answer.status} {said}")
            except (aiohttp.ClientError, OSError, TimeoutError):
                stream.gateway = self._other(stream.gateway)
            await asyncio.sleep(_RETRY_S)

    async def _follow(self, stream: Stream) -> None:
        headers = {"Last-Event-ID": stream.last_id} if stream.last_id else {}
        try:
            async with self._http.get(f"{stream.gateway}/v1/jobs/{stream.job_id}/events", headers=headers) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b"id: "):
                        stream.last_id = line[4:].strip().decode()
                    elif line.startswith(b"data: "):
                        stream.take(msgspec.json.decode(line[6:], type=JobEvent), time.monotonic())
        except (aiohttp.ClientError, OSError, TimeoutError):
            stream.gateway = self._other(stream.gateway)
        if stream.ended_at is None:
            await asyncio.sleep(_RETRY_S)

    def _other(self, gateway: str) -> str:
        return self._gateways[(self._gateways.index(gateway) + 1) % len(self._gateways)]


def _moved(stream: Stream, since: float) -> bool:
    return stream.ended_at is not None or bool(stream.token_times and stream.token_times[-1] > since)
