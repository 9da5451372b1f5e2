"""Who is in the pipeline, and how each worker is reached: real registry, real edges, workers that died or hang."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from broker_pipeline import __version__, redis_keys, subjects
from broker_pipeline.messages.edges import EdgeAsk, EdgeOffer, TcpOffer
from broker_pipeline.messages.workers import BlockRange, WorkerRecord
from broker_pipeline.state.redis_client import RedisClient
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.doctor.edges import judge_edges, look_at_edges
from broker_pipeline.tools.doctor.members import judge_members, judge_model, judge_versions, look_at_members
from broker_pipeline.tools.local.place import free_port
from broker_pipeline.wire.edges.settings import EdgeSettings
from broker_pipeline.wire.transport import Transport
from tests.kit.acting.conductor import acting_conductor
from tests.kit.findings import by_check, levels


def record(namespace: str, name: str, version: str = __version__) -> WorkerRecord:
    root = subjects.worker_root(namespace, "main", "stage", name, f"{name}-1")
    return WorkerRecord(
        worker=name,
        instance=f"{name}-1",
        role="stage",
        pipeline="main",
        subject=root,
        host="host-b",
        version=version,
        fingerprint="a" * 64,
        blocks=BlockRange(start=0, stop=3),
    )


async def test_an_empty_namespace_says_which_pipelines_there_are(redis: RedisClient, namespace: str) -> None:
    await WorkerRegistry(redis, namespace, "other", ttl_s=60).register(record(namespace, "stage-0"))
    facts = await look_at_members(redis, namespace, "main")
    found = by_check(judge_members(facts))["members"]
    assert (found.level, "other" in found.found) == ("warn", True)
    assert judge_versions(facts)[0].level == "ok"
    assert judge_model(facts, "a" * 64).level == "ok"


async def test_conductor_and_workers_are_seen_and_what_does_not_fit(
    transport: Transport, redis: RedisClient, namespace: str
) -> None:
    registry = WorkerRegistry(redis, namespace, "main", ttl_s=60)
    await registry.register(record(namespace, "stage-0"))
    found = by_check(judge_members(await look_at_members(redis, namespace, "main")))
    assert "No conductor" in found["members"].found
    await registry.register(record(namespace, "stage-1", version="0.0.7"))
    stranger = msgspec.json.encode({"worker": "stage-2", "instance": "i", "contract": 99, "version": "9.9"})
    await redis.set(redis_keys.worker(namespace, "main", "stage-2"), stranger)
    await redis.sadd(redis_keys.workers(namespace, "main"), "stage-2")
    async with acting_conductor(transport, redis, namespace) as acting:
        await acting.show_model("acting", "a" * 64)
        facts = await look_at_members(redis, namespace, "main")
    shown = [finding.found for finding in judge_members(facts)]
    assert "a conductor, workers: 2" in shown[0]
    assert any("No vision worker" in text for text in shown)
    versions = {finding.level: finding.found for finding in judge_versions(facts)}
    assert "0.0.7 on stage-1" in versions["warn"]
    assert "contract 99" in versions["fail"]
    assert judge_model(facts, "a" * 64).level == "ok"
    other = judge_model(facts, "b" * 64)
    assert (other.level, "aaaaaaaaaaaa" in other.found) == ("fail", True)


async def test_each_worker_is_reached_or_it_is_said_why_not(
    transport: Transport, nats_url: str, namespace: str, tmp_path: Path
) -> None:
    """One with both edges, one with tcp, one behind a firewall, one that hangs, one that has died."""
    names = ("near", "far", "walled", "hung", "dead")
    records = {name: record(namespace, name) for name in names}
    walled = EdgeOffer(tcp=TcpOffer(addresses=(f"127.0.0.1:{free_port()}",), token="t", certificate="0" * 64))

    async def answer(other: Transport) -> None:
        async with other.subscribe(subjects.edges(records["walled"].subject), EdgeAsk) as asks:
            listening.set()
            async for ask in asks:
                await ask.respond(walled)

    listening = asyncio.Event()
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(Transport.open(nats_url, name="workers"))
        third = await stack.enter_async_context(Transport.open(nats_url, name="far"))
        for one, name, settings in (
            (other, "near", EdgeSettings("auto", 2**20, shm_directory=tmp_path)),
            (third, "far", EdgeSettings("tcp")),
        ):
            await stack.enter_async_context(one.use_edges(records[name].subject, settings))
        await stack.enter_async_context(other.subscribe(subjects.edges(records["hung"].subject), EdgeAsk))
        answering = asyncio.create_task(answer(other))
        await listening.wait()
        facts = await look_at_edges(transport, list(records.values()), EdgeSettings("auto"), timeout_s=0.5)
        answering.cancel()
        await asyncio.wait({answering})
    found = dict(zip(names, judge_edges(facts), strict=True))
    assert {name: finding.level for name, finding in found.items()} == {
        "near": "ok",
        "far": "ok",
        "walled": "warn",
        "hung": "fail",
        "dead": "warn",
    }
    assert found["near"].found.endswith("shm")
    assert "tcp to 127.0.0.1:" in found["far"].found
    assert walled.tcp is not None
    assert walled.tcp.addresses[0] in found["walled"].found
    assert "edge-port" in found["walled"].remedy
    assert levels(judge_edges([])) == {"edges": "ok"}


async def test_ends_that_encrypt_and_do_not_say_so(transport: Transport, nats_url: str, namespace: str) -> None:
    async with Transport.open(nats_url, name="far") as other:
        worker = record(namespace, "far")
        async with other.use_edges(worker.subject, EdgeSettings("tcp", is_encrypted=False)):
            facts = await look_at_edges(transport, [worker], EdgeSettings("tcp"), timeout_s=5.0)
    assert "--edge-tls" in judge_edges(facts)[0].found
