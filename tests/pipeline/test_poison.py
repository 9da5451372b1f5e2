"""An input that breaks its stage every time costs its own job only, and the job can be sent again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from broker_pipeline.client.gateway_client import GatewayClient
from broker_pipeline.messages.jobs import JobRecord
from broker_pipeline.tools.local.cluster import LocalCluster
from tests.kit.models.reference import reference_tokens
from tests.kit.pictures import picture
from tests.kit.running.clusters import tiny_cluster
from tests.kit.running.drill import run_command
from tests.kit.running.pipeline_client import PipelineClient, client_of
from tests.kit.running.poison import POISON, POISON_ID, UNTIED, poisoned_artifact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150), pytest.mark.asyncio(loop_scope="module")]

NUM_NEIGHBOURS = 12
MAX_TOKENS = 10
PROMPTS = [f"Describe this picture in {number} words." for number in range(NUM_NEIGHBOURS)]
EXHAUSTED = "retries_exhausted"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineClient]:
    settings = tiny_cluster(tmp_path_factory.mktemp("poison") / "run", UNTIED, "2,4").settings
    async with LocalCluster(replace(settings, model=poisoned_artifact())) as cluster, client_of(cluster) as opened:
        yield opened


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    """What the model without the poison says; the neighbours are to say just that."""
    said = [reference_tokens(UNTIED, (picture(n),), PROMPTS[n], MAX_TOKENS) for n in range(NUM_NEIGHBOURS)]
    assert not any(POISON_ID in tokens for tokens in said), "a neighbour would poison itself"
    return said


async def command(client: PipelineClient, *arguments: str) -> tuple[int, list[str], str]:
    code, out, err = await run_command(client, "failed", *arguments)
    return code, out.splitlines(), err


async def lines(client: PipelineClient, *arguments: str) -> list[dict[str, Any]]:
    code, out, err = await command(client, *arguments, "--json")
    assert code in (0, 1), err
    return [json.loads(line) for line in out]


async def submit_all(client: PipelineClient) -> tuple[list[str], list[str]]:
    """Submit neighbours with three poisonous jobs between them."""
    good = [client.submit(picture(n), prompt=PROMPTS[n], max_tokens=MAX_TOKENS) for n in range(NUM_NEIGHBOURS)]
    bad = [
        client.submit(picture(20), prompt=f"What is {POISON}?", max_tokens=MAX_TOKENS),
        client.submit(prompt=f"{POISON} " * 30, max_tokens=MAX_TOKENS),
        client.submit(picture(21), prompt=POISON, max_tokens=MAX_TOKENS, temperature=1.0, seed=4),
    ]
    together = await asyncio.gather(*good[:6], *bad, *good[6:])
    return together[:6] + together[9:], together[6:9]


async def test_poison_costs_its_own_jobs_only(client: PipelineClient, expected: list[list[int]]) -> None:
    pids = {name: program.pid for name, program in client.cluster.processes.items()}
    good, bad = await submit_all(client)
    assert await client.run(good) == expected
    for record in await client.wait(bad):
        assert record.status == "failed"
        assert record.error is not None
        assert record.error.code == EXHAUSTED
        assert "non_finite_logits" in record.error.message
        assert record.attempt == 2, "once in company, once alone"
    assert {name: program.pid for name, program in client.cluster.processes.items()} == pids
    assert all(program.num_restarts == 0 for program in client.cluster.processes.values())
    # What a poisonous session left in the caches reaches nobody who comes after it.
    again, _ = await submit_all(client)
    assert await client.run(again) == expected


async def test_failures_are_listed_shown_sent_again_and_discarded(client: PipelineClient) -> None:
    for record in await lines(client, "list"):
        assert record["status"] == "failed"
    job_id = await client.submit(picture(30), prompt=f"Is this {POISON}?", max_tokens=4)
    await client.wait([job_id])

    code, out, _ = await command(client, "list", "--limit", "1")
    assert code == 0
    assert job_id in out[1]
    assert EXHAUSTED in out[1]
    [listed] = await lines(client, "list", "--limit", "1")
    assert listed["job_id"] == job_id
    [shown] = await lines(client, "show", job_id)
    assert shown == listed
    assert any("non_finite_logits" in line for line in (await command(client, "show", job_id))[1])

    code, out, _ = await command(client, "retry", job_id, "--wait")
    assert code == 1, "it failed again"
    assert EXHAUSTED in "".join(out)
    [shown] = await lines(client, "show", job_id)
    assert (shown["status"], shown["num_retries"], shown["attempt"]) == ("failed", 1, 4)
    assert [past["error"]["code"] for past in shown["failures"]] == [EXHAUSTED]
    assert [past["attempt"] for past in shown["failures"]] == [2]

    assert (await command(client, "discard", job_id))[0] == 0
    code, _, err = await command(client, "show", job_id)
    assert (code, "no job" in err) == (2, True)
    assert "Traceback" not in err
    code, _, err = await command(client, "retry", job_id, "nonsense")
    assert code == 1
    assert err.count("no job") == 2


async def test_all_are_sent_again_at_once_and_a_mended_one_succeeds(client: PipelineClient) -> None:
    """A cancelled job stands for one whose cause is mended: what failed for its input fails again, with both causes."""
    _, bad = await submit_all(client)
    await client.wait(bad)
    before = {record["job_id"]: record for record in await lines(client, "list")}
    assert set(bad) <= set(before)
    sent = await lines(client, "retry", "--all", "--wait")
    assert {record["job_id"] for record in sent} == set(before)
    for record in sent:
        assert record["status"] == "failed"
        assert len(record["failures"]) == len(before[record["job_id"]].get("failures", [])) + 1

    job_id = await client.submit(prompt="Say something.", max_tokens=200, ignore_eos=True, top_k=1)
    async with GatewayClient.open(client.cluster.gateway_url) as operator:
        await operator.delete(job_id)  # DELETE on a job that has not failed cancels it
        [record] = await client.wait([job_id])
        assert record.status == "cancelled"
        await operator.retry(job_id)
        record = await operator.wait(job_id)
    assert_succeeded_once(record)
    counts = await client.counts()
    assert counts["running"] == counts["queued"] == 0


def assert_succeeded_once(record: JobRecord) -> None:
    assert (record.status, record.num_retries, record.error) == ("succeeded", 1, None)
    assert [past.status for past in record.failures] == ["cancelled"]
    assert record.result is not None
    assert record.result.usage.num_output_tokens == 200
