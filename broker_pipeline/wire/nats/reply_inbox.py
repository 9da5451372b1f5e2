"""Where answers to requests arrive, and where whoever asked waits for them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import structlog

from broker_pipeline.errors import (
    Failure,
    MalformedEnvelopeError,
    NoResponderError,
    PipelineError,
    TransportError,
    error_from_failure,
)
from broker_pipeline.wire.edges.incoming import IncomingEdges
from broker_pipeline.wire.link import Message
from broker_pipeline.wire.nats.listener import NatsListener
from broker_pipeline.wire.nats.message import NatsMessage, header_block, read_headers
from broker_pipeline.wire.room import Room

log = structlog.get_logger()

Expected = tuple[str, asyncio.Future[Message]]

_FAILURE_HEADER = "Bp-Failure"
_MAX_BYTES = 2**30


class ReplyInbox:
    """Requests without answer, whichever connection it comes over: it takes the one that its size asks for."""

    def __init__(self, max_message_bytes: int) -> None:
        """Take answers of up to `max_message_bytes`."""
        self.room = Room(_MAX_BYTES, max_message_bytes)
        self._futures: dict[str, asyncio.Future[Message]] = {}

    @contextmanager
    def expect(self, root: str) -> Iterator[Expected]:
        """Give a subject below `root` for one answer, and the future that it arrives in.

        Only whoever was asked can answer: nobody guesses the subject.
        """
        token = secrets.token_hex(8)
        future = self._futures[token] = asyncio.get_running_loop().create_future()
        try:
            yield f"{root}.{token}", future
        finally:
            del self._futures[token]
            if future.done() and not future.cancelled():
                future.exception()  # seen, even where the caller was cancelled meanwhile

    def is_expected(self, subject: str) -> bool:
        """Whether somebody waits for what comes to `subject`."""
        return self._waiting(subject) is not None

    def on_message(self, message: Message) -> None:
        """Give an answer to whoever waits for it."""
        self.room.free(message.num_bytes)
        if future := self._waiting(message.reply):
            future.set_result(message)

    def on_malformed(self, error: PipelineError, reply: str) -> None:
        """Raise an error where the answer is waited for."""
        if future := self._waiting(reply):
            future.set_exception(error)

    def on_dropped(self, error: PipelineError, metadata: memoryview, num_bytes: int, reply: str) -> None:  # noqa: ARG002
        """Raise an error where the answer is waited for."""
        self.on_malformed(error, reply)

    def fail(self, error: TransportError) -> None:
        """Let everybody who waits know that no answer can come any more."""
        for future in self._futures.values():
            if not future.done():
                future.set_exception(error)

    def _waiting(self, subject: str) -> asyncio.Future[Message] | None:
        future = self._futures.get(subject.rpartition(".")[2])
        return None if future is None or future.done() else future


class ReplyListener(NatsListener):
    """Answers that come over one connection: each to a subject of its own below one subscription."""

    def __init__(self, inbox: ReplyInbox, edges: IncomingEdges) -> None:
        """Give `inbox` what comes to the subjects that it expects something on."""
        super().__init__(inbox, edges)
        self._inbox = inbox

    def on_message(self, message: NatsMessage) -> None:
        """Take one NATS message: an answer, a part of one, a failure, or the server's word that nobody listens."""
        if not self._inbox.is_expected(message.subject):
            log.debug("late_answer", subject=message.subject)
            return
        # An answer asks for none itself, so that its own subject is free to name whom it, or a gap in it, concerns.
        message.reply = message.subject
        if error := _failure_in(message.headers):
            self._inbox.on_malformed(error, message.reply)
        else:
            super().on_message(message)


def failure_headers(error: PipelineError) -> bytes:
    """Return an error as it travels."""
    return header_block({_FAILURE_HEADER: msgspec.json.encode(error.to_failure()).decode()})


def _failure_in(block: bytes) -> PipelineError | None:
    headers = read_headers(block) if block else {}
    if headers.get("Status") == "503":
        return NoResponderError("nobody listens there")
    if (text := headers.get(_FAILURE_HEADER)) is None:
        return None
    try:
        return error_from_failure(msgspec.json.decode(text, type=Failure))
    except (msgspec.MsgspecError, ValueError) as error:
        return MalformedEnvelopeError(f"the answer is a failure that cannot be read: {error}", field=_FAILURE_HEADER)
