"""Certificates of an authority made for a test, and servers of NATS and Redis that ask for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker_pipeline.security.authority import Authority
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.security.roles import redis_user
from broker_pipeline.security.tls_contexts import TlsContexts
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_nats_server
from tests.kit.running.debian_servers import PROGRAMS, is_listening
from tests.kit.waiting import eventually

HOST = "host-a"
NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=1000)


NKEY, SEED = (
    "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4",
    "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY",
)
"""A pair that the documentation of NATS shows."""


def credentials_in(directory: Path) -> Credentials:
    """Return a stage's credentials with the certificate in a directory."""
    return Credentials("stage", HOST, directory, SEED, "")


def host_secrets(directory: Path, authority: Authority, host: str = HOST, **how: object) -> Path:
    """Write what a host gets; its path."""
    authority.issue(directory / host, host, how.pop("names", ()), **how)
    return directory / host


def contexts(directory: Path, authority: Authority, host: str = HOST) -> TlsContexts:
    return TlsContexts(host_secrets(directory, authority, host), datetime.now(UTC))


@asynccontextmanager
async def encrypted_nats(
    directory: Path, secrets: Path, *, is_open: bool = False
) -> AsyncIterator[tuple[ChildProcess, int]]:
    """A nats-server with JetStream that shows the certificate in `secrets`, and wants one of clients, and an NKey.

    Where it is open, everybody is let in.
    """
    port, config = free_port(), directory / "nats.conf"
    config.write_text(f"""\
listen: "0.0.0.0:{port}"
max_payload: 8MB
jetstream {{ store_dir: "{directory / "js"}" }}
{"" if is_open else f'authorization {{ users: [{{ nkey: "{NKEY}" }}] }}'}
tls {{ cert_file: "{secrets / "tls.crt"}", key_file: "{secrets / "tls.key"}", ca_file: "{secrets / "ca.crt"}",
      verify: {str(not is_open).lower()} }}
""")
    async with running(directory, "nats-tls", str(find_nats_server()), "-c", str(config), port=port) as child:
        yield child, port


@asynccontextmanager
async def encrypted_redis(directory: Path, secrets: Path) -> AsyncIterator[int]:
    """Debian's redis-server, which has TLS, with the certificate in `secrets`; its port."""
    port, program, config = free_port(), PROGRAMS["redis-server"], directory / "redis.conf"
    assert program is not None
    config.write_text(f'save ""\nbind 0.0.0.0\n{redis_tls_lines(port, secrets)}\n')
    async with running(directory, "redis-tls", program, str(config), port=port):
        yield port


def redis_tls_lines(port: int, secrets: Path) -> str:
    """Return settings of a Redis, or a sentinel, that speaks TLS only and lets in who is in `credentials_in`."""
    files = {"cert": "tls.crt", "key": "tls.key", "ca-cert": "ca.crt"}
    named = [f"tls-{name}-file {secrets / file}" for name, file in files.items()]
    user = f"user {redis_user('stage', HOST)} on nopass ~* &* +@all"
    return "\n".join(["port 0", f"tls-port {port}", "tls-replication yes", user, *named])


@asynccontextmanager
async def running(directory: Path, name: str, *argv: str, port: int) -> AsyncIterator[ChildProcess]:
    """Start a server and wait until it listens."""
    child = await ChildProcess.spawn(name, list(argv), log_path=directory / f"{name}.log")
    try:
        await eventually(lambda: is_listening(port))
        yield child
    finally:
        await child.stop()
