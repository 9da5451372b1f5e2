"""The receiver's end of rings in shared memory: a socket on which it gives them out, and what is read from them."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog

from broker_pipeline.errors import EdgeLostError, PartError
from broker_pipeline.messages.edges import EdgeAsk, EdgeKind, EdgeOffer, EdgeRef, ShmOffer
from broker_pipeline.wire.edges.edge import LINGER_S, NOBODY, OnEdge
from broker_pipeline.wire.edges.shm.rendezvous import (
    MAX_PACKET_BYTES,
    Admission,
    default_directory,
    listen_in,
    own_directory,
    readable,
    remove_stale,
    send_admission,
)
from broker_pipeline.wire.edges.shm.ring import HEADER_BYTES, OnRing, Ring, make_ring
from broker_pipeline.wire.edges.shm.ring_allocator import ALIGNMENT_BYTES
from broker_pipeline.wire.edges.tokens import Tokens

log = structlog.get_logger()

_TOKEN_S = 5.0


class ShmReceiver:
    """Reads payloads where they lie. It needs no socket for that: what was sent can be read when the sender is gone."""

    kind: EdgeKind = "shm"

    def __init__(self, name: str, ring: Ring, peer: str) -> None:
        """Read from `ring` what `peer` writes."""
        self.name, self.peer = name, peer
        self.lost: asyncio.Future[EdgeLostError] = asyncio.get_running_loop().create_future()
        self._ring = ring
        self._taken: set[int] = set()

    def take(self, ref: EdgeRef) -> memoryview:
        """Return a payload; see `IncomingEdge`. Nothing in the ref is believed that the ring does not say as well."""
        number, offset, num_bytes = ref.number, ref.offset, ref.num_bytes
        if offset % ALIGNMENT_BYTES or offset + HEADER_BYTES + num_bytes > self._ring.num_bytes:
            raise PartError(f"no record of {num_bytes} bytes can begin at {offset} of this ring", field="offset")
        found = self._ring.read_header(offset)
        if found != (number, num_bytes, False) or number in self._taken:
            raise PartError(f"payload {number} of {num_bytes} bytes is not at {offset} of this ring", field="number")
        self._taken.add(number)
        return self._ring.payload(offset, num_bytes, partial(self._free, offset, number))

    def _free(self, offset: int, number: int) -> None:
        self._ring.mark_freed(offset, number)
        self._taken.discard(number)  # behind the other: at each moment one of them says that it cannot be taken again


@dataclass(frozen=True, slots=True)
class RingLimits:
    """How much shared memory a process gives to its senders."""

    ring_bytes: int = 64 * 2**20
    max_rings: int = 16
    linger_s: float = LINGER_S
    """Seconds that a ring counts after its sender is gone: it is still read."""


class ShmServer:
    """Gives a ring to each sender with a token."""

    def __init__(
        self,
        on_edge: OnEdge,
        limits: RingLimits,
        on_ring: OnRing | None = None,
        directory: Path | None = None,
    ) -> None:
        """Listen in `directory`, which is or becomes this user's alone."""
        self._on_edge = on_edge
        self._limits = limits
        self._on_ring = on_ring
        self._directory = directory or default_directory()
        self._tokens = Tokens()
        self._listener: socket.socket | None = None
        self._path = Path()
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        try:
            own_directory(self._directory)
            num_stale = await asyncio.to_thread(remove_stale, self._directory)
            name = f"{os.getpid()}-{secrets.token_hex(8)}"
            self._listener, self._path = listen_in(self._directory, name, self._limits.max_rings)
        except EdgeLostError as error:
            log.warning("edge_not_offered", edge="shm", reason=error.message)
            return self
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        log.debug("edge_offered", edge="shm", path=str(self._path), num_stale=num_stale)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._path.unlink(missing_ok=True)
        for task in self._serving:
            task.cancel()
        if self._serving:
            await asyncio.wait(self._serving)

    def offer(self, offer: EdgeOffer, ask: EdgeAsk = NOBODY) -> EdgeOffer:
        """Add the socket and a token; see `EdgeServer`."""
        if self._listener is None or len(self._serving) >= self._limits.max_rings:
            return offer
        return msgspec.structs.replace(offer, shm=ShmOffer(path=str(self._path), token=self._tokens.issue(ask)))

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:  # gone meanwhile, or no descriptor is free
            log.warning("edge_not_accepted", edge="shm", reason=str(error))
            return
        if len(self._serving) >= self._limits.max_rings:
            sock.close()
            return
        sock.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._serve(sock), name="shm edge")
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, sock: socket.socket) -> None:
        """Give a ring to whoever is there, and keep the edge until they are gone."""
        with sock:
            try:
                edge = await self._admit(sock)
            except (EdgeLostError, OSError, TimeoutError, ValueError) as error:
                log.warning("edge_refused", edge="shm", reason=str(error) or repr(error))
                return
            if edge is None:
                return
            self._on_edge(edge)
            try:
                await readable(sock)
            finally:
                edge.lost.set_result(EdgeLostError("the sender is gone"))
        await asyncio.sleep(self._limits.linger_s)

    async def _admit(self, sock: socket.socket) -> ShmReceiver | None:
        """Return an edge to whoever has a token; None where somebody only looked whether this socket is stale."""
        async with asyncio.timeout(_TOKEN_S):
            await readable(sock)
        token = sock.recv(MAX_PACKET_BYTES).decode("ascii")
        if not token:
            return None
        ask = self._tokens.redeem(token)
        if ask is None:
            raise EdgeLostError("a token that is not good")
        name = secrets.token_hex(16)
        try:
            descriptor = await asyncio.to_thread(make_ring, self._limits.ring_bytes)
        except EdgeLostError as error:
            send_admission(sock, Admission(refusal=error.message))
            raise
        try:
            ring = await asyncio.to_thread(Ring, os.dup(descriptor), self._on_ring)
            send_admission(sock, Admission(edge=name), descriptor)
        finally:
            os.close(descriptor)
        return ShmReceiver(name, ring, ask.root)
