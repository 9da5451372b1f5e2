"""What becomes of nats-py's errors."""

from __future__ import annotations

import asyncio

import nats.errors
import pytest
from nats.js.errors import APIError, NoStreamResponseError

from broker_pipeline.errors import PipelineError, QueueFullError, RequestTimeoutError, StateError, TransportError
from broker_pipeline.storage.jetstream import jetstream_errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (APIError(code=503, err_code=10077, description="maximum bytes exceeded"), QueueFullError),
        (APIError(code=500, err_code=10001, description="odd"), TransportError),
        (NoStreamResponseError(), TransportError),
        (nats.errors.NoRespondersError(), TransportError),
        (nats.errors.TimeoutError(), RequestTimeoutError),
        (TimeoutError(), RequestTimeoutError),
        (nats.errors.ConnectionClosedError(), TransportError),
        (ConnectionResetError("reset"), TransportError),
    ],
)
def test_each_has_its_class_and_says_what_was_done(error: Exception, kind: type[PipelineError]) -> None:
    with pytest.raises(PipelineError, match=r"^asking: ") as caught, jetstream_errors("asking"):
        raise error
    assert (type(caught.value), caught.value.__cause__) == (kind, error)


@pytest.mark.parametrize("error", [KeyError("a bug"), StateError("ours"), asyncio.CancelledError()])
def test_others_are_left_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, jetstream_errors("asking"):
        raise error
    assert caught.value is error
