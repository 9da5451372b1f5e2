"""Several conductors, each with a share of the stages: they take jobs from one queue and over from each other."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker_pipeline import redis_keys, subjects
from broker_pipeline.messages.control import CancelRequest
from broker_pipeline.messages.status import ConductorStatus
from broker_pipeline.state.registry import WorkerRegistry
from broker_pipeline.tools.local.service import LocalService
from tests.kit.acting.conductor_bench import Bench
from tests.kit.acting.workers import ActingStage
from tests.kit.models.tiny_artifacts import tiny_artifact
from tests.kit.waiting import eventually

TTL_S = 1.0


async def copies(bench: Bench, names: str, step_s: float = 0.01) -> list[ActingStage]:
    """Start a whole copy of the model for each letter, in a share that is called like it."""
    await bench.vision()
    return [await bench.stage(f"stage-{name}", 0, 6, share=name, step_s=step_s) for name in names]


async def holders(bench: Bench, names: str) -> dict[str, str]:
    keys = [redis_keys.lease(bench.namespace, "main", name) for name in names]
    found = zip(names, await bench.redis.mget(keys), strict=True)
    return {name: holder.decode() for name, holder in found if holder is not None}


async def is_held(bench: Bench, names: str, expected: dict[str, str]) -> bool:
    return await holders(bench, names) == expected


async def until_held(bench: Bench, names: str, *counts: int) -> dict[str, str]:
    """Wait until so many conductors have so many shares each, and all are held."""
    held: dict[str, str] = {}

    async def is_so() -> bool:
        held.clear()
        held.update(await holders(bench, names))
        each = list(held.values())
        return sorted(map(each.count, set(each))) == sorted(counts)

    await eventually(is_so)
    return held


async def until_routed(bench: Bench, num_routes: int) -> ConductorStatus:
    registry, shown = WorkerRegistry(bench.redis, bench.namespace, "main"), []

    async def is_routed() -> bool:
        shown.append(await registry.conductor_status())
        return shown[-1] is not None and len(shown[-1].routes) == num_routes

    await eventually(is_routed)
    assert shown[-1] is not None
    return shown[-1]


async def test_one_conductor_has_all_shares(bench: Bench) -> None:
    a, b = await copies(bench, "ab")
    bench.conductor("c0", lease_ttl_s=TTL_S)
    status = await until_routed(bench, 2)
    assert [(each.share, each.instance) for each in status.shares] == [("a", "c0"), ("b", "c0")]
    job_ids = [await bench.submit(max_tokens=40) for _ in range(12)]
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert a.opens
    assert b.opens
    assert a.epoch != b.epoch
    await bench.check_empty(a, b)


async def test_those_who_join_get_their_part_and_every_job_is_run_once(bench: Bench) -> None:
    stages = await copies(bench, "abc")
    for index, counts in enumerate([(3,), (1, 2), (1, 1, 1)]):
        bench.conductor(f"c{index}", lease_ttl_s=TTL_S, max_waiting=1)
        await until_held(bench, "abc", *counts)
    await until_routed(bench, 3)
    job_ids = [await bench.submit(max_tokens=40) for _ in range(24)]
    records = await bench.wait(job_ids)
    await bench.check_right(job_ids)
    assert all(record.attempt == 1 for record in records)
    assert sorted(job_id for stage in stages for job_id in stage.opens) == sorted(job_ids)
    assert all(stage.opens for stage in stages)
    await bench.check_empty(*stages)


async def test_a_share_is_given_up_with_its_jobs_when_another_conductor_joins(bench: Bench) -> None:
    stages = await copies(bench, "ab", step_s=0.02)
    bench.conductor("c0", drain_s=2.0, lease_ttl_s=TTL_S)
    await until_routed(bench, 2)
    job_ids = [await bench.submit(max_tokens=100) for _ in range(8)]
    await bench.progress(job_ids, 2)
    bench.conductor("c1", lease_ttl_s=TTL_S)
    await until_held(bench, "ab", 1, 1)
    await bench.wait(job_ids, timeout_s=25)
    await bench.check_right(job_ids)
    await bench.check_empty(*stages)


async def test_jobs_of_a_share_whose_stage_is_gone_are_run_by_the_others(bench: Bench) -> None:
    a, b = await copies(bench, "ab", step_s=0.02)
    bench.conductor("c0", lease_ttl_s=TTL_S)
    await until_routed(bench, 2)
    job_ids = [await bench.submit(max_tokens=60) for _ in range(8)]
    await bench.progress(job_ids, 2)
    await b.die()
    await bench.wait(job_ids, timeout_s=25)
    await bench.check_right(job_ids)
    await eventually(lambda: is_held(bench, "ab", {"a": "c0"}))
    await bench.check_empty(a)


async def test_a_cancel_reaches_whoever_has_the_job(bench: Bench) -> None:
    stages = await copies(bench, "ab", step_s=0.02)
    for name in ("c0", "c1"):
        bench.conductor(name, lease_ttl_s=TTL_S, max_waiting=1)
    await until_held(bench, "ab", 1, 1)
    await until_routed(bench, 2)
    job_ids = [await bench.submit(max_tokens=120) for _ in range(6)]
    await bench.until(lambda: all(stage.opens for stage in stages))
    cancelled = [stage.opens[0] for stage in stages]
    for job_id in cancelled:
        await bench.transport.publish(subjects.cancel(bench.namespace), CancelRequest(job_id=job_id))
    records = await bench.wait(cancelled)
    assert [record.status for record in records] == ["cancelled"] * 2
    await bench.wait(job_ids)
    await bench.check_right(sorted(set(job_ids) - set(cancelled)))


@asynccontextmanager
async def conductor_process(
    bench: Bench, nats_url: str, redis_url: str, directory: Path, name: str
) -> AsyncIterator[LocalService]:
    arguments = (
        "conductor", "--model", str(tiny_artifact()), "--nats-url", nats_url, "--redis-url", redis_url,
        "--namespace", bench.namespace, "--lease-ttl-s", str(TTL_S), "--ack-wait-s", "3", "--log-format", "json",
    )  # fmt: skip
    service = LocalService(
        name, arguments, log_path=directory / f"{name}.log", ready_path=directory / name, env={}, start_timeout_s=60
    )
    await service.start()
    yield service
    await service.stop(10)


@pytest.mark.slow
async def test_shares_of_conductors_that_hang_and_die_are_taken_over_and_nothing_is_lost(
    bench: Bench, nats_url: str, redis_url: str, tmp_path: Path
) -> None:
    stages = await copies(bench, "ab", step_s=0.02)
    async with (
        conductor_process(bench, nats_url, redis_url, tmp_path, "c0") as first,
        conductor_process(bench, nats_url, redis_url, tmp_path, "c1") as second,
    ):
        await until_held(bench, "ab", 1, 1)
        await until_routed(bench, 2)
        job_ids = [await bench.submit(max_tokens=150) for _ in range(12)]
        await bench.progress(job_ids, 2)
        first.process.kill(signal.SIGSTOP)
        held = await until_held(bench, "ab", 2)
        assert set(held.values()) == {second.facts["instance"]}
        first.process.kill(signal.SIGCONT)
        await until_held(bench, "ab", 1, 1)
        second.process.kill()
        held = await until_held(bench, "ab", 2)
        assert set(held.values()) == {first.facts["instance"]}
        await bench.wait(job_ids, timeout_s=25)
        await bench.check_right(job_ids)
        await bench.check_empty(*stages)


async def test_a_share_whose_only_stage_is_sick_fails_nobody(bench: Bench) -> None:
    """The other share shows that it was not the jobs; a job that fails on both fails."""
    sick, well = await copies(bench, "ab")
    bench.conductor("c0", lease_ttl_s=TTL_S)
    await until_routed(bench, 2)
    sick.is_sick = True
    for stage in (sick, well):
        stage.poison.add("poison")
    job_ids = [await bench.submit() for _ in range(20)]
    poison = await bench.submit(job_id="poison")
    await bench.wait(job_ids)
    await bench.check_right(job_ids)
    [record] = await bench.wait([poison])
    assert record.error is not None
    assert record.error.code == "retries_exhausted"
    assert record.attempt > 2, "both have tried"
    await bench.check_empty(sick, well)
