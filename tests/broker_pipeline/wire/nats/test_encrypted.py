"""NATS over TLS, both sides with certificates: what works, and what is said of certificates that are no good."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from broker_pipeline.errors import CertificateError
from broker_pipeline.process.dead_connections import TCP_OPTIONS
from broker_pipeline.security.authority import Authority
from broker_pipeline.security.certificates import HostCertificate
from broker_pipeline.security.tls_contexts import host_tls, utc_now
from broker_pipeline.tools.local.servers import EmbeddedNats
from broker_pipeline.wire.nats.connection import NatsConnection, open_connection
from broker_pipeline.wire.nats.socket import MAX_UNSENT_BYTES
from tests.broker_pipeline.wire.nats.test_socket import LOOPS, Collector, round_trips
from tests.kit.authority import LONG_AGO, credentials_in, encrypted_nats, host_secrets
from tests.kit.waiting import eventually


def ignore(_error: Exception) -> None:
    """Nothing fails for good here."""


def tcp_options(connection: NatsConnection) -> dict[int, int]:
    link = connection.socket._link
    assert link is not None
    kernel: socket.socket = link.transport.get_extra_info("socket")
    return {name: kernel.getsockopt(socket.IPPROTO_TCP, name) for name in TCP_OPTIONS}


@pytest.mark.parametrize("new_loop", LOOPS)
def test_messages_of_every_size_come_through(tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run() -> None:
        authority = Authority.create()
        server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
        credentials = credentials_in(client)
        async with encrypted_nats(tmp_path, server) as (_, port):
            for url in (f"tls://localhost:{port}", f"nats://127.0.0.1:{port}"):
                async with open_connection(url, "test", on_failed=ignore, credentials=credentials) as connection:
                    await round_trips(connection)
                    assert tcp_options(connection) == TCP_OPTIONS, "it still notices a network that is gone"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_sender_waits_while_the_server_takes_nothing(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """What is unsent is bounded under TLS too, and goes on from where it stood."""

    async def run() -> None:
        authority, receiver = Authority.create(), Collector()
        server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
        async with (
            encrypted_nats(tmp_path, server) as (process, port),
            open_connection(
                f"tls://localhost:{port}", "test", on_failed=ignore, credentials=credentials_in(client)
            ) as connection,
            connection.listen(subject := f"{connection.inbox}.x", receiver),
        ):
            await connection.barrier()
            process.kill(signal.SIGSTOP)
            sent = 0
            while connection.socket.has_room:
                await connection.publish(subject, bytes(2**20))
                sent += 1
                await asyncio.sleep(0)
            assert 4 <= sent < 32, "the kernel takes some"
            assert connection.socket.unsent_bytes < 2 * MAX_UNSENT_BYTES
            waiting = asyncio.create_task(connection.publish(subject, b"last"))
            await asyncio.sleep(0)
            assert not waiting.done()
            process.kill(signal.SIGCONT)
            await waiting
            assert [len((await receiver.next()).payload) for _ in range(sent + 1)] == [*[2**20] * sent, 4]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


async def opened_and_closed(url: str, secrets: Path) -> None:
    async with asyncio.timeout(5), open_connection(url, "t", on_failed=ignore, credentials=credentials_in(secrets)):
        pass


async def refusal(url: str, secrets: Path) -> str:
    """Return what is said of an attempt to connect that fails by a certificate."""
    with pytest.raises(CertificateError) as caught:
        await opened_and_closed(url, secrets)
    return caught.value.message


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize(
    ("made", "host", "words"),
    [
        ("ended", "127.0.0.1", "has ended: `broker-pipeline secrets rotate`"),
        ("foreign", "127.0.0.1", "an authority that is not believed here (ca.crt)"),
        ("other", "127.0.0.2", "is of another host"),
    ],
)
def test_what_is_wrong_with_a_servers_certificate_is_said_at_once(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop], made: str, host: str, words: str
) -> None:
    async def run() -> str:
        authority = Authority.create(now=LONG_AGO)
        signer = Authority.create() if made == "foreign" else authority
        server = host_secrets(tmp_path, signer, made, now=LONG_AGO if made == "ended" else None)
        async with encrypted_nats(tmp_path, server) as (_, port):
            return await refusal(f"tls://{host}:{port}", host_secrets(tmp_path, authority))

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert words in runner.run(run())


@pytest.mark.parametrize("new_loop", LOOPS)
@pytest.mark.parametrize("made", ["ended", "foreign"])
def test_what_is_wrong_with_this_hosts_certificate_is_said_at_once(
    tmp_path: Path, new_loop: Callable[[], asyncio.AbstractEventLoop], made: str
) -> None:
    """As by a process that began when it was still good, or a server that believes another authority."""

    async def run() -> str:
        authority = Authority.create(now=LONG_AGO)
        server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
        contexts = host_tls(client)
        assert contexts is not None
        signer = Authority.create() if made == "foreign" else authority
        bad = host_secrets(tmp_path, signer, made, now=LONG_AGO if made == "ended" else None)
        contexts.client.load_cert_chain(bad / "tls.crt", bad / "tls.key")
        async with encrypted_nats(tmp_path, server) as (_, port):
            return await refusal(f"tls://127.0.0.1:{port}", client)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert "refused this host's certificate (tls.crt)" in runner.run(run())


async def test_without_secrets_the_systems_authorities_are_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = host_secrets(tmp_path, Authority.create(), "broker")
    async with encrypted_nats(tmp_path, server, is_open=True) as (_, port):
        with pytest.raises(CertificateError, match="not believed here"):
            async with open_connection(f"tls://localhost:{port}", "t", on_failed=ignore):
                pass
        monkeypatch.setenv("SSL_CERT_FILE", str(server / "ca.crt"))
        async with open_connection(f"tls://localhost:{port}", "t", on_failed=ignore) as connection:
            await round_trips(connection)


async def test_a_certificate_that_has_ended_is_not_tried_at_all(tmp_path: Path) -> None:
    client = host_secrets(tmp_path, Authority.create(now=LONG_AGO), now=LONG_AGO)
    said = await refusal("tls://127.0.0.1:1", client)
    assert f"{client}/tls.crt ended on" in said


async def test_nothing_is_said_to_a_server_of_another_host_that_does_not_encrypt(
    tmp_path: Path, own_nats: EmbeddedNats, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py would go on in clear text, where somebody between says that TLS is not asked for."""
    client = host_secrets(tmp_path, Authority.create())
    await opened_and_closed(own_nats.url, client)
    monkeypatch.setattr("broker_pipeline.wire.nats.socket.is_loopback", lambda _: False)  # it is not another host
    assert "it does not encrypt" in await refusal(own_nats.url, client)


