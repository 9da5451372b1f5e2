"""Services as processes: they do not begin with a certificate that is no good, and take a new one while they run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_pipeline import exit_codes
from broker_pipeline.security.authority import Authority
from broker_pipeline.security.host_folder import GATEWAY_KEY, HostFacts, write_facts, write_roles
from broker_pipeline.security.roles import ROLES
from broker_pipeline.tools.local.processes import ChildProcess
from tests.kit.authority import LONG_AGO, SEED, encrypted_nats, host_secrets
from tests.kit.waiting import eventually


def folder(directory: Path, authority: Authority, *, is_ended: bool = False) -> Path:
    made = host_secrets(directory, authority, now=LONG_AGO if is_ended else None)
    write_facts(made, HostFacts("host-a", "bp"))
    write_roles(made, ROLES)
    (made / GATEWAY_KEY).write_text("bp-key")
    (made / "gateway.nk").write_text(SEED)
    return made


@asynccontextmanager
async def gateway(directory: Path, secrets: Path, port: int) -> AsyncIterator[tuple[ChildProcess, Path]]:
    """Start one on servers of this port; its log."""
    log = directory / "gateway.log"
    urls = ["--nats-url", f"tls://127.0.0.1:{port}", "--redis-url", "rediss://127.0.0.1:1"]
    argv = [sys.executable, "-m", "broker_pipeline", "gateway", "--port", "0", *urls, "--log-format", "json"]
    child = await ChildProcess.spawn("gateway", [*argv, "--secrets", str(secrets)], log_path=log)
    try:
        yield child, log
    finally:
        await child.stop()


async def test_nothing_is_started_with_a_certificate_that_has_ended(tmp_path: Path) -> None:
    secrets = folder(tmp_path, Authority.create(now=LONG_AGO), is_ended=True)
    async with gateway(tmp_path, secrets, 1) as (child, log):
        assert await asyncio.wait_for(child.wait(), 30) == exit_codes.USAGE
        [line] = [each for each in log.read_text().splitlines() if "service_failed" in each]
    assert f"{secrets}/tls.crt ended on " in line
    assert "secrets rotate DIR host-a --certificate" in line
    assert "gateway_listens" not in log.read_text()


@pytest.mark.parametrize("made", ["ended", "foreign"])
async def test_servers_certificates_that_are_no_good_end_the_start_at_once(tmp_path: Path, made: str) -> None:
    authority = Authority.create(now=LONG_AGO)
    signer = Authority.create() if made == "foreign" else authority
    server = host_secrets(tmp_path, signer, "servers", now=LONG_AGO if made == "ended" else None)
    async with (
        encrypted_nats(tmp_path, server) as (_, port),
        gateway(tmp_path, folder(tmp_path, authority), port) as (child, log),
    ):
        assert await asyncio.wait_for(child.wait(), 30) == exit_codes.USAGE
        text = log.read_text()
    assert '"code":"certificate"' in text
    assert "has ended" in text if made == "ended" else "not believed here" in text


async def test_an_end_in_sight_is_said_at_the_start(tmp_path: Path) -> None:
    authority = Authority.create(num_days=10)
    server, client = host_secrets(tmp_path, authority, "servers"), folder(tmp_path, authority)
    async with encrypted_nats(tmp_path, server) as (_, port), gateway(tmp_path, client, port) as (_, log):
        await eventually(lambda: log.read_text().count("certificate_ends_soon") == 2, timeout_s=30)
        text = log.read_text()
    assert '"host":"host-a"' in text
    assert '"host":"servers"' in text
