"""The other process: takes messages as a worker does and answers each with a few bytes; or reads a raw socket."""

from __future__ import annotations

import logging
import socket
from multiprocessing.connection import Connection

import numpy as np
import structlog
import uvloop

from broker_pipeline.messages.activation import Envelope, MicrobatchResult
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.transport import Transport

NEAR, FAR = "bench.edges.near", "bench.edges.far"
"""Roots of both ends' subjects."""


def answer_messages(nats_url: str, settings: EdgeSettings, pipe: Connection) -> None:
    """Answer envelopes until this process is ended; says over `pipe` that it listens."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    uvloop.run(_answer(nats_url, settings, pipe))


async def _answer(nats_url: str, settings: EdgeSettings, pipe: Connection) -> None:
    async with (
        Transport.open(nats_url, name="bench far") as transport,
        transport.use_edges(FAR, settings),
        transport.subscribe(f"{FAR}.work", Envelope, max_pending_bytes=2**30) as messages,
    ):
        pipe.send(None)
        async for message in messages:
            envelope = message.body
            answer = MicrobatchResult(
                pipeline=envelope.pipeline,
                fingerprint=envelope.fingerprint,
                epoch=envelope.epoch,
                microbatch=envelope.microbatch,
                worker="far",
                tokens=(),
                timings=(),
            )
            await transport.publish(f"{NEAR}.results", answer)


def read_socket(pipe: Connection) -> None:
    """Read payloads of announced sizes into one buffer, and answer each with a byte; the floor of any edge over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        connection, _ = listener.accept()
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while num_bytes := int.from_bytes(connection.recv(8, socket.MSG_WAITALL), "little"):
            view = np.empty(num_bytes, np.uint8).data
            while view:
                view = view[connection.recv_into(view, len(view), socket.MSG_WAITALL) :]
            connection.sendall(b"1")