async def test_new_certificates_are_taken_by_server_and_client_without_a_restart(tmp_path: Path) -> None:
    """Of a new authority even, which both sides believe beside the old one for a while."""
    old, new = Authority.create(), Authority.create()
    server, client = (host_secrets(tmp_path, old, host) for host in ("broker", "host-a"))
    both = b"".join(
        (host_secrets(tmp_path / name, each) / "ca.crt").read_bytes() for name, each in (("old", old), ("new", new))
    )
    for directory in (server, client):
        (directory / "ca.crt").write_bytes(both)
    contexts = host_tls(client)
    assert contexts is not None
    async with encrypted_nats(tmp_path, server) as (process, port):
        url = f"tls://127.0.0.1:{port}"
        async with open_connection(url, "t", on_failed=ignore, credentials=credentials_in(client)) as connection:
            fresh = host_secrets(tmp_path / "fresh", new, "broker")
            for name in ("tls.crt", "tls.key"):
                shutil.copy(fresh / name, server / name)
            process.kill(signal.SIGHUP)
            await eventually(lambda: shown_by(port, client) == HostCertificate.read(server).fingerprint, timeout_s=10)
            await round_trips(connection)  # goes on
            fresh = host_secrets(tmp_path / "fresh", new, "host-a")
            for name in ("tls.crt", "tls.key"):
                shutil.copy(fresh / name, client / name)
            contexts.reload(utc_now())
            link = connection.socket._link
            assert link is not None
            link.transport.abort()
            await connection.barrier()
            await round_trips(connection)
            assert connection.num_reconnects == 1


def shown_by(port: int, secrets: Path) -> str:
    """Return the fingerprint of the certificate that a NATS server shows now."""
    contexts = host_tls(secrets)
    assert contexts is not None
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.recv(65536)  # INFO
        with contexts.client.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted:
            return hashlib.sha256(encrypted.getpeercert(binary_form=True) or b"").hexdigest()
