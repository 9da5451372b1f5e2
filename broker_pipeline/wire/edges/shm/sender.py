"""The sender's end of a ring in shared memory.

place ──► record ── the caller writes ──┐
                                        ├─► send: the rest of the payload, its header, EdgeRef
send ───► record ── copied ─────────────┘
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from broker_pipeline.errors import EdgeFullError, EdgeLostError
from broker_pipeline.messages.edges import EdgeKind, EdgeOffer, EdgeRef
from broker_pipeline.wire.codec import Frame
from broker_pipeline.wire.edges.shm.rendezvous import connect, receive_admission
from broker_pipeline.wire.edges.shm.ring import HEADER_BYTES, OnRing, Ring, address_of
from broker_pipeline.wire.edges.shm.ring_allocator import Record, RingAllocator

STUCK_S = 30.0
"""How long a full ring may wait for one record: the message that refers to it is lost, so that nobody will free it."""
_CONNECT_S = 10.0
_LARGE_BYTES = 2**18  # from here on another thread is worth its wake-up


class ShmSender:
    """Writes payloads into a ring that the receiver has made."""

    kind: EdgeKind = "shm"

    def __init__(self, name: str, ring: Ring, sock: socket.socket, clock: Callable[[], float] = time.monotonic) -> None:
        """Take over a socket whose end is the receiver's; `clock` is in seconds."""
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[EdgeLostError] = loop.create_future()
        self._name = name
        self._ring = ring
        self._socket = sock
        self._clock = clock
        self._lock = threading.Lock()  # not taken by finalizers: they may run while this thread holds it
        self._allocator = RingAllocator(ring.num_bytes, lambda record: ring.read_header(record.offset)[2])
        self._placed: dict[int, Record] = {}
        self._stuck: tuple[Record, float] | None = None
        loop.add_reader(sock, self._lose, "the receiver is gone")

    def place(self, num_bytes: int) -> memoryview | None:
        """Return a part of the ring; see `OutgoingEdge`."""
        record = None if self.lost.done() else self._allocate(num_bytes)
        if record is None:
            return None
        address = self._ring.address + record.offset + HEADER_BYTES
        self._placed[address] = record
        return self._ring.payload(record.offset, num_bytes, lambda: self._free_unsent(address))

    async def send(self, frame: Frame) -> EdgeRef:
        """Write what is not there yet, much of it on another thread; see `OutgoingEdge`."""
        if self.lost.done():
            raise self.lost.result()
        pieces, num_bytes = frame.pieces, frame.num_payload_bytes
        record = self._placed_record(pieces[0], num_bytes)
        start = len(pieces[0]) if record is not None else 0
        record = record or self._require_room(num_bytes)
        await self._write(record, start, pieces[1:] if start else pieces)
        self._ring.write_header(record.offset, record.number, num_bytes)
        return EdgeRef(self._name, record.number, num_bytes, record.offset)

    async def close(self) -> None:
        """End the edge; the receiver keeps the ring until it has read it."""
        self._lose("closed")

    def _placed_record(self, piece: memoryview | bytes, num_bytes: int) -> Record | None:
        """Return the record that a payload begins in already."""
        record = self._placed.pop(address_of(piece), None) if self._placed else None
        if record is None or num_bytes <= record.stop - record.offset - HEADER_BYTES:
            return record
        self._free(record)
        return None

    def _require_room(self, num_bytes: int) -> Record:
        record = self._allocate(num_bytes)
        if record is not None:
            self._stuck = None
            return record
        oldest = self._allocator.oldest
        if oldest is None or HEADER_BYTES + num_bytes > self._ring.num_bytes:
            raise EdgeFullError(f"{num_bytes} bytes do not fit into a ring of {self._ring.num_bytes}")
        if self._stuck is None or self._stuck[0] != oldest:
            self._stuck = oldest, self._clock()
        if self._clock() - self._stuck[1] >= STUCK_S:
            self._lose(f"a record was not freed within {STUCK_S:g} s")
            raise self.lost.result()
        raise EdgeFullError(f"no room for {num_bytes} bytes: {self._allocator.num_records} payloads are not read yet")

    def _allocate(self, num_bytes: int) -> Record | None:
        with self._lock:
            record = self._allocator.allocate(HEADER_BYTES + num_bytes)
            if record is not None:
                # At once: what lay here before might read as if the record were freed.
                self._ring.write_header(record.offset, record.number, num_bytes)
            return record

    async def _write(self, record: Record, start: int, pieces: Sequence[memoryview | bytes]) -> None:
        """Copy pieces behind one another; where that is cancelled, the record is freed when nobody writes any more."""
        room = self._ring.payload(record.offset, record.stop - record.offset - HEADER_BYTES)[start:]
        if sum(map(len, pieces)) < _LARGE_BYTES:
            try:
                _copy(room, pieces)
            except BaseException:
                self._free(record)
                raise
            return
        copying = asyncio.get_running_loop().run_in_executor(None, _copy, room, pieces)
        try:
            await asyncio.shield(copying)
        except BaseException:
            copying.add_done_callback(lambda _: self._free(record))
            raise

    def _free_unsent(self, address: int) -> None:
        """Free a record whose last view is gone, unless it was sent and is the receiver's."""
        record = self._placed.pop(address, None)
        if record is not None:
            self._free(record)

    def _free(self, record: Record) -> None:
        self._ring.mark_freed(record.offset, record.number)

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self.lost.set_result(EdgeLostError(reason))


def _copy(room: memoryview, pieces: Sequence[memoryview | bytes]) -> None:
    """Copy by numpy, which lets go of the interpreter's lock: 6 MB of visual rows held it for 2 ms."""
    start = 0
    for piece in pieces:
        np.copyto(np.frombuffer(room, np.uint8, len(piece), start), np.frombuffer(piece, np.uint8))
        start += len(piece)


class ShmDialer:
    """Connects to receivers on this machine."""

    kind: EdgeKind = "shm"

    def __init__(self, on_ring: OnRing | None = None) -> None:
        """Tell `on_ring` of each ring."""
        self._on_ring = on_ring

    async def connect(self, offer: EdgeOffer, root: str = "") -> ShmSender | None:  # noqa: ARG002
        """Return an edge to whoever made the offer; see `EdgeDialer`."""
        sock = connect(offer.shm.path) if offer.shm is not None else None
        if offer.shm is None or sock is None:
            return None
        try:
            sock.send(offer.shm.token.encode())
            async with asyncio.timeout(_CONNECT_S):
                name, descriptor = await receive_admission(sock)
            ring = await asyncio.to_thread(Ring, descriptor, self._on_ring)
        except (OSError, TimeoutError) as error:
            sock.close()
            raise EdgeLostError(f"the receiver gave no ring: {error!r}") from error
        except BaseException:
            sock.close()
            raise
        return ShmSender(name, ring, sock)
