"""Waiting for what happens elsewhere."""

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], bool], *, timeout_s: float = 5.0) -> None:
    """Wait until `condition` holds; `TimeoutError` when it does not in time."""
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)
