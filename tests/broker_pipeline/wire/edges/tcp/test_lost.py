"""Senders and receivers that die, lie or stall: the other end hears it at once, in types."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import struct
from multiprocessing.connection import Connection

import pytest

from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import EdgeOffer, EdgeRef
from broker_pipeline.wire.edges.edge import IncomingEdge
from broker_pipeline.wire.edges.tcp import outlet
from broker_pipeline.wire.edges.tcp.layout import CHANNELS
from broker_pipeline.wire.edges.tcp.outgoing import TcpDialer
from broker_pipeline.wire.edges.tcp.server import TcpServer
from tests.broker_pipeline.wire.edges.tcp.tcp_pair import (
    Pair,
    fill,
    large_frame,
    random_frame,
    serving,
    tcp_pair,
)

MIB = 2**20
SPAWN = multiprocessing.get_context("spawn")


def write_raw(pair: Pair, channel: int, data: bytes) -> None:
    """Write what no sender of ours would."""
    pair.outgoing.outlets[channel]._transport.write(data)


def raw_header(number: int, num_bytes: int) -> bytes:
    return struct.pack("<QQ", number, num_bytes)


def send_until_killed(pipe: Connection, offer: EdgeOffer) -> None:
    async def go() -> None:
        edge = await TcpDialer().connect(offer)
        assert edge is not None
        pipe.send(await edge.send(random_frame(MIB)[0]))
        write_raw(Pair(None, edge, None), 2, raw_header(5, 50 * MIB) + bytes(MIB))  # type: ignore[arg-type]
        await asyncio.sleep(60)

    asyncio.run(go())


def serve_until_killed(pipe: Connection) -> None:
    async def go() -> None:
        async with TcpServer(lambda _: None, host="127.0.0.1") as server:
            pipe.send(server.offer(EdgeOffer()))
            await asyncio.sleep(60)

    asyncio.run(go())


async def test_a_sender_that_is_killed_in_a_payload_is_heard_of_at_once() -> None:
    incoming: list[IncomingEdge] = []
    async with serving(incoming) as server:
        here, there = SPAWN.Pipe()
        sender = SPAWN.Process(target=send_until_killed, args=(there, server.offer(EdgeOffer())), daemon=True)
        sender.start()
        there.close()
        sent = await asyncio.to_thread(here.recv)
        [edge] = incoming
        awaited = edge.take(EdgeRef(edge.name, 5, 50 * MIB))
        assert isinstance(awaited, asyncio.Future)
        os.kill(sender.pid or 0, signal.SIGKILL)
        with pytest.raises(EdgeLostError):
            await asyncio.wait_for(awaited, 2)
        assert edge.lost.done()
        arrived = edge.take(sent)  # whole before the end
        assert len(await arrived if isinstance(arrived, asyncio.Future) else arrived) == MIB
        too_late = edge.take(EdgeRef(edge.name, 8, 100))
        assert isinstance(too_late, asyncio.Future)
        with pytest.raises(EdgeLostError):
            await too_late
        await asyncio.to_thread(sender.join)


async def test_a_receiver_that_is_killed_is_heard_of_at_once() -> None:
    here, there = SPAWN.Pipe()
    receiver = SPAWN.Process(target=serve_until_killed, args=(there,), daemon=True)
    receiver.start()
    there.close()
    edge = await TcpDialer().connect(await asyncio.to_thread(here.recv))
    assert edge is not None
    sending = asyncio.create_task(edge.send(large_frame(200 * MIB)))
    os.kill(receiver.pid or 0, signal.SIGKILL)
    assert "gone" in str(await asyncio.wait_for(asyncio.shield(edge.lost), 2))
    with pytest.raises(EdgeLostError):
        await sending
    await edge.close()
    await asyncio.to_thread(receiver.join)


@pytest.mark.parametrize(
    "data",
    [
        raw_header(3, 2**62),
        raw_header(3, CHANNELS[0].max_payload_bytes + 1),
        raw_header(3, 0),
        raw_header(4, 10),
        raw_header(0, 10),
        raw_header(6, 1) + b"a" + raw_header(6, 1) + b"a",
        raw_header(6, 1) + b"a" + raw_header(3, 1) + b"a",
    ],
    ids=["huge", "for another channel", "empty", "number of another channel", "number before", "twice", "backwards"],
)
async def test_what_cannot_be_ends_the_edge(data: bytes) -> None:
    async with tcp_pair() as pair:
        write_raw(pair, 0, data)
        assert isinstance(await asyncio.wait_for(pair.incoming.lost, 2), EdgeLostError)
        await asyncio.wait_for(pair.outgoing.lost, 2)


async def test_a_receiver_that_ends_tells_its_senders() -> None:
    incoming: list[IncomingEdge] = []
    async with serving(incoming) as server:
        edge = await TcpDialer().connect(server.offer(EdgeOffer()))
    assert edge is not None
    await asyncio.wait_for(edge.lost, 2)
    assert incoming[0].lost.done()
    await edge.close()


async def test_one_channel_lost_is_the_edge_lost() -> None:
    async with tcp_pair() as pair:
        pair.outgoing.outlets[1]._transport.abort()
        await asyncio.wait_for(asyncio.gather(pair.incoming.lost, pair.outgoing.lost), 2)


async def test_a_payload_that_is_cancelled_in_the_middle_ends_the_edge_and_nothing_else() -> None:
    async with tcp_pair(payload_timeout_s=1) as pair:
        _, waiting = await fill(pair, 0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert "in the middle" in str(await asyncio.wait_for(pair.outgoing.lost, 2))
        await asyncio.wait_for(pair.incoming.lost, 5)  # heard once there is room, since nothing is read before


async def test_a_receiver_that_takes_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlet, "DEAD_AFTER_S", 1)
    async with tcp_pair() as pair:
        _, waiting = await fill(pair, 0)
        with pytest.raises(EdgeLostError, match="took nothing"):
            await waiting
        await asyncio.wait_for(pair.outgoing.lost, 2)
