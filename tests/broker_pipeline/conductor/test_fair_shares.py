"""Who is served first where more wait than the stages hold: a whole conductor, a real queue, keys in a real Redis."""

from __future__ import annotations

import pytest

from broker_pipeline.messages.jobs import Flow, JobRecord
from broker_pipeline.messages.keys import GatewayKey
from broker_pipeline.state.access.gateway_keys import GatewayKeys
from tests.kit.acting.conductor_bench import Bench

KV = 640
"""Room for a few jobs at a time."""
FEW = 10


async def crowd(bench: Bench, flow: Flow, num_jobs: int) -> list[str]:
    return [await bench.submit(flow=flow) for _ in range(num_jobs)]


async def small_pipeline(bench: Bench) -> None:
    await bench.stage("a", 0, 6, kv=KV, step_s=0.004)
    await bench.vision()
    bench.conductor()


def begun_before_last(others: list[JobRecord], mine: list[JobRecord]) -> int:
    """Return how many of the others' were begun after all of mine were submitted and before the last of mine was."""
    since, until = max(job.created_at for job in mine), max(job.started_at or 0.0 for job in mine)
    return sum(since < (job.started_at or 0.0) < until for job in others)


async def test_interactive_jobs_pass_a_backlog_of_batch_jobs(bench: Bench) -> None:
    large = await crowd(bench, Flow("batch", "large"), 150)
    await small_pipeline(bench)
    await bench.progress(large[:3], 3)
    mine = await bench.wait(await crowd(bench, Flow("interactive", "small"), FEW))
    others = [await bench.store.get(job_id) for job_id in large]
    assert begun_before_last(others, mine) <= FEW, "those whose turn it was at that moment, and one in sixteen"
    assert sum(job.status == "queued" for job in others) > 75, "the backlog waits meanwhile"
    await bench.wait(large, timeout_s=60.0)
    await bench.check_right(large)


async def test_a_few_jobs_of_one_tenant_wait_for_one_each_of_anothers_many(bench: Bench) -> None:
    large = await crowd(bench, Flow("interactive", "large"), 150)
    await small_pipeline(bench)
    await bench.progress(large[:3], 3)
    mine = await bench.wait(await crowd(bench, Flow("interactive", "small"), FEW))
    others = [await bench.store.get(job_id) for job_id in large]
    assert begun_before_last(others, mine) <= 2 * FEW


async def test_batch_jobs_go_on_beside_interactive_ones_that_never_end(bench: Bench) -> None:
    batch = await crowd(bench, Flow("batch", "one"), 4)
    interactive = await crowd(bench, Flow("interactive", "other"), 120)
    await small_pipeline(bench)
    begun, others = await bench.wait(batch, timeout_s=60.0), await bench.wait(interactive, timeout_s=60.0)
    num_before = begun_before_last(others, begun)
    assert 40 < num_before < 100, "they come one by one, one in sixteen, and before all others have begun"


async def test_tenants_get_what_the_weights_of_their_keys_say(bench: Bench) -> None:
    keys = GatewayKeys(bench.redis, bench.namespace)
    for tenant, weight in (("one", 1.0), ("three", 3.0), ("three", 0.5)):
        await keys.create(GatewayKey(tenant=tenant, scopes=("submit",), created_at=1.0, weight=weight))
    tenants = {
        job_id: tenant for tenant in ("one", "three") for job_id in await crowd(bench, Flow("batch", tenant), 90)
    }
    await small_pipeline(bench)
    records = await bench.wait(list(tenants), timeout_s=60.0)
    begun = sorted(records, key=lambda job: job.started_at or 0.0)
    some = [tenants[job.job_id] for job in begun[24:112]]  # the first may have been taken before the keys were read
    assert some.count("one") == pytest.approx(len(some) / 4, abs=6), "several are prepared at a time, and overtake"
