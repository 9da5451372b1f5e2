"""Redis and Sentinel over TLS, both sides with certificates. Valkey of the wheel has no TLS; Debian's Redis has."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from broker_pipeline.errors import CertificateError, ConfigurationError, StateError
from broker_pipeline.process.dead_connections import TCP_OPTIONS
from broker_pipeline.security.authority import Authority
from broker_pipeline.security.tls_contexts import host_tls, utc_now
from broker_pipeline.state.redis_client import RedisClient, open_redis
from tests.kit.authority import LONG_AGO, credentials_in, encrypted_redis, host_secrets
from tests.kit.running.debian_servers import PROGRAMS
from tests.kit.running.redis_sentinel import sentinel_group
from tests.kit.waiting import eventually

pytestmark = pytest.mark.skipif(PROGRAMS["redis-server"] is None, reason="apt-get install redis-server")


def tcp_options(client: RedisClient) -> dict[int, int]:
    [connection] = client.connection_pool._available_connections
    kernel: socket.socket = connection._writer.get_extra_info("socket")
    return {name: kernel.getsockopt(socket.IPPROTO_TCP, name) for name in TCP_OPTIONS}


async def refusal(url: str, secrets: Path) -> str:
    """Return what is said of an attempt to connect that fails by a certificate."""
    with pytest.raises(CertificateError) as caught:
        async with open_redis(url, credentials=credentials_in(secrets)):
            pass
    return caught.value.message


async def test_commands_go_encrypted_and_a_network_that_is_gone_is_noticed(tmp_path: Path) -> None:
    authority = Authority.create()
    server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
    async with (
        encrypted_redis(tmp_path, server) as port,
        open_redis(f"rediss://localhost:{port}/3", credentials=credentials_in(client)) as redis,
    ):
        await redis.set("key", bytes(3_000_000))
        assert await redis.get("key") == bytes(3_000_000)
        assert tcp_options(redis) == TCP_OPTIONS
        assert (await redis.client_info())["db"] == 3


@pytest.mark.parametrize(
    ("made", "host", "words"),
    [
        ("ended", "127.0.0.1", "has ended: `broker-pipeline secrets rotate`"),
        ("foreign", "127.0.0.1", "an authority that is not believed here (ca.crt)"),
        ("other", "127.0.0.2", "is of another host"),
    ],
)
async def test_what_is_wrong_with_a_servers_certificate_is_said(
    tmp_path: Path, made: str, host: str, words: str
) -> None:
    authority = Authority.create(now=LONG_AGO)
    signer = Authority.create() if made == "foreign" else authority
    server = host_secrets(tmp_path, signer, made, now=LONG_AGO if made == "ended" else None)
    async with encrypted_redis(tmp_path, server) as port:
        said = await refusal(f"rediss://{host}:{port}", host_secrets(tmp_path, authority))
    assert words in said
    assert f"Redis at rediss://{host}:{port}" in said


@pytest.mark.parametrize("made", ["ended", "foreign"])
async def test_what_is_wrong_with_this_hosts_certificate_is_said(tmp_path: Path, made: str) -> None:
    authority = Authority.create(now=LONG_AGO)
    server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
    contexts = host_tls(client)
    assert contexts is not None
    signer = Authority.create() if made == "foreign" else authority
    bad = host_secrets(tmp_path, signer, made, now=LONG_AGO if made == "ended" else None)
    contexts.client.load_cert_chain(bad / "tls.crt", bad / "tls.key")
    async with encrypted_redis(tmp_path, server) as port:
        assert "refused this host's certificate (tls.crt)" in await refusal(f"rediss://127.0.0.1:{port}", client)


@pytest.mark.parametrize("url", ["redis://10.0.0.1:6379", "redis+sentinel://localhost:26379,redis-2:26379/captions"])
async def test_in_clear_text_no_other_host_is_spoken_to(tmp_path: Path, url: str) -> None:
    client = host_secrets(tmp_path, Authority.create())
    with pytest.raises(ConfigurationError, match=r"--redis-url begins with redis://.*rediss://") as caught:
        async with open_redis(url, credentials=credentials_in(client)):
            pass
    assert caught.value.field == "redis_url"


async def test_a_server_without_tls_is_said(tmp_path: Path, redis_url: str) -> None:
    client = host_secrets(tmp_path, Authority.create())
    with pytest.raises(StateError):
        async with open_redis(redis_url.replace("redis:", "rediss:"), credentials=credentials_in(client)):
            pass


async def test_new_certificates_are_taken_by_server_and_client_without_a_restart(tmp_path: Path) -> None:
    authority = Authority.create()
    server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
    contexts = host_tls(client)
    assert contexts is not None
    async with (
        encrypted_redis(tmp_path, server) as port,
        open_redis(f"rediss://127.0.0.1:{port}", credentials=credentials_in(client), max_connections=1) as redis,
    ):
        first = contexts.fingerprint
        for directory in (server, client):
            fresh = host_secrets(tmp_path / "fresh", authority, directory.name)
            for name in ("tls.crt", "tls.key"):
                shutil.copy(fresh / name, directory / name)
        await redis.config_set("tls-cert-file", str(server / "tls.crt"), "tls-key-file", str(server / "tls.key"))
        contexts.reload(utc_now())
        assert contexts.fingerprint != first
        await redis.connection_pool.disconnect()
        assert await redis.ping()


async def test_sentinels_and_masters_are_asked_encrypted(tmp_path: Path) -> None:
    authority = Authority.create()
    server, client = (host_secrets(tmp_path, authority, host) for host in ("broker", "host-a"))
    program = PROGRAMS["redis-server"]
    assert program is not None
    credentials = credentials_in(client)
    async with (
        sentinel_group(tmp_path / "redis", Path(program), server) as group,
        open_redis(group.url, timeout_s=1.0, credentials=credentials) as redis,
    ):
        await redis.set("written", "1")
        assert tcp_options(redis) == TCP_OPTIONS
        await (await group.master_now()).kill()

        async def is_written() -> bool:
            try:
                async with open_redis(group.url, timeout_s=1.0, credentials=credentials) as another:
                    return bool(await another.set("written", "2"))
            except StateError:
                return False

        await eventually(is_written, timeout_s=60)
