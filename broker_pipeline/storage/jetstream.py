"""JetStream's errors as ours, and streams that are made or brought up to date in one call."""

from __future__ import annotations

import asyncio
from types import TracebackType

import nats.errors
from nats.js.api import StreamConfig, StreamInfo
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from broker_pipeline.cancellation import cancellation_kept
from broker_pipeline.errors import (
    ConfigurationError,
    PayloadTooLargeError,
    PipelineError,
    QueueFullError,
    RequestTimeoutError,
    TransportError,
)

# Numbers of the server's errors (server/errors.json of nats-server).
_STORE_FAILED = 10077  # also says that a stream is full
_NO_STORAGE = frozenset({10023, 10028, 10047})
_NOT_ENABLED = frozenset({10039, 10076})
_NAME_TAKEN = 10058
_STORE_NOT_MADE = 10049  # the files of a stream of this name are still being removed
_CREATE_PAUSES_S = (0.1, 0.3, 1.0)
_NAME_IN_USE = "something else uses this name on the server: choose another namespace"
_ERRORS: dict[int, tuple[type[PipelineError], str]] = {
    10054: (PayloadTooLargeError, "it is larger than a message of this stream may be"),
    **dict.fromkeys((10052, _NAME_TAKEN, 10065), (ConfigurationError, _NAME_IN_USE)),
    10074: (ConfigurationError, "that is --nats-replicas; this NATS server is in no cluster, and keeps one of each"),
    10005: (TransportError, "are as many servers of the NATS cluster there as --nats-replicas says?"),
}
"""Class and hint by number; to be told from those that depend on more."""


class jetstream_errors(cancellation_kept):  # noqa: N801 - reads as what it does
    """Turns what nats-py raises into errors of ours that start with `action`; keeps cancellations that it loses."""

    __slots__ = ("_action", "_retry_after_s")

    def __init__(self, action: str, *, retry_after_s: float = 1.0) -> None:
        self._action, self._retry_after_s = action, retry_after_s

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if isinstance(error, (nats.errors.Error, OSError)):
            raise _ours(self._action, error, self._retry_after_s) from error


def _ours(action: str, error: Exception, retry_after_s: float) -> PipelineError:
    if isinstance(error, APIError):
        return _translated(action, error, retry_after_s)
    if isinstance(error, (NoStreamResponseError, nats.errors.NoRespondersError)):
        return TransportError(f"{action}: no JetStream answers; is it enabled, and is the stream there?")
    if isinstance(error, TimeoutError):
        return RequestTimeoutError(f"{action}: JetStream did not answer in time")
    return TransportError(f"{action}: {error}")


def _translated(action: str, error: APIError, retry_after_s: float) -> PipelineError:
    said = f"{action}: {error.description or error}"
    code = error.err_code
    if code == _STORE_FAILED and "exceeded" in (error.description or ""):
        return QueueFullError(said, retry_after_s=retry_after_s)
    if code in _NO_STORAGE:
        return QueueFullError(
            f"{said}; JetStream has less room than is asked for: give it more, or lower the limit",
            retry_after_s=retry_after_s,
        )
    if code in _ERRORS:
        kind, hint = _ERRORS[code]
        return kind(f"{said}; {hint}")
    if code in _NOT_ENABLED or isinstance(error, ServiceUnavailableError):
        return TransportError(f"{said}; is JetStream enabled on the NATS server?")
    return TransportError(said)


async def ensure_stream(jetstream: JetStreamContext, config: StreamConfig, *, update: bool) -> StreamInfo:
    """Make the stream, or, with `update`, give an existing one this configuration; return what the server has then.

    Raises `TransportError` when JetStream does not answer, `QueueFullError` when it lacks the room that `config` asks
    for, `ConfigurationError` when the name is taken by a stream of another kind.
    """
    try:
        return await _ensure_stream(jetstream, config, update=update)
    except RequestTimeoutError:  # servers of a cluster may take that long to agree, and have made it meanwhile
        return await _ensure_stream(jetstream, config, update=update)


async def _ensure_stream(jetstream: JetStreamContext, config: StreamConfig, *, update: bool) -> StreamInfo:
    with jetstream_errors(f"stream {config.name}"):
        try:
            info = await jetstream.stream_info(str(config.name))
        except NotFoundError:
            return await _create(jetstream, config)
        return await jetstream.update_stream(config) if update else info


async def is_missing(jetstream: JetStreamContext, stream: str, consumer: str | None = None) -> bool:
    """Whether the server has no such stream, or no such consumer of it.

    To be asked after a failure: what a server says to those who use what was deleted differs with its version, down to
    nothing at all. Raises `TransportError` when JetStream does not answer.
    """
    with jetstream_errors(f"stream {stream}"):
        try:
            await (jetstream.consumer_info(stream, consumer) if consumer else jetstream.stream_info(stream))
        except NotFoundError:
            return True
        return False


async def _create(jetstream: JetStreamContext, config: StreamConfig) -> StreamInfo:
    for pause_s in _CREATE_PAUSES_S:
        try:
            return await jetstream.add_stream(config)
        except APIError as error:
            if error.err_code == _NAME_TAKEN:
                # Somebody else made it a moment ago, with limits of its own; theirs are as good as ours.
                return await jetstream.stream_info(str(config.name))
            if error.err_code != _STORE_NOT_MADE:
                raise
        await asyncio.sleep(pause_s)
    return await jetstream.add_stream(config)
