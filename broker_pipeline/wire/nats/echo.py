"""Messages from a connection to itself: one that came back says that the server has processed all that came before."""

from __future__ import annotations

import asyncio
import itertools

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg


class Echo:
    """One inbox, and tokens on their way to it."""

    def __init__(self, client: Client) -> None:
        """Send over `client`, once `open`ed."""
        self._client = client
        self._subject = ""
        self._waiting: dict[bytes, asyncio.Future[bool]] = {}
        self._numbers = itertools.count()

    async def open(self, subject: str) -> None:
        """Subscribe to a subject that nobody else uses."""
        self._subject = subject
        await self._client.subscribe(subject, cb=self._on_message)

    async def comes_back(self) -> bool:
        """Send a token; return whether it came back. False: the connection was lost meanwhile."""
        token = b"%d" % next(self._numbers)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        try:
            await self._client.publish(self._subject, token)
            return await future
        except (nats.errors.Error, OSError):
            return False
        finally:
            del self._waiting[token]

    def lose(self) -> None:
        """Wait for no token any more: the connection that they were on is gone."""
        for future in self._waiting.values():
            if not future.done():
                future.set_result(False)

    async def _on_message(self, msg: Msg) -> None:
        future = self._waiting.get(msg.data)
        if future and not future.done():
            future.set_result(True)
