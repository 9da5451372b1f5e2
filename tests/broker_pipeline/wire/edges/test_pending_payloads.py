"""Payloads that come after their metadata, too late, or never."""

from __future__ import annotations

import asyncio

import pytest

from broker_pipeline.errors import EdgeLostError, PartError
from broker_pipeline.wire.edges.pending_payloads import PendingPayloads


class Waiting:
    """One payload that is waited for until 10."""

    def __init__(self) -> None:
        self.pending = PendingPayloads()
        self.payload: asyncio.Future[memoryview] = asyncio.get_running_loop().create_future()
        self.found: list[memoryview | PartError] = []
        self.pending.wait(self.payload, 10.0, self.found.append)


async def test_a_payload_that_comes_is_told_once() -> None:
    waiting = Waiting()
    waiting.pending.expire(9.9)
    waiting.payload.set_result(memoryview(b"x"))
    await asyncio.sleep(0)
    waiting.pending.expire(11.0)
    await asyncio.sleep(0)
    assert waiting.found == [b"x"]
    assert not len(waiting.pending)


@pytest.mark.parametrize("error", [EdgeLostError("the sender is gone"), PartError("taken")], ids=str)
async def test_a_payload_that_cannot_come_is_said_at_once(error: EdgeLostError | PartError) -> None:
    waiting = Waiting()
    waiting.payload.set_exception(error)
    await asyncio.sleep(0)
    [found] = waiting.found
    assert isinstance(found, PartError)
    assert error.message in found.message


async def test_a_payload_that_is_overdue_is_given_up() -> None:
    waiting = Waiting()
    waiting.pending.expire(10.0)
    await asyncio.sleep(0)
    assert waiting.payload.cancelled(), "so that its edge drops it when it comes"
    [found] = waiting.found
    assert isinstance(found, PartError)
