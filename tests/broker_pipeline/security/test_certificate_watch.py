"""New files are taken while a process runs, bad ones are not, and ends are said once a day."""

from __future__ import annotations

import asyncio
import ssl
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.security.authority import Authority
from broker_pipeline.security.certificate_watch import CertificateWatch, certificate_ends, watched_certificates
from broker_pipeline.security.tls_contexts import TlsContexts, host_tls, utc_now, with_certificate
from broker_pipeline.wire.nats.server_certificate import server_certificate_end
from tests.kit.authority import NOW, encrypted_nats, host_secrets


class Day:
    """A calendar that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


async def not_asked(_context: ssl.SSLContext) -> datetime | None:
    return None


async def test_ends_are_said_at_the_start_and_daily_with_host_and_remedy(tmp_path: Path) -> None:
    day = Day()
    contexts = TlsContexts(host_secrets(tmp_path, Authority.create(), num_days=20), NOW)

    async def servers_end(_context: ssl.SSLContext) -> datetime:
        return NOW + timedelta(days=30, hours=12)

    watch = CertificateWatch(contexts, servers_end, day)
    said: list[tuple[int, str]] = []
    for hour in range(72):
        day.now = NOW + timedelta(hours=hour)
        with capture_logs() as logs:
            await watch.look()
        said += [(hour, each["host"]) for each in logs]
        assert all("secrets rotate" in each["reason"] and "ends on" in each["reason"] for each in logs)
    assert said == [(0, "host-a"), (12, "servers"), (24, "host-a"), (36, "servers"), (48, "host-a"), (60, "servers")]


async def test_new_files_are_taken_and_half_copied_ones_are_not(tmp_path: Path) -> None:
    authority = Authority.create()
    directory = host_secrets(tmp_path, authority, num_days=20)
    contexts = TlsContexts(directory, NOW)
    watch = CertificateWatch(contexts, not_asked, lambda: NOW)
    await watch.look()
    first = contexts.fingerprint
    other = host_secrets(tmp_path, authority, "next")
    (directory / "tls.crt").write_bytes((other / "tls.crt").read_bytes())
    with capture_logs() as logs:
        await watch.look()
        await watch.look()
    assert [each["event"] for each in logs] == ["certificate_not_taken"]
    assert "tls.key is not the key of" in logs[0]["reason"]
    assert contexts.fingerprint == first
    (directory / "tls.key").write_bytes((other / "tls.key").read_bytes())
    with capture_logs() as logs:
        await watch.look()
    assert [each["event"] for each in logs] == ["certificate_taken"], "and its end is far"
    assert contexts.fingerprint != first


async def test_a_bug_in_the_watch_ends_what_it_looks_after(tmp_path: Path) -> None:
    async def crash(_context: ssl.SSLContext) -> datetime | None:
        raise RuntimeError("a bug")

    directory = host_secrets(tmp_path, Authority.create())
    with pytest.raises(ExceptionGroup) as caught:
        async with watched_certificates(str(directory), crash):
            await asyncio.sleep(60)
    assert [str(error) for error in caught.value.exceptions] == ["a bug"]


async def test_the_servers_are_asked_for_the_certificate_that_they_show_now(tmp_path: Path) -> None:
    authority = Authority.create()
    server, client = host_secrets(tmp_path, authority, "servers", num_days=5), host_secrets(tmp_path, authority)
    contexts = TlsContexts(client, NOW)
    async with encrypted_nats(tmp_path, server) as (_, port):
        watch = CertificateWatch(contexts, lambda context: server_certificate_end(f"tls://127.0.0.1:{port}", context))
        with capture_logs() as logs:
            await watch.look()
    assert [each["host"] for each in logs] == ["servers"]
    assert "copy DIR/servers again" in logs[0]["reason"]
    assert contexts.servers_end_at is not None
    assert abs(contexts.servers_end_at - utc_now() - timedelta(days=5)) < timedelta(minutes=5)
    assert await server_certificate_end(f"tls://127.0.0.1:{port}", contexts.client) is None, "nobody is there now"


def test_the_first_end_of_each_host_is_shown(tmp_path: Path) -> None:
    authority = Authority.create()
    folder = host_secrets(tmp_path, authority, num_days=300)
    contexts = host_tls(folder)
    assert contexts is not None
    record = WorkerRecord(worker="w", instance="i", role="stage", pipeline="main", subject="s")
    assert with_certificate(record, None).certificate is None
    sooner = TlsContexts(host_secrets(tmp_path / "other", authority, num_days=10), NOW)
    other = TlsContexts(host_secrets(tmp_path, authority, "host-b", num_days=20), NOW)
    records = [record, *(with_certificate(record, each) for each in (sooner, contexts, other))]
    ends = certificate_ends(str(folder), records)
    assert {host: round((end - NOW.timestamp()) / 86400) for host, end in ends.items()} == {"host-a": 10, "host-b": 20}
    assert certificate_ends(None, [record]) == {}
