"""Nobody opens a `tcp` edge who was not told how to over NATS, and nobody can take an edge's place."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator

import msgspec
import pytest
import pytest_asyncio

from broker_pipeline.errors import ConfigurationError, EdgeLostError
from broker_pipeline.messages.edges import EdgeOffer, TcpOffer
from broker_pipeline.wire.edges.edge import IncomingEdge
from broker_pipeline.wire.edges.tcp.identity import Identity, dialing_context
from broker_pipeline.wire.edges.tcp.layout import CHANNELS, pack_hello
from broker_pipeline.wire.edges.tcp.outgoing import TcpDialer
from broker_pipeline.wire.edges.tcp.server import TcpServer
from broker_pipeline.wire.edges.tokens import Tokens
from tests.broker_pipeline.wire.edges.tcp.tcp_pair import serving
from tests.kit.fake_clock import FakeClock
from tests.kit.waiting import eventually

Server = tuple[TcpServer, list[IncomingEdge]]


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    incoming: list[IncomingEdge] = []
    async with serving(incoming, hello_timeout_s=0.5) as listening:
        yield listening, incoming


def offer_of(server: TcpServer) -> TcpOffer:
    tcp = server.offer(EdgeOffer()).tcp
    assert tcp is not None
    return tcp


def other_offer(offer: TcpOffer, **fields: object) -> EdgeOffer:
    return EdgeOffer(tcp=msgspec.structs.replace(offer, **fields))


async def knock(server: TcpServer, said: bytes, *, is_encrypted: bool = True) -> bytes:
    """Say something, and return all that comes until the listener closes the connection."""
    host, _, port = server.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=dialing_context() if is_encrypted else None)
    writer.write(said)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except (ConnectionError, ssl.SSLError):
        return b""
    finally:
        writer.transport.abort()


async def test_a_token_is_good_once(server: Server) -> None:
    listening, incoming = server
    offer = EdgeOffer(tcp=offer_of(listening))
    edge = await TcpDialer().connect(offer)
    assert edge is not None
    with pytest.raises(EdgeLostError, match="closed"):
        await TcpDialer().connect(offer)
    assert len(incoming) == 1
    assert not edge.lost.done()
    await edge.close()


async def test_a_forged_token_opens_nothing(server: Server) -> None:
    listening, incoming = server
    with pytest.raises(EdgeLostError, match="closed"):
        await TcpDialer().connect(other_offer(offer_of(listening), token="0" * 32))
    assert not incoming


async def test_a_token_that_expired_opens_nothing(server: Server) -> None:
    listening, incoming = server
    clock = FakeClock()
    listening.door.tokens = Tokens(clock=clock)
    offer = EdgeOffer(tcp=offer_of(listening))
    clock.pass_s(3600)
    with pytest.raises(EdgeLostError, match="closed"):
        await TcpDialer().connect(offer)
    assert not incoming


async def test_another_certificate_than_the_announced_one_hears_no_token(server: Server) -> None:
    listening, incoming = server
    with pytest.raises(EdgeLostError, match="not the one that was announced"):
        await TcpDialer().connect(other_offer(offer_of(listening), certificate=Identity().fingerprint))
    assert not incoming


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n" * 9, b"\0" * 200, pack_hello("0" * 32, 0)[:20]])
async def test_strangers_are_sent_away(server: Server, said: bytes) -> None:
    listening, incoming = server
    assert await knock(listening, said) == b""
    assert await knock(listening, said, is_encrypted=False) in (b"", b"\x15\x03\x01\0\x02\x02F")  # a TLS alert, at most
    assert not incoming


async def test_channels_that_do_not_all_come_open_nothing(server: Server) -> None:
    listening, incoming = server
    token = offer_of(listening).token
    assert await knock(listening, pack_hello(token, 0)) == b""
    token = offer_of(listening).token
    assert await knock(listening, pack_hello(token, len(CHANNELS))) == b""
    assert not incoming


async def test_both_ends_have_to_agree_on_encryption(server: Server) -> None:
    listening, _ = server
    with pytest.raises(EdgeLostError, match="--edge-tls"):
        await TcpDialer(is_encrypted=False).connect(EdgeOffer(tcp=offer_of(listening)))
    async with serving([], is_encrypted=False) as plain:
        with pytest.raises(EdgeLostError, match="--edge-tls"):
            await TcpDialer().connect(EdgeOffer(tcp=offer_of(plain)))


async def test_nobody_there_is_no_error_but_no_edge(server: Server) -> None:
    listening, _ = server
    offer = offer_of(listening)
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    assert await TcpDialer().connect(other_offer(offer, addresses=(nobody, "no-such-host.invalid:9"))) is None
    assert await TcpDialer().connect(EdgeOffer()) is None
    edge = await TcpDialer().connect(other_offer(offer, addresses=(nobody, *offer.addresses)))
    assert edge is not None
    await edge.close()
    with pytest.raises(EdgeLostError, match="cannot be used"):
        await TcpDialer().connect(other_offer(offer, addresses=("127.0.0.1:no-port",)))


async def test_who_accepts_and_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        offer = TcpOffer(addresses=(address,), token="0" * 32, certificate=Identity().fingerprint)
        assert await TcpDialer(connect_timeout_s=0.2).connect(EdgeOffer(tcp=offer)) is None


async def test_no_more_edges_are_offered_than_allowed() -> None:
    async with serving([], max_edges=1) as server:
        edge = await TcpDialer().connect(server.offer(EdgeOffer()))
        assert edge is not None
        assert server.offer(EdgeOffer()).tcp is None
        await edge.close()
        await eventually(lambda: server.offer(EdgeOffer()).tcp is not None)


async def test_ports_are_tried_in_turn_and_none_free_is_said() -> None:
    async with serving([]) as first:
        port = int(first.address.rpartition(":")[2])
        with pytest.raises(ConfigurationError, match="none of the ports"):
            await serving([], ports=(port,)).__aenter__()
        async with serving([], ports=(port, 0)) as second:
            assert second.address != first.address


async def test_an_address_of_a_router_is_announced_though_it_is_not_this_hosts() -> None:
    async with TcpServer(lambda _: None, host="192.0.2.7") as server:
        port = server.address.removeprefix("192.0.2.7:")
        edge = await TcpDialer().connect(other_offer(offer_of(server), addresses=(f"127.0.0.1:{port}",)))
        assert edge is not None
        await edge.close()
