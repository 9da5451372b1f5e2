"""Waiting for what happens elsewhere.

How long at most is for a machine on which other tests run as well, and costs nothing where the thing happens. It is
less than the half minute after which services help themselves, so that this is not taken for what is waited for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

_POLL_S = 0.01


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 20.0) -> None:
    """Wait until `condition` holds, or what it returns to be awaited; `TimeoutError` when that is not in time."""
    async with asyncio.timeout(timeout_s):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(_POLL_S)


def wait_until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Do the same where no event loop runs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s")
        time.sleep(_POLL_S)
