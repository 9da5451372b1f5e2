"""The other process, of this machine or another host: takes messages as a worker does, answers each with a few bytes.

Every way has a root of subjects there, so that one process answers for all of them, and for bare sockets as well.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import numpy as np
import uvloop

from broker_pipeline.logs import log_errors_only
from broker_pipeline.messages.activation import Envelope, MicrobatchResult
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer, TcpOffer
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.transport import Subscription, Transport

_RING_BYTES = 256 * 2**20
SETTINGS = {
    "shm": EdgeSettings("shm", _RING_BYTES),
    "tcp": EdgeSettings("tcp"),
    "tcp, TLS off": EdgeSettings("tcp", is_encrypted=False),
    "nats": EdgeSettings("nats"),
}
"""Ways that carry messages; both ends use them alike."""
NEAR = "bench.edges.near"
RAW = "bench.edges.far.raw"
"""Where the far end says at which address it reads bare sockets, once it listens to everything."""


def far_root(way: str) -> str:
    """Return the root of the far end's subjects for a way."""
    return f"bench.edges.far.{list(SETTINGS).index(way)}"


def run_far_end(nats_url: str) -> None:
    """Answer until this process is ended."""
    log_errors_only()
    uvloop.run(answer(nats_url))


async def answer(nats_url: str) -> None:
    """Answer until cancelled."""
    async with answering(nats_url, SETTINGS) as transport:
        with _reading_sockets(transport.link.local_host) as address:
            offer = EdgeOffer(tcp=TcpOffer(addresses=(address,), token="raw"))  # noqa: S106 - nobody asks for it
            async with transport.subscribe(RAW, EdgeAsk) as asks:
                async for ask in asks:
                    await ask.respond(offer)


@asynccontextmanager
async def answering(nats_url: str, settings: Mapping[str, EdgeSettings]) -> AsyncIterator[Transport]:
    """Answer messages by some ways while the context is open; yields one of the transports."""
    async with AsyncExitStack() as stack:
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = []
        for way, each in settings.items():
            transport = await stack.enter_async_context(Transport.open(nats_url, name=f"bench far {way}"))
            await stack.enter_async_context(transport.use_edges(far_root(way), each))
            work = f"{far_root(way)}.work"
            messages = await stack.enter_async_context(transport.subscribe(work, Envelope, max_pending_bytes=2**30))
            running.append(tasks.create_task(_answer_messages(transport, messages), name=way))
        try:
            yield transport
        finally:
            for task in running:
                task.cancel()


async def _answer_messages(transport: Transport, messages: Subscription[Envelope]) -> None:
    async for message in messages:
        envelope = message.body
        result = MicrobatchResult(
            pipeline=envelope.pipeline,
            fingerprint=envelope.fingerprint,
            epoch=envelope.epoch,
            microbatch=envelope.microbatch,
            worker="far",
            tokens=(),
            timings=(),
        )
        await transport.publish(envelope.reply, result)


@contextmanager
def _reading_sockets(host: str) -> Iterator[str]:
    """Read whatever comes at the address that is yielded: the floor of any edge over TCP."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        yield f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # closed
            return
        threading.Thread(target=_read, args=(connection,), daemon=True).start()


def _read(connection: socket.socket) -> None:
    """Read payloads of announced sizes into memory of their own, and answer each with a byte."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while num_bytes := int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little"):
            view = np.empty(num_bytes, np.uint8).data
            while view and (num_read := connection.recv_into(view, len(view), socket.MSG_WAITALL)):
                view = view[num_read:]
            with suppress(ConnectionError):  # a run may end in the middle
                connection.sendall(b"1")
