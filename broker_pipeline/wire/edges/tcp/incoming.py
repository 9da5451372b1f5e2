"""The receiver's end of a `tcp` edge: payloads that came wait for their refs, and refs for their payloads.

inlet ── begin: room? ── arrive ──► arrived ──► take(ref)          freed when it is taken, or given up after a time
                                    awaited ◄── take(ref)          a future, until it comes or the edge is lost
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from broker_pipeline.errors import EdgeLostError, PartError, SlowConsumerError
from broker_pipeline.messages.edges import EdgeKind, EdgeRef
from broker_pipeline.wire.edges.tcp.inlet import Inlet
from broker_pipeline.wire.edges.tcp.layout import CHANNELS, Header, channel_of
from broker_pipeline.wire.room import Room

log = structlog.get_logger()

PAYLOAD_TIMEOUT_S = 5.0
"""How long a payload waits for its message; less than `DEAD_AFTER_S`, or who waits for room would be taken for dead."""


@dataclass(frozen=True, slots=True)
class _Arrived:
    payload: memoryview
    timer: asyncio.TimerHandle


class TcpIncomingEdge:
    """What comes over the inlets of one sender."""

    kind: EdgeKind = "tcp"

    def __init__(self, *, peer: str = "", payload_timeout_s: float = PAYLOAD_TIMEOUT_S) -> None:
        """Wait for the inlets, which `open` gives."""
        self.peer = peer
        self.name = secrets.token_urlsafe(16)
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[EdgeLostError] = self._loop.create_future()
        self._timeout_s = payload_timeout_s
        self._inlets: dict[int, Inlet] = {}
        self._rooms = [Room(limits.room_bytes, limits.max_payload_bytes) for limits in CHANNELS]
        self._blocked: dict[int, Header] = {}
        self._arrived: dict[int, _Arrived] = {}
        self._awaited: dict[int, tuple[EdgeRef, asyncio.Future[memoryview]]] = {}

    def open(self, inlets: Sequence[Inlet]) -> None:
        """Admit the inlets, one a channel, and take what they bring."""
        self._inlets = dict(enumerate(inlets))
        for channel, inlet in self._inlets.items():
            inlet.admit(channel, self.name, self)

    @property
    def num_waiting(self) -> int:
        """How many payloads came before their messages."""
        return len(self._arrived)

    def take(self, ref: EdgeRef) -> memoryview | asyncio.Future[memoryview]:
        """Return the payload of a ref; see `IncomingEdge`."""
        if (arrived := self._arrived.get(ref.number)) is not None:
            _check_size(ref, len(arrived.payload))
            self._let_go(ref.number)
            return arrived.payload
        future: asyncio.Future[memoryview] = self._loop.create_future()
        if ref.number in self._awaited:
            raise PartError(f"payload {ref.number} of an edge is awaited already", field="number")
        if self.lost.done():
            future.set_exception(self.lost.result())
            return future
        if self._has_passed(ref.number):
            raise PartError(f"payload {ref.number} of an edge was taken, or given up, before", field="number")
        self._awaited[ref.number] = (ref, future)
        future.add_done_callback(lambda _: self._awaited.pop(ref.number, None))
        return future

    def _has_passed(self, number: int) -> bool:
        inlet = self._inlets.get(channel_of(number))
        return inlet is None or number < inlet.last_number or (number == inlet.last_number and not inlet.is_reading)

    # --- told by inlets ---

    def begin(self, inlet: Inlet, header: Header) -> bool:
        """Take a payload's room, or remember what waits for it."""
        has_room = self._takes_room(inlet.channel, header)
        if not has_room:
            self._blocked[inlet.channel] = header
        return has_room

    def arrive(self, header: Header, payload: memoryview) -> None:
        """Give a payload to who awaits it, or keep it for a while."""
        if (awaited := self._awaited.pop(header.number, None)) is None:
            timer = self._loop.call_later(self._timeout_s, self._give_up, header.number)
            self._arrived[header.number] = _Arrived(payload, timer)
            return
        ref, future = awaited
        self._free(header.number, header.num_bytes)
        if future.done():  # cancelled: nobody wants it any more
            return
        try:
            _check_size(ref, header.num_bytes)
        except PartError as error:
            future.set_exception(error)
        else:
            future.set_result(payload)

    def end(self, inlet: Inlet, error: EdgeLostError | None) -> None:
        """End with the last inlet that was closed, or with the first that was lost."""
        self._inlets.pop(inlet.channel, None)
        if error is not None:
            for other in list(self._inlets.values()):
                other.abort(error)
        if (error is not None or not self._inlets) and not self.lost.done():
            self._lose(error or EdgeLostError("the sender closed the edge"))

    def _lose(self, error: EdgeLostError) -> None:
        self.lost.set_result(error)
        for _, future in list(self._awaited.values()):
            if not future.done():
                future.set_exception(error)

    # --- room ---

    def _takes_room(self, channel: int, header: Header) -> bool:
        try:
            self._rooms[channel].take(header.num_bytes)
        except SlowConsumerError:
            return False
        return True

    def _let_go(self, number: int) -> None:
        arrived = self._arrived.pop(number)
        arrived.timer.cancel()
        self._free(number, len(arrived.payload))

    def _give_up(self, number: int) -> None:
        log.warning("edge_payload_dropped", edge=self.kind, num_bytes=len(self._arrived[number].payload))
        self._let_go(number)

    def _free(self, number: int, num_bytes: int) -> None:
        channel = channel_of(number)
        self._rooms[channel].free(num_bytes)
        header, inlet = self._blocked.get(channel), self._inlets.get(channel)
        if header is not None and inlet is not None and self._takes_room(channel, header):
            del self._blocked[channel]
            inlet.resume()


def _check_size(ref: EdgeRef, num_bytes: int) -> None:
    if ref.num_bytes != num_bytes:
        raise PartError(f"payload {ref.number} has {num_bytes} bytes, not {ref.num_bytes}", field="num_bytes")
