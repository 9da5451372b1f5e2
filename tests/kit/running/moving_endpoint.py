"""An address that moves from one server to another, as a service's does at a failover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class MovingEndpoint:
    """Forwards each new connection to where it leads at that moment; those that are open stay where they are."""

    def __init__(self, url: str) -> None:
        self.target = url
        self.url = ""
        self.num_open = 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection both ways until either side ends."""
        parts = urlsplit(self.target)
        self.num_open += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:
            writer.close()
        finally:
            self.num_open -= 1


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def moving_endpoint(url: str) -> AsyncIterator[MovingEndpoint]:
    """Listen on the loopback interface, leading to the server at `url` at first."""
    endpoint = MovingEndpoint(url)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(endpoint.forward(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    endpoint.url = f"{urlsplit(url).scheme}://{host}:{port}"
    try:
        yield endpoint
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
