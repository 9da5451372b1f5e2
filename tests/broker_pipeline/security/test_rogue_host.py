"""One host of workers whose secrets somebody has: what that does to everybody else's captions is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import nats
import pytest
import pytest_asyncio
from redis.exceptions import NoPermissionError

from broker_pipeline import redis_keys, subjects
from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.messages.edges import PeerLost
from broker_pipeline.messages.gateway import PipelineStatus
from broker_pipeline.messages.workers import WorkerRecord
from broker_pipeline.security.credentials import Credentials
from broker_pipeline.security.host_folder import new_password, users_in
from broker_pipeline.security.roles import ROLES, WORKERS
from broker_pipeline.security.secrets_directory import DirectoryFacts, SecretsDirectory
from broker_pipeline.security.server_configs import ServerAccess
from broker_pipeline.state.redis_client import RedisClient, open_redis
from broker_pipeline.tools.demo.pictures import scenes
from broker_pipeline.tools.local.cluster import LocalCluster
from broker_pipeline.tools.local.servers import EmbeddedNats, EmbeddedRedis
from broker_pipeline.wire.transport import Transport
from tests.kit.running.batch_drill import demo_cluster
from tests.kit.running.pipeline_client import client_of, denials
from tests.kit.waiting import eventually
from training.prompts import DEFAULT_PROMPT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

NAMESPACE = "bp"
ROGUE = "rogue"
STAGES = ("box_stage-0", "box_stage-1", "box_stage-2")
_FOR_S = 120


@dataclass(frozen=True)
class Attacked:
    """A pipeline of one host, and the Redis and NATS of another one of workers."""

    cluster: LocalCluster
    redis: RedisClient
    nats: nats.NATS
    link: Transport

    async def announce(self, *records: WorkerRecord) -> None:
        """Put records where those of the rogue's workers are."""
        for record in records:
            await self.put(record.worker, msgspec.json.encode(record))

    async def put(self, name: str, content: bytes) -> None:
        await self.redis.set(redis_keys.worker(NAMESPACE, "main", name), content, ex=_FOR_S)
        await self.redis.sadd(redis_keys.workers(NAMESPACE, "main"), name)

    async def status(self) -> PipelineStatus:
        async with GatewayClient.open(self.cluster.gateway_url) as client:
            return await client.status()

    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self.cluster.processes.items()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Attacked]:
    path: Path = tmp_path_factory.mktemp("rogue")
    directory = SecretsDirectory.create(path / "secrets", DirectoryFacts(NAMESPACE))
    directory.add_host("box", ROLES)
    directory.add_host(ROGUE, WORKERS)
    folders = [directory.host_folder(host) for host in ("box", ROGUE)]
    access = ServerAccess([user for each in folders for user in users_in(each)], NAMESPACE, new_password())
    broker, redis = EmbeddedNats(path / "nats", access=access), EmbeddedRedis(path / "redis", access=access)
    async with broker, redis:
        settings = (await demo_cluster(path)).settings
        settings = replace(settings, nats_url=broker.url, redis_url=redis.url, secrets=folders[0])
        theirs = Credentials.load(folders[1], "stage", NAMESPACE)
        async with (
            LocalCluster(settings) as cluster,
            open_redis(redis.url, credentials=theirs) as client,
            Transport.open(broker.url, name=ROGUE, credentials=theirs) as link,
        ):
            connection = await nats.connect(broker.url, **theirs.nats_options)
            yield Attacked(cluster, client, connection, link)
            await connection.close()


