"""Waiting for what happens elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, timeout_s: float = 5.0) -> None:
    """Wait until `condition` holds, or what it returns to be awaited; `TimeoutError` when that is not in time."""
    async with asyncio.timeout(timeout_s):
        while True:
            holds = condition()
            if holds if isinstance(holds, bool) else await holds:
                return
            await asyncio.sleep(0.01)
