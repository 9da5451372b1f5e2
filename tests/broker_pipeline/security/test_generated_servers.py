"""The servers of `broker-pipeline secrets`, started with the files that it makes: who has a host's folder, gets in."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner, Result

from broker_pipeline import redis_keys
from broker_pipeline.errors import CertificateError, StateError, SubjectDeniedError, TransportError
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.state.redis_client import open_redis
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.tools.local.processes import ChildProcess
from broker_pipeline.tools.local.server_binaries import find_nats_server
from broker_pipeline.tools.operate.secrets_command import command
from broker_pipeline.wire.transport import Transport
from tests.kit.authority import running
from tests.kit.running.debian_servers import PROGRAMS
from tests.kit.waiting import eventually

pytestmark = pytest.mark.skipif(PROGRAMS["redis-server"] is None, reason="apt-get install redis-server")


def secrets(*words: str | Path) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


def made(directory: Path, *addresses: str) -> Path:
    """Make secrets for one host of every kind, of servers that have their files where they were made."""
    at = [word for address in addresses for word in ("--address", address)]
    for words in (
        ("init", directory, "--servers-at", directory / "servers", *at),
        ("add-host", directory, "gpu-1", "--role", "stage", "--address", "10.1.2.3"),
    ):
        result = secrets(*words)
        assert result.exit_code == 0, result.output
    return directory


@asynccontextmanager
async def servers_of(directory: Path) -> AsyncIterator[tuple[str, str]]:
    """Start both with the files as they are, but for ports and places of data; their URLs."""
    nats_port, redis_port, data = free_port(), free_port(), directory.parent / "data"
    data.mkdir(exist_ok=True)
    for name, port in (("nats.conf", "4222"), ("redis.conf", "6379")):
        text = (directory / "servers" / name).read_text()
        ours = {port: str(nats_port if name == "nats.conf" else redis_port), "/data": str(data), "127.0.0.1:8222": "0"}
        for theirs, other in ours.items():
            assert theirs in text or theirs == "127.0.0.1:8222"
            text = text.replace(theirs, other)
        (data / name).write_text(text.replace('http: "0"\n', ""))
    redis = PROGRAMS["redis-server"]
    assert redis is not None
    async with (
        running(data, "nats", str(find_nats_server()), "-c", str(data / "nats.conf"), port=nats_port),
        running(data, "redis", redis, str(data / "redis.conf"), port=redis_port),
    ):
        yield f"nats://127.0.0.1:{nats_port}", f"rediss://127.0.0.1:{redis_port}"


async def test_a_hosts_folder_lets_its_services_in_and_nothing_else_does(tmp_path: Path) -> None:
    directory, foreign = made(tmp_path / "secrets", "10.0.0.1"), made(tmp_path / "foreign")
    credentials = Credentials.load(directory / "hosts" / "gpu-1", "stage", "bp")
    async with servers_of(directory) as (nats_url, redis_url):
        async with (
            Transport.open(nats_url, name="stage", credentials=credentials) as transport,
            open_redis(redis_url, credentials=credentials) as redis,
        ):
            assert transport.is_connected
            assert await redis.ping()
        stranger = Credentials.load(foreign / "hosts" / "gpu-1", "stage", "bp")
        for key in (None, stranger):
            with pytest.raises((TransportError, CertificateError)):
                async with Transport.open(nats_url, name="stranger", credentials=key, connect_timeout_s=2):
                    pass
            with pytest.raises((StateError, CertificateError)):
                async with open_redis(redis_url, credentials=key):
                    pass
        # Whoever took only the certificate has no rights either.
        for name in ("ca.crt", "tls.crt", "tls.key"):
            shutil.copy(directory / "hosts" / "gpu-1" / name, foreign / "hosts" / "gpu-1" / name)
        thief = Credentials.load(foreign / "hosts" / "gpu-1", "stage", "bp")
        object.__setattr__(thief, "directory", directory / "hosts" / "gpu-1")  # contexts are kept by their folder
        with pytest.raises(SubjectDeniedError):
            async with Transport.open(nats_url, name="thief", credentials=thief):
                pass


async def test_redis_has_after_a_restart_what_was_written_by_transactions_and_scripts(tmp_path: Path) -> None:
    """It reads its file as the default user, whom nobody may be."""
    directory = made(tmp_path / "secrets")
    credentials = Credentials.load(directory / "hosts" / "gpu-1", "stage", "bp")
    records = {redis_keys.worker("bp", "main", f"gpu-1_{name}"): name.encode() for name in ("one", "two")}
    async with (
        servers_of(directory) as (_, url),
        open_redis(url, credentials=credentials) as redis,
        redis.pipeline(transaction=True) as transaction,
    ):
        for key, record in records.items():
            transaction.set(key, record)
        await transaction.execute()
    async with servers_of(directory) as (_, url), open_redis(url, credentials=credentials) as redis:
        assert {key: await redis.get(key) for key in records} == records


async def test_a_gateway_on_them_shows_until_when_certificates_are_good(tmp_path: Path) -> None:
    directory = made(tmp_path / "secrets")
    assert secrets("add-host", directory, "hub", "--role", "gateway").exit_code == 0
    folder, ready, log = directory / "hosts" / "hub", tmp_path / "ready", tmp_path / "gateway.log"
    async with servers_of(directory) as (nats_url, redis_url):
        urls = ("--nats-url", nats_url, "--redis-url", redis_url, "--secrets", str(folder))
        argv = [sys.executable, "-m", "broker_pipeline", "gateway", "--port", "0", "--ready-file", str(ready), *urls]
        child = await ChildProcess.spawn("gateway", argv, log_path=log)
        try:
            await eventually(ready.exists, timeout_s=60)
            facts = dict(line.split("=", 1) for line in ready.read_text().splitlines())
            key = {"Authorization": f"Bearer {(folder / 'gateway.key').read_text().strip()}"}
            async with aiohttp.ClientSession(facts["url"], headers=key) as client:
                status = await (await client.get("/v1/status")).json()
                metrics = await (await client.get("/metrics")).text()
        finally:
            await child.stop()
    assert set(status["certificates"]) == {"hub", "servers"}
    year_s = 365 * 86400
    left = dict(re.findall(r'broker_pipeline_certificate_seconds_left\{host="(\w+)"\} (\S+)', metrics))
    assert set(left) == {"hub", "servers"}
    assert all(year_s < float(each) < 1.1 * year_s for each in left.values())


def test_certificates_alone_are_renewed_for_the_same_names(tmp_path: Path) -> None:
    directory = made(tmp_path / "secrets", "10.0.0.1", "broker.lan")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert "10.1.2.3" in secrets("show", directory).output
    result = secrets("rotate", directory, "--certificate")
    assert result.exit_code == 0, result.output
    assert "its services take it within seconds" in result.output
    changed = {path.relative_to(directory).as_posix() for path in before if path.read_bytes() != before[path]}
    assert changed == {f"{folder}/tls.{kind}" for folder in ("servers", "hosts/gpu-1") for kind in ("crt", "key")}
    shown = secrets("show", directory).output
    assert all(name in shown for name in ("10.0.0.1", "broker.lan", "10.1.2.3"))


def test_servers_get_another_address_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    directory = made(tmp_path / "secrets", "10.0.0.1")
    place = ("--servers-at", directory / "servers")
    assert secrets("init", directory, *place, "--address", "10.0.0.2").exit_code == 0
    assert "10.0.0.2" in secrets("show", directory).output
    for words in (
        ("init", directory, *place, "--address", "10.0.0.2/8"),
        ("add-host", directory, "gpu-2", "--role", "stage", "--address", "a b"),
        ("rotate", directory, "gpu-3", "--certificate"),
    ):
        result = secrets(*words)
        assert result.exit_code != 0
        assert "gpu-2" not in secrets("show", directory).output
    assert "10.0.0.2" in secrets("show", directory).output