async def test_records_that_say_what_is_not_their_own_are_shown_and_not_used(attacked: Attacked) -> None:
    """Else a conductor sends to wherever they say, and ends where it may not, or waits for one that is none."""
    await attacked.cluster.until_ready()
    status = await attacked.status()
    stage = next(each for each in status.workers if each.role == "stage")
    before = attacked.pids()
    await attacked.announce(
        forged("elsewhere", stage, subject="no.such.root"),
        forged("other", stage, subject=stage.subject),
        forged("conductor", stage, role="conductor", answers_hellos=False),
        forged("gateway", stage, role="gateway"),
        forged("twin", stage, instance=stage.instance, state="draining"),
        forged("elsewhere-too", stage, pipeline="other"),
    )
    await attacked.put(f"{ROGUE}_large", b" " * 20_000_000)
    names = {
        f"{ROGUE}_{name}" for name in ("elsewhere", "other", "conductor", "gateway", "twin", "elsewhere-too", "large")
    }

    async def are_refused() -> bool:
        conductor = (await attacked.status()).conductor
        return conductor is not None and names <= {each.worker for each in conductor.refused}

    await eventually(are_refused, timeout_s=20)
    status = await attacked.status()
    assert status.conductor is not None
    assert {each.worker: each.state for each in status.conductor.stages} == dict.fromkeys(STAGES, "ready")
    assert {each.worker for each in status.workers} <= {*STAGES, "box_vision-0", f"{ROGUE}_twin"}
    assert attacked.pids() == before
    assert denials(attacked.cluster) == []


async def test_any_number_of_names_and_records_slow_nobody_down(attacked: Attacked) -> None:
    stage = next(each for each in (await attacked.status()).workers if each.role == "stage")
    before = attacked.pids()
    await attacked.announce(*(forged(f"many-{number}", stage, share=f"s{number % 8}") for number in range(300)))
    for number in range(20):
        names = [f"{number}-{name}".ljust(100) for name in range(10_000)]
        await attacked.redis.sadd(redis_keys.workers(NAMESPACE, "main"), *names)
    for command in (("SREM", "box_stage-0"), ("DEL",), ("SET", "x")):
        with pytest.raises(NoPermissionError):
            await attacked.redis.execute_command(command[0], redis_keys.workers(NAMESPACE, "main"), *command[1:])
    with pytest.raises(NoPermissionError):
        await attacked.redis.set(redis_keys.conductor(NAMESPACE, "main", f"{ROGUE}_c"), b"x")
    await check_captions(attacked)
    status = await attacked.status()
    assert sum(each.worker.startswith(f"{ROGUE}_") for each in status.workers) <= 64
    assert attacked.pids() == before


async def test_what_is_sent_by_its_rights_disturbs_no_other_host(attacked: Attacked) -> None:
    """Forged words of lost peers, and garbage at all else that a stage may send to."""
    stages = [each for each in (await attacked.status()).workers if each.worker in STAGES]
    before = attacked.pids()
    for number in range(2000):
        stage = stages[number % len(stages)]
        await attacked.link.publish(subjects.lost_peers(NAMESPACE, "main"), PeerLost(root=stage.subject))
        for content in (bytes(number % 200), b"{}"):
            await attacked.nats.publish(f"{NAMESPACE}.main.lost_peer", content)
            await attacked.nats.publish(f"{NAMESPACE}.main.conductor.c.results.{number}", content)
            await attacked.nats.publish(f"_INBOX.conductor.box.reply.{number}", content)
            await attacked.nats.publish(subjects.work(stage.subject), content)
    await attacked.nats.flush()
    await check_captions(attacked)
    assert attacked.pids() == before


async def check_captions(attacked: Attacked) -> None:
    async with client_of(attacked.cluster) as client:
        shown = scenes()[:4]
        jobs = [await client.submit(each.path.read_bytes(), prompt=DEFAULT_PROMPT, max_tokens=48) for each in shown]
    async with GatewayClient.open(attacked.cluster.gateway_url) as waiting, asyncio.timeout(60):
        records = [await waiting.wait(job) for job in jobs]
    assert [each.status for each in records] == ["succeeded"] * 4, records
    assert [each.result.text for each in records if each.result] == [each.expected for each in shown]


def forged(name: str, like: WorkerRecord, **fields: Any) -> WorkerRecord:
    """Return a record of a worker of the rogue that looks like one of a real worker, but for these fields."""
    worker = f"{ROGUE}_{name}"
    said = {"worker": worker, "instance": f"i-{name}", "role": "stage", "pipeline": "main", **fields}
    root = subjects.worker_root(NAMESPACE, said["pipeline"], said["role"], worker, said["instance"])
    return msgspec.structs.replace(like, **{"subject": root, "certificate": None, **said})
