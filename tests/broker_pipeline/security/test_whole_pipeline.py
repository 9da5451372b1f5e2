"""A whole pipeline whose processes may do only what the table of rights says, with parts of it killed and drained."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.security.host_folder import new_password, users_in
from broker_pipeline.security.roles import ROLES
from broker_pipeline.security.secrets_directory import DirectoryFacts, SecretsDirectory
from broker_pipeline.security.server_configs import ServerAccess
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from tests.kit.running.batch_drill import demo_cluster, expected, run_batch
from tests.kit.running.pipeline_client import denials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

NUM_REQUESTS = 24


@dataclass(frozen=True)
class Guarded:
    cluster: LocalCluster
    secrets: Path
    """The folder of the host."""
    server_logs: tuple[Path, ...]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    path = tmp_path_factory.mktemp("rights")
    directory = SecretsDirectory.create(path / "secrets", DirectoryFacts("bp"))
    directory.add_host("box", ROLES)
    folder = directory.host_folder("box")
    access = ServerAccess(users_in(folder), "bp", admin_password=new_password())
    nats, redis = EmbeddedNats(path / "nats", access=access), EmbeddedRedis(path / "redis", access=access)
    async with nats, redis:
        settings = (await demo_cluster(path)).settings
        async with LocalCluster(
            replace(settings, nats_url=nats.url, redis_url=redis.url, secrets=folder, num_conductors=2)
        ) as cluster:
            yield Guarded(cluster, folder, (nats.log_path, redis.log_path))


async def test_a_batch_ends_well_although_parts_die(guarded: Guarded, tmp_path: Path) -> None:
    outcome = await run_batch(guarded.cluster, tmp_path, NUM_REQUESTS)
    assert outcome.captions == expected(NUM_REQUESTS)
    assert not outcome.repeated


async def test_workers_have_names_of_their_host(guarded: Guarded) -> None:
    await guarded.cluster.until_ready()
    async with GatewayClient.open(guarded.cluster.gateway_url) as client:
        workers = (await client.status()).workers
    assert {worker.worker for worker in workers if worker.role in {"stage", "vision"}} == {
        *("box_stage-0", "box_stage-1", "box_stage-2", "box_vision-0"),
    }


async def test_operators_commands_work_with_secrets_and_not_without(guarded: Guarded) -> None:
    redis = ("--redis-url", guarded.cluster.settings.redis_url or "")
    code, _, err = await _run("keys", "list", *redis)
    assert (code, "Authentication required" in err) == (77, True), err
    code, key, err = await _run("keys", "create", "alice", *redis, "--secrets", str(guarded.secrets))
    assert code == 0, err
    code, out, err = await _run("keys", "list", "--json", *redis, "--secrets", str(guarded.secrets))
    assert json.loads(out)["tenant"] == "alice", err
    gateway = ("--gateway", guarded.cluster.gateway_url)
    assert (await _run("status", *gateway, "--key", key.strip()))[0] == 0
    assert (await _run("keys", "revoke", "alice", *redis, "--secrets", str(guarded.secrets)))[0] == 0


async def test_a_worker_is_drained(guarded: Guarded) -> None:
    code, _, err = await _run("drain", "box_vision-0", "--wait", "--gateway", guarded.cluster.gateway_url)
    assert code == 0, err


async def test_in_all_that_nothing_was_denied(guarded: Guarded) -> None:
    assert denials(guarded.cluster) == []
    said = [line for log in guarded.server_logs for line in log.read_text().splitlines() if "Violation" in line]
    assert said == []


async def _run(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *("broker-pipeline", *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
