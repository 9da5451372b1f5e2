"""Certificates of an authority made for a test, and servers of NATS and Redis that ask for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker_pipeline.security.authority import Authority
from broker_pipeline.security.tls_contexts import TlsContexts
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_nats_server
from tests.kit.running.debian_servers import PROGRAMS, is_listening
from tests.kit.waiting import eventually

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=1000)


def host_secrets(directory: Path, authority: Authority, host: str = "host-a", **how: object) -> Path:
    """Write what a host gets; its path."""
    authority.issue(directory / host, host, how.pop("names", ()), **how)
    return directory / host


def contexts(directory: Path, authority: Authority, host: str = "host-a") -> TlsContexts:
    return TlsContexts(host_secrets(directory, authority, host), datetime.now(UTC))


@asynccontextmanager
async def encrypted_nats(directory: Path, secrets: Path) -> AsyncIterator[tuple[ChildProcess, int]]:
    """A nats-server with JetStream that shows the certificate in `secrets`, and wants one of clients."""
    port, config = free_port(), directory / "nats.conf"
    config.write_text(f"""\
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: "{directory / "js"}" }}
tls {{ cert_file: "{secrets / "tls.crt"}", key_file: "{secrets / "tls.key"}", ca_file: "{secrets / "ca.crt"}",
      verify: true }}
""")
    async with _running(directory, "nats-tls", str(find_nats_server()), "-c", str(config), port=port) as child:
        yield child, port


@asynccontextmanager
async def encrypted_redis(directory: Path, secrets: Path) -> AsyncIterator[int]:
    """Debian's redis-server, which has TLS, with the certificate in `secrets`; its port."""
    port, program = free_port(), PROGRAMS["redis-server"]
    assert program is not None
    async with _running(directory, "redis-tls", program, *redis_flags(secrets, port), port=port):
        yield port


def redis_flags(secrets: Path, port: int) -> list[str]:
    """Return the flags of a Redis that speaks TLS only."""
    files = {"cert": "tls.crt", "key": "tls.key", "ca-cert": "ca.crt"}
    named = [word for name, file in files.items() for word in (f"--tls-{name}-file", str(secrets / file))]
    return ["--port", "0", "--tls-port", str(port), "--bind", "127.0.0.1", "--save", "", *named]


@asynccontextmanager
async def _running(directory: Path, name: str, *argv: str, port: int) -> AsyncIterator[ChildProcess]:
    child = await ChildProcess.spawn(name, list(argv), log_path=directory / f"{name}.log")
    try:
        await eventually(lambda: is_listening(port))
        yield child
    finally:
        await child.stop()
