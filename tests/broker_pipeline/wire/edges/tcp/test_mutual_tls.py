"""Edges between hosts that hold certificates: who has none, or another's, neither opens one nor is trusted with one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from broker_pipeline import subjects
from broker_pipeline.errors import EdgeLostError
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer
from broker_pipeline.security.authority import Authority
from broker_pipeline.security.certificates import HostCertificate
from broker_pipeline.security.tls_contexts import TlsContexts
from broker_pipeline.wire.edges.edge import IncomingEdge
from broker_pipeline.wire.edges.tcp.identity import EdgeIdentity, Identity, dialing_context
from broker_pipeline.wire.edges.tcp.outgoing import TcpDialer, TcpOutgoingEdge
from broker_pipeline.wire.edges.tcp.server import TcpServer
from tests.broker_pipeline.wire.edges.tcp.tcp_pair import random_frame, serving, taken
from tests.kit.authority import LONG_AGO, contexts, host_secrets

LISTENER, SENDER = (subjects.worker_root("bp", "main", "stage", name, "i") for name in ("host-a_s0", "host-b_s1"))


@dataclass
class Listening:
    """A server of host-a, and host-b who would like to send to it."""

    server: TcpServer
    here: TlsContexts
    sender: TlsContexts
    edges: list[IncomingEdge]
    authority: Authority
    directory: Path

    def offer(self, certificate: str) -> EdgeOffer:
        return self.server.offer(EdgeOffer(), EdgeAsk(kinds=("tcp",), root=SENDER, certificate=certificate))

    async def dial(self, identity: EdgeIdentity, offer: EdgeOffer) -> TcpOutgoingEdge:
        edge = await TcpDialer(identity=identity).connect(offer, LISTENER)
        assert edge is not None
        return edge


@pytest_asyncio.fixture
async def listening(tmp_path: Path) -> AsyncIterator[Listening]:
    authority = Authority.create()
    here, sender = (contexts(tmp_path, authority, host) for host in ("host-a", "host-b"))
    edges: list[IncomingEdge] = []
    async with serving(edges, identity=here) as server:
        yield Listening(server, here, sender, edges, authority, tmp_path)


async def test_a_host_that_announced_its_certificate_opens_an_edge(listening: Listening) -> None:
    edge = await listening.dial(listening.sender, listening.offer(listening.sender.fingerprint))
    assert [each.peer for each in listening.edges] == [SENDER]
    frame, content = random_frame(3 * 2**20)
    assert await taken(listening.edges[0], await edge.send(frame)) == content
    spoken = edge.outlets[0]._transport.get_extra_info("ssl_object").version()
    assert spoken == "TLSv1.3"
    await edge.close()


async def test_a_token_is_of_no_use_to_another_host(listening: Listening) -> None:
    """Who reads what passes over NATS has the token; it is bound to the certificate of who asked."""
    thief = contexts(listening.directory, listening.authority, "host-c")
    with pytest.raises(EdgeLostError):
        await listening.dial(thief, listening.offer(listening.sender.fingerprint))
    with pytest.raises(EdgeLostError):
        await listening.dial(thief, listening.offer(""))
    assert not listening.edges


async def test_who_holds_no_certificate_of_the_authority_is_not_heard(listening: Listening) -> None:
    foreign = contexts(listening.directory, Authority.create(), "host-b")
    foreign.edge_dialer.verify_mode = ssl.CERT_NONE
    for context, fingerprint in ((foreign.edge_dialer, foreign.fingerprint), (dialing_context(), "")):
        stranger = TcpDialer()
        stranger._context = context
        with pytest.raises(EdgeLostError, match=r"refused? this host's certificate|refuses the token"):
            await stranger.connect(listening.offer(fingerprint), LISTENER)
    assert not listening.edges


async def test_who_listens_without_a_certificate_of_the_authority_hears_no_token(listening: Listening) -> None:
    """Even where the broker says that this one is right: as somebody would who may publish there."""
    foreign = contexts(listening.directory, Authority.create(), "foreign")
    for identity in (foreign, Identity()):
        heard: list[IncomingEdge] = []
        async with serving(heard, identity=identity) as impostor:
            with pytest.raises(EdgeLostError, match=r"not believed here"):
                await listening.dial(listening.sender, impostor.offer(EdgeOffer()))
        assert not heard


async def test_another_hosts_certificate_is_not_the_announced_one(listening: Listening) -> None:
    offer = listening.offer(listening.sender.fingerprint)
    assert offer.tcp is not None
    told = EdgeOffer(tcp=msgspec.structs.replace(offer.tcp, certificate=listening.sender.fingerprint))
    with pytest.raises(EdgeLostError, match="not the one that was announced"):
        await listening.dial(listening.sender, told)


async def test_one_that_has_ended_is_refused(listening: Listening) -> None:
    """As of a process that began when it was still good."""
    ended = host_secrets(listening.directory, listening.authority, "host-d", now=LONG_AGO)
    listening.sender.edge_dialer.load_cert_chain(ended / "tls.crt", ended / "tls.key")
    with pytest.raises(EdgeLostError, match=r"refuses the token, or this host's certificate|expired"):
        await listening.dial(listening.sender, listening.offer(HostCertificate.read(ended).fingerprint))
    assert not listening.edges


async def test_a_worker_of_one_host_is_not_taken_for_one_of_another(listening: Listening) -> None:
    """Whoever may ask and answer over NATS might name itself as it likes; certificates are of hosts."""
    with pytest.raises(EdgeLostError, match=r"certificate is of 'host-a', and the worker is one of 'host-c'"):
        await TcpDialer(identity=listening.sender).connect(
            listening.offer(listening.sender.fingerprint), LISTENER.replace("host-a", "host-c")
        )
    other = contexts(listening.directory, listening.authority, "host-c")
    with pytest.raises(EdgeLostError, match="refuses the token"):
        await listening.dial(other, listening.offer(other.fingerprint))
    assert not listening.edges


async def test_new_files_serve_new_edges_and_old_ones_go_on(listening: Listening) -> None:
    before = listening.offer(listening.sender.fingerprint).tcp
    assert before is not None
    old = await listening.dial(listening.sender, listening.offer(listening.sender.fingerprint))
    for host, each in (("host-a", listening.here), ("host-b", listening.sender)):
        host_secrets(listening.directory, listening.authority, host)
        each.reload(datetime.now(UTC))
    offer = listening.offer(listening.sender.fingerprint)
    assert offer.tcp is not None
    assert offer.tcp.certificate != before.certificate
    new = await listening.dial(listening.sender, offer)
    frame, content = random_frame(10_000)
    for edge, incoming in zip((old, new), listening.edges, strict=True):
        assert await taken(incoming, await edge.send(frame)) == content
        await edge.close()
