"""Waits out a Redis that is away: everything written to it may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from broker_pipeline.errors import GarbledStateError, LeaseLostError, StateDeniedError, StateError

T = TypeVar("T")

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 0.25
_MAX_TRIES = 240


async def persist(call: Callable[[], Awaitable[T]]) -> T:
    """Call until Redis answers; raises its `StateError` when it never does (the lease is lost long before).

    Raises `GarbledStateError`, `StateDeniedError` and `LeaseLostError` at once: Redis has answered.
    """
    pause_s = _FIRST_PAUSE_S
    for _ in range(_MAX_TRIES):
        try:
            return await call()
        except (GarbledStateError, StateDeniedError, LeaseLostError):
            raise
        except StateError as error:
            log.info("state_write_repeated", reason=error.message, pause_s=round(pause_s, 2))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
    return await call()
