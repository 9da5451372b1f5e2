"""Where answers to requests arrive, and where whoever asked waits for them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import structlog

from broker_pipeline.errors import (
    ContractError,
    Failure,
    MalformedEnvelopeError,
    NoResponderError,
    PipelineError,
    TransportError,
    error_from_failure,
)
from broker_pipeline.wire.assembler import Assembler, WireMessage, place, receive
from broker_pipeline.wire.nats.connection import NatsConnection
from broker_pipeline.wire.nats.message import NatsMessage, read_headers

log = structlog.get_logger()

FAILURE_HEADER = "Bp-Failure"
_MAX_ASSEMBLED_BYTES = 2**30


@dataclass(slots=True)
class Waiting:
    """Requests without answer. Both inboxes share it: an answer takes the connection that its size asks for."""

    futures: dict[str, asyncio.Future[WireMessage]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)


@dataclass(slots=True)
class ReplyInbox:
    """Answers that come over one connection: each to a subject of its own below one subscription."""

    connection: NatsConnection
    root: str
    assembler: Assembler
    waiting: Waiting

    async def open(self) -> None:
        """Subscribe; returns when answers are sure to arrive."""
        await self.connection.listen(f"{self.root}.*", self)
        await self.connection.barrier()

    @contextmanager
    def expect(self) -> Iterator[tuple[str, asyncio.Future[WireMessage]]]:
        """Give a subject for one answer, and the future that it arrives in."""
        token = str(next(self.waiting.numbers))
        future = self.waiting.futures[token] = asyncio.get_running_loop().create_future()
        try:
            yield f"{self.root}.{token}", future
        finally:
            del self.waiting.futures[token]
            if future.done() and not future.cancelled():
                future.exception()  # seen, even where the caller was cancelled meanwhile

    def place(self, headers: bytes, num_bytes: int) -> memoryview | None:
        """Say where a part that is about to be read belongs."""
        return place(headers, num_bytes, self.assembler)

    def on_message(self, message: NatsMessage) -> None:
        """Take one NATS message: an answer, a part of one, a failure, or the server's word that nobody listens."""
        token = message.subject.rpartition(".")[2]
        future = self.waiting.futures.get(token)
        if future is None or future.done():
            log.debug("late_answer", subject=message.subject)
            return
        try:
            whole = self._read(message)
        except PipelineError as error:
            future.set_exception(error)
        else:
            if whole is not None:
                future.set_result(whole)

    def _read(self, message: NatsMessage) -> WireMessage | None:
        if message.headers:
            headers = read_headers(message.headers)
            if headers.get("Status") == "503":
                raise NoResponderError("nobody listens there")
            if FAILURE_HEADER in headers:
                raise _read_failure(headers[FAILURE_HEADER])
        room_bytes = _MAX_ASSEMBLED_BYTES - self.assembler.num_bytes
        # An answer's parts bear the inbox as `reply` nowhere, so that its own subject names whom a gap concerns.
        message.reply = message.subject
        return receive(message, self.assembler, asyncio.get_running_loop().time(), room_bytes)

    def expire(self, now: float) -> None:
        """Give up answers whose parts stopped coming."""
        for abandoned in self.assembler.expire(now):
            self._give_up(abandoned.reply, abandoned.error)

    def connection_lost(self) -> None:
        """Give up answers of which parts were still to come. Those that have not begun may yet arrive."""
        for abandoned in self.assembler.abandon_all():
            self._give_up(abandoned.reply, abandoned.error)

    def fail(self, error: TransportError) -> None:
        """Let everybody who waits know that no answer can come any more."""
        for future in self.waiting.futures.values():
            if not future.done():
                future.set_exception(error)

    def _give_up(self, subject: str, error: ContractError) -> None:
        future = self.waiting.futures.get(subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_exception(error)


def _read_failure(text: str) -> PipelineError:
    try:
        return error_from_failure(msgspec.json.decode(text, type=Failure))
    except (msgspec.MsgspecError, ValueError) as error:
        return MalformedEnvelopeError(f"the answer is a failure that cannot be read: {error}", field=FAILURE_HEADER)
